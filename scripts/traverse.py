"""What does each latent move, and what lies between two frames?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

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


def traversal_grid(vae: FrameVAE, frames: Frames, called: Sequence[str], most: int, columns: int = 9) -> Frames:
    """A row for each latent, by KL, from -3 to 3: what it is called beside it."""
    latents, base = ranked(vae, frames)
    kl = vae.encode(frames).kl().mean(0).cpu().numpy()
    image = grid(vae.decode(moved(base, latents[:most], np.linspace(-3, 3, columns))))
    return labelled(image, [f"z{j}: {kl[j]:.2f} nats\n{called[j]}" for j in latents[:most]])


def traversal_film(vae: FrameVAE, frames: Frames, called: Sequence[str], most: int, steps: int = 48) -> list[Frames]:
    """All latents swinging from 0 to 3, to -3 and back, each in a tile of its own, by KL."""
    latents, base = ranked(vae, frames)
    swing = 3 * np.sin(2 * np.pi * np.arange(steps) / steps)
    decoded = vae.decode(moved(base, latents[:most], swing))
    captions = [f"z{j} {called[j]}" for j in latents[:most]]
    return [tiles(decoded[:, t], captions, columns=4) for t in range(steps)]


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
    """Draw what each latent of CODEC moves in held-out frames of DATA, and films of what is between frames.

    Writes traversals.png, and traversals and interpolations as .webm and .gif, into CODEC (or OUT).

    Args:
        beside: another codec, such as a plain autoencoder, for the film of interpolations.
        state, replay: as for scripts.diagnose: what is known of frames names the latents.
        most: latents shown, those with the largest KL.
        frames: held-out frames looked at.
        seed: of the frames' choice.
    """
    vae, store = FrameVAE.load(codec), RolloutStore(data)
    seen = clips(store, split(codec, store)[1], frames, seed)
    states = from_file(state, store, seen)[0] if state else {}
    called = names(probed(vae, store, frames, replay, seen, states), vae.latent_size)
    folder = out or codec
    folder.mkdir(parents=True, exist_ok=True)
    save_png(folder / "traversals.png", traversal_grid(vae, seen.frames, called, most))
    films = save_film(folder / "traversals", traversal_film(vae, seen.frames, called, most), fps=16)
    codecs = {codec.name: vae} | ({beside.name: FrameVAE.load(beside)} if beside else {})
    between_frames = seen.frames[np.linspace(0, len(seen.frames) - 1, 6).astype(int)]
    films += save_film(folder / "interpolations", interpolation_film(codecs, between_frames), fps=16)
    print("\n".join(map(str, [folder / "traversals.png", *films])))


if __name__ == "__main__":
    cli.run(main)
