"""Stage 3: encode the recorded frames once, and say what that saves."""

from __future__ import annotations

import numpy as np

from scripts import cli
from scripts.run_folder import RunFolder
from worldvae.checkpoint import write_json
from worldvae.latents import LatentStore, Precision, bytes_per_frame, encode, round_trip_mse
from worldvae.measures.images import image_format_sizes, psnr
from worldvae.measures.latents import statistics
from worldvae.rollouts import RolloutStore
from worldvae.training import some_frames
from worldvae.vae import FrameVAE

EVERY = 16
"""Of this many frames one is decoded to tell the PSNR: to decode all would take longer than to encode them."""


def encode_rollouts(run: RunFolder, precision: Precision = "float32") -> LatentStore:
    """Encodes ``run``'s rollouts, prints bytes per frame and PSNR beside image formats'."""
    store, vae = RolloutStore(run.rollouts), FrameVAE.load(run.vae)
    latents = encode(store, vae, run.latents, precision)
    frames = some_frames(store, range(len(store)), most=512).numpy()
    error = round_trip_mse(store, latents, vae, EVERY)
    sizes = {f"latents {precision}": (bytes_per_frame(latents), psnr(error))}
    sizes |= image_format_sizes(frames)
    sizes["raw uint8"] = (float(frames[0].nbytes), float("inf"))
    write_json(run.latents / "sizes.json", {name: {"bytes": b, "psnr": str(p)} for name, (b, p) in sizes.items()})
    described = statistics(*(np.concatenate([getattr(e, name) for e in latents]) for name in ("mean", "logvar")))
    write_json(run.latents / "statistics.json", {name: v.round(4).tolist() for name, v in vars(described).items()})
    print(cli.table([("stored as", "bytes per frame", "PSNR dB"), *((n, b, p) for n, (b, p) in sizes.items())]))
    return latents


def main(run: cli.Run, precision: Precision = "float32") -> None:
    """Encode RUN/rollouts by RUN/vae into RUN/latents; goes on where it was cut off."""
    folder = RunFolder(run)
    with folder.stage("encode"):
        encode_rollouts(folder, precision)


if __name__ == "__main__":
    cli.run(main)
