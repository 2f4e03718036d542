"""All that is measured of a codec, in one place: ``Diagnosis``, each number beside its healthy range.

Knows nothing of how the codec was trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from worldvae.clips import Clips
from worldvae.frames import Frames
from worldvae.measures import images
from worldvae.measures.latents import active_units, change, kl_split, prior_gap, saturated_units, statistics
from worldvae.measures.likelihood import held_out_likelihood, importance_weighted_bound, log_weights
from worldvae.measures.probes import Probe
from worldvae.vae import DiagonalGaussian, FrameVAE

IWAE_SAMPLES = 64
IWAE_FRAMES = 32
"""Frames on which the importance-weighted bound is compared with the ELBO: each is decoded 64 times."""


def _number(unit: str = "", low: float = -math.inf, high: float = math.inf) -> Any:
    return field(metadata={"unit": unit, "healthy": (low, high)})


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What is known of a codec, on frames that it was not trained on. None: cannot be told.

    Attributes:
        black, constant: share of the frames that are black, or of any single colour.
        psnr, ssim: of decoded posterior means.
        psnr_gain: over the mean frame's PSNR.
        psnr_gap: how much higher PSNR is on training frames.
        psnr_moving, psnr_still: on pixels that changed since the frame before, and on all others.
        psnr_objects: on the pixels of known objects.
        objects_lost: share of objects (known ones, else what moves and is no background) painted over.
        sharpness: variance of the Laplacian, decoded over real.
        elbo, bits_per_dim: held-out ELBO (discretised Gaussian, fitted sigma, beta 1).
        iwae: the bound by 64 importance weights: the ELBO plus the two's difference on some frames.
        kl: to the prior; then its split over these frames (see ``measures.latents.KLSplit``).
        mutual_information_limit: log of the number of frames, above which it cannot rise.
        active_units: latents whose posterior mean varies by more than 0.01; ``dead`` is the share of others.
        saturated: latents that often lie beyond 4 sd of the prior.
        prior_gap: KL of the codes' mean and covariance to the prior's, a latent.
        change: from a frame to the next, over the codes' variance (see ``measures.latents.Change``).
        bytes_per_frame: of float32 means; ``bytes_in_theory`` of a code that wastes no bit: the KL.
        kl_of, mean_of, sd_of, change_of: of each latent, float64 [Z].
        probes: what of the known state is read from the codes.
    """

    frames: int = _number()
    black: float = _number("of frames", high=0.01)
    constant: float = _number("of frames", high=0.01)
    psnr: float = _number("dB", low=24)
    psnr_gain: float = _number("dB", low=4)
    psnr_gap: float | None = _number("dB", high=2)
    psnr_moving: float | None = _number("dB", low=18)
    psnr_still: float | None = _number("dB", low=24)
    psnr_objects: float | None = _number("dB", low=15)
    objects_lost: float | None = _number("of objects", high=0.2)
    ssim: float = _number(low=0.8)
    sharpness: float | None = _number(low=0.3, high=1.5)
    elbo: float = _number("nats")
    iwae: float = _number("nats")
    bits_per_dim: float = _number("bits", high=6.2)
    sigma: float = _number("of white", high=0.1)
    kl: float = _number("nats", low=1)
    mutual_information: float = _number("nats", low=1)
    mutual_information_limit: float = _number("nats")
    total_correlation: float = _number("nats")
    dimension_wise: float = _number("nats")
    active_units: int = _number("latents", low=1)
    dead: float = _number("of latents", high=0.5)
    saturated: int = _number("latents", high=0)
    prior_gap: float = _number("nats a latent", high=0.5)
    change: float = _number("of variance", high=1)
    bytes_per_frame: float = _number("bytes")
    bytes_in_theory: float = _number("bytes")
    kl_of: NDArray[np.float64] = field(repr=False)
    mean_of: NDArray[np.float64] = field(repr=False)
    sd_of: NDArray[np.float64] = field(repr=False)
    change_of: NDArray[np.float64] = field(repr=False)
    probes: dict[str, Probe] = field(repr=False)


NUMBERS = {each.name: each.metadata for each in fields(Diagnosis) if each.metadata}
"""Of each single number its ``unit`` and ``healthy`` range (lowest, highest)."""


def diagnose(
    vae: FrameVAE,
    held_out: Clips,
    train: Clips | None = None,
    masks: NDArray[np.bool_] | None = None,
    probes: Mapping[str, Probe] | None = None,
    seed: int = 0,
) -> Diagnosis:
    """Measures a codec.

    Args:
        held_out: frames that it was not trained on.
        train: frames that it was; without them the gap to held-out frames is not known, and the pixels'
            sigma is fitted on held-out ones.
        masks: bool [B, H, W], the pixels of the objects that matter in each held-out frame.
        probes: what is read from the codes, by ``measures.probes.probe``; told with the rest.
    """
    posterior = vae.encode(held_out.frames)
    codes = DiagonalGaussian(posterior.mean.cpu(), posterior.logvar.cpu())
    made = vae.decode(codes.mean.numpy())
    pictured = picture_numbers(made, held_out, masks)
    gap = None if train is None else _psnr(_decoded(vae, train.frames), train.frames) - pictured["psnr"]
    return Diagnosis(
        frames=len(made),
        **pictured,
        psnr_gap=gap,
        **likelihood_numbers(vae, held_out.frames, (train or held_out).frames, seed),
        **code_numbers(codes, held_out, seed),
        probes=dict(probes or {}),
    )


def moving_objects(clips: Clips) -> NDArray[np.bool_]:
    """bool [B, H, W]: pixels that changed since the frame before, and are not the background's."""
    moved = np.concatenate([images.moving(clips.frames[run]) for run in clips.runs])
    return moved & images.differing(clips.frames, images.median_frame(clips.frames))


def picture_numbers(made: Frames, real: Clips, masks: NDArray[np.bool_] | None) -> dict[str, Any]:
    """How well frames are painted: the numbers from ``black`` to ``sharpness``."""
    frames, median = real.frames, images.median_frame(real.frames)
    varied = images.diversity(frames)
    error = images.squared_error(made, frames)
    moved = np.concatenate([images.moving(frames[run]) for run in real.runs])
    mean_frame = frames.mean(0, dtype=np.float64)
    of_mean = float(np.mean([np.square((frame - mean_frame) / 255).mean() for frame in frames]))
    objects = moving_objects(real) if masks is None else masks
    return {
        "black": varied.black / len(frames),
        "constant": varied.constant / len(frames),
        "psnr": images.psnr(float(error.mean())),
        "psnr_gain": images.psnr(float(error.mean())) - images.psnr(of_mean) if of_mean else 0.0,
        "psnr_moving": _psnr_on(error, moved),
        "psnr_still": _psnr_on(error, ~moved),
        "psnr_objects": None if masks is None else _psnr_on(error, masks),
        "objects_lost": _told(images.lost_share(made, frames, median, objects)),
        "ssim": float(images.ssim(made, frames).mean()),
        "sharpness": _told(images.sharpness(made, frames)),
    }


def likelihood_numbers(vae: FrameVAE, held_out: Frames, train: Frames, seed: int) -> dict[str, Any]:
    """ELBO, importance-weighted bound and KL of held-out frames."""
    frames = torch.from_numpy(held_out)
    bound = held_out_likelihood(vae, torch.from_numpy(train), frames, seed)
    some = frames[:: -(-len(frames) // IWAE_FRAMES)]
    weights = log_weights(vae, some, bound.sigma, IWAE_SAMPLES, seed)
    gained = (importance_weighted_bound(weights) - weights.mean(0)).mean().item()
    return {
        "elbo": bound.elbo,
        "iwae": bound.elbo + gained,
        "bits_per_dim": bound.bits_per_dim,
        "sigma": bound.sigma,
        "kl": bound.kl,
        "bytes_in_theory": bound.kl / math.log(2) / 8,
    }


def code_numbers(codes: DiagonalGaussian, clips: Clips, seed: int) -> dict[str, Any]:
    """What the posteriors of clips are like, beside the prior and from a frame to the next."""
    split = kl_split(codes.mean, codes.logvar, seed)
    each = statistics(codes.mean.numpy(), codes.logvar.numpy())
    changed = change([codes.mean[run] for run in clips.runs])
    active, size = active_units(codes.mean), codes.mean.shape[1]
    return {
        "mutual_information": split.mutual_information,
        "mutual_information_limit": split.limit,
        "total_correlation": split.total_correlation,
        "dimension_wise": split.dimension_wise,
        "active_units": active,
        "dead": 1 - active / size,
        "saturated": saturated_units(codes.mean),
        "prior_gap": prior_gap(codes.mean, codes.logvar) / size,
        "change": changed.overall,
        "bytes_per_frame": 4.0 * size,
        "kl_of": each.kl,
        "mean_of": each.mean,
        "sd_of": each.sd,
        "change_of": changed.per_dimension,
    }


def _decoded(vae: FrameVAE, frames: Frames) -> Frames:
    return vae.decode(vae.encode(frames).mean.cpu().numpy())


def _psnr(made: Frames, real: Frames) -> float:
    return images.psnr(float(images.squared_error(made, real).mean()))


def _psnr_on(error: NDArray[np.float32], mask: NDArray[np.bool_]) -> float | None:
    return images.psnr(float(error[mask].mean())) if mask.any() else None


def _told(value: float) -> float | None:
    return None if math.isnan(value) else value
