"""What does each latent move, what do known quantities move, and what lies between two frames?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scripts import cli
from scripts.diagnose import Folder, probed, split
from scripts.known_state import from_file
from worldvae.clips import clips
from worldvae.frames import Frames
from worldvae.measures.probes import Probe
from worldvae.pictures import between, grid, labelled, moved, ranked, save_film, save_png, tiles
from worldvae.rollouts import RolloutStore
from worldvae.vae import FrameVAE

NAMED = 0.3
"""R^2 from which on a latent is called by the quantity that it tells by itself."""


def names(probes: Mapping[str, Probe], size: int) -> list[str]:
    """What each latent tells by itself, with its R^2 on held-out episodes; empty below ``NAMED``."""
    told = [""] * size
    for j in range(size):
        r2, name = max(((float(p.alone[j]), name) for name, p in probes.items()), default=(0.0, ""))
        told[j] = f"{name} {r2:.2f}" if r2 >= NAMED else ""
    return told


@dataclass(frozen=True)
class Traversal:
    """What is moved in one frame's code.

    Attributes:
        names: of each row: a known quantity that all latents tell together, or a latent and what it tells alone.
        details: of each row: whose R^2, or nats.
        codes: float32 [R, V, Z]
    """

    names: list[str]
    details: list[str]
    codes: NDArray[np.float32]


def traversal(
    vae: FrameVAE, frames: Frames, probes: Mapping[str, Probe], most: int, values: NDArray[np.floating]
) -> Traversal:
    """Known quantities that can be read, moved so many sd; then ``most`` latents, by KL, at these values."""
    latents, base = ranked(vae, frames)
    kl, called = vae.encode(frames).kl().mean(0).cpu().numpy(), names(probes, vae.latent_size)
    read = {name: told for name, told in probes.items() if told.linear >= NAMED}
    along = [base + values[:, None] * told.direction for told in read.values()]
    return Traversal(
        [*(f"{name} {told.linear:.2f}" for name, told in read.items()), *(f"z{j} {called[j]}" for j in latents[:most])],
        [*("all latents" for _ in read), *(f"{kl[j]:.2f} nats" for j in latents[:most])],
        np.array([*along, *moved(base, latents[:most], values)], np.float32),
    )


def traversal_grid(
    vae: FrameVAE, frames: Frames, probes: Mapping[str, Probe], most: int = 12, columns: int = 9
) -> Frames:
    """A row for each known quantity and each latent, from -3 to 3, its name beside it."""
    told = traversal(vae, frames, probes, most, np.linspace(-3, 3, columns))
    labels = [f"{name}\n{detail}" for name, detail in zip(told.names, told.details, strict=True)]
    return labelled(grid(vae.decode(told.codes)), labels)


def traversal_film(
    vae: FrameVAE, frames: Frames, probes: Mapping[str, Probe], most: int, steps: int = 48
) -> list[Frames]:
    """The same in tiles, all swinging from 0 to 3, to -3 and back."""
    told = traversal(vae, frames, probes, most, 3 * np.sin(2 * np.pi * np.arange(steps) / steps))
    decoded = vae.decode(told.codes)
    return [tiles(decoded[:, t], told.names, columns=4) for t in range(steps)]


def interpolation_film(codecs: Mapping[str, FrameVAE], frames: Frames, steps: int = 12) -> list[Frames]:
    """From each of the frames [K, H, W, C] to the next, and round, on the lines between their codes."""
    decoded = [vae.decode(between(vae.encode(frames).mean.cpu().numpy(), steps)) for vae in codecs.values()]
    return [tiles(np.stack(row), list(codecs), columns=len(codecs), scale=4) for row in zip(*decoded, strict=True)]


def main(
    codec: Folder,
    data: Folder,
    beside: Path | None = None,
    state: Path | None = None,
    replay: bool = False,
    most: int = 12,
    frames: int = 1024,
    out: Path | None = None,
    seed: int = 0,
) -> None:
    """Draw what latents of CODEC and known quantities move in a held-out frame of DATA, and what is between frames.

    Writes traversals.png, and traversals and interpolations as .webm and .gif, into CODEC (or OUT).

    Args:
        beside: another codec, such as a plain autoencoder, for the film of interpolations.
        state, replay: as for scripts.diagnose: what is known of frames names latents, and is moved if it can be read.
        most: latents shown, those with the largest KL.
        frames: held-out frames looked at.
        seed: of the frames' choice.
    """
    vae, store = FrameVAE.load(codec), RolloutStore(data)
    seen = clips(store, split(codec, store)[1], frames, seed)
    states = from_file(state, store, seen)[0] if state else {}
    probes = probed(vae, store, frames, replay, seen, states)
    folder = out or codec
    folder.mkdir(parents=True, exist_ok=True)
    save_png(folder / "traversals.png", traversal_grid(vae, seen.frames, probes, most))
    films = save_film(folder / "traversals", traversal_film(vae, seen.frames, probes, most), fps=16)
    codecs = {codec.name: vae} | ({beside.name: FrameVAE.load(beside)} if beside else {})
    between_frames = seen.frames[np.linspace(0, len(seen.frames) - 1, 6).astype(int)]
    films += save_film(folder / "interpolations", interpolation_film(codecs, between_frames), fps=16)
    print("\n".join(map(str, [folder / "traversals.png", *films])))


if __name__ == "__main__":
    cli.run(main)
