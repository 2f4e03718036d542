"""A diagnosis -> one page of pictures."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldvae.clips import Clips
from worldvae.diagnose import HEALTHY, Diagnosis, Verdict, moving_objects
from worldvae.frames import Frames
from worldvae.pictures import error_maps, figure, grid, labelled, marked, png
from worldvae.vae import FrameVAE

COLUMNS = 12
"""Frames in a row."""


def page(
    vae: FrameVAE,
    clips: Clips,
    diagnosis: Diagnosis,
    verdicts: Sequence[Verdict],
    masks: NDArray[np.bool_] | None,
    curve: Sequence[dict[str, float]],
) -> bytes:
    """A PNG: the verdicts, each latent's KL and spread, frames as they are, decoded, wrong and moving, and
    samples of the prior; with ``curve`` (of ``diagnose.over_beta``) distortion against rate.

    Raises ImportError without matplotlib.
    """
    image = frames_and_samples(vae, clips, masks)
    lines = [f"{v.name}: {v.says}. {v.remedy}." for v in verdicts] or [HEALTHY]
    text = "\n".join(textwrap.fill(line, 150, subsequent_indent="    ") for line in lines)
    tall = 12 * len(image) / image.shape[1]
    drawn = figure(12, 3.2 + 0.17 * text.count("\n") + tall)
    drawn.suptitle(text, x=0.01, ha="left", fontsize=9)
    above, below = drawn.subfigures(2, 1, height_ratios=(3, tall))
    left, middle, *right = above.subplots(1, 3 if curve else 2)
    _bars(left, middle, diagnosis)
    for axes in right:
        _rate_distortion(axes, curve)
    pictures = below.subplots()
    pictures.imshow(image)
    pictures.axis("off")
    return png(drawn)


def frames_and_samples(vae: FrameVAE, clips: Clips, masks: NDArray[np.bool_] | None) -> Frames:
    """Rows of frames: real, decoded, errors, objects, and two of samples; of each twelfth the one with most objects."""
    objects = moving_objects(clips) if masks is None else masks
    twelfths = np.array_split(np.arange(len(clips.frames)), COLUMNS)
    shown = np.array([rows[objects[rows].sum((1, 2)).argmax()] for rows in twelfths if len(rows)])
    real = clips.frames[shown]
    made = vae.decode(vae.encode(real).mean.cpu().numpy())
    samples = vae.sample(2 * len(real)).reshape(2, *real.shape)
    nothing = np.zeros(real.shape[:3], bool)
    rows = [marked(f, nothing) for f in (real, made)] + [error_maps(made, real), marked(real, objects[shown])]
    image = grid(np.stack([*rows, *(marked(f, nothing) for f in samples)]))
    which = "moving objects" if masks is None else "objects"
    return labelled(image, ["real", "decoded", "error", which, "samples of\nthe prior", ""])


def _bars(left: Any, right: Any, told: Diagnosis) -> None:
    order = np.argsort(-told.kl_of)
    left.bar(range(len(order)), told.kl_of[order], color=np.where(told.sd_of[order] > 0.1, "tab:blue", "lightgrey"))
    left.set(xlabel="latent, by KL (grey: dead)", ylabel="KL to the prior, nats per frame")
    right.axhspan(-1, 1, color="tab:green", alpha=0.15, label="prior")
    right.errorbar(range(len(order)), told.mean_of[order], told.sd_of[order], fmt="o", markersize=3, capsize=2)
    right.set(xlabel="latent, by KL", ylabel="code: mean ± sd over frames")
    right.legend(loc="upper right")


def _rate_distortion(axes: Any, curve: Sequence[dict[str, float]]) -> None:
    axes.plot([point["kl"] for point in curve], [point["psnr"] for point in curve], "o-")
    for point in curve:
        axes.annotate(f"beta {point['beta']:g}", (point["kl"], point["psnr"]))
    axes.set(xlabel="rate: KL, nats per frame", ylabel="PSNR of held-out frames, dB")
