"""Stage 2: train the frame VAE on the recorded frames."""

from __future__ import annotations

import numpy as np

from scripts import cli
from scripts.run_folder import RunFolder
from worldvae.devices import pick_device
from worldvae.distributed import ALONE, World, joined
from worldvae.fit import read_log
from worldvae.pictures import codec_pictures
from worldvae.rollouts import RolloutStore, split_episodes
from worldvae.training import VAETrainingConfig, train_vae
from worldvae.vae import FrameVAE

HEALTHY = "healthy: KL well above 1 nat, PSNR above 24 dB, held-out close to training; a negative loss is no bug"


def train(run: RunFolder, config: VAETrainingConfig, world: World = ALONE, start: FrameVAE | None = None) -> FrameVAE:
    """Trains the codec on ``run``'s rollouts, prints its numbers and writes its pictures."""
    store = RolloutStore(run.rollouts)
    vae = train_vae(store, config, run.vae, world, start)
    print(summary(run, config))
    _, held_out = split_episodes(len(store), config.held_out, config.seed)
    frames = np.concatenate([store.visible_frames(e)[::4].copy() for e in held_out])
    for path in codec_pictures(vae, frames, run.pictures):
        print(path)
    return vae


def summary(run: RunFolder, config: VAETrainingConfig) -> str:
    """Training and held-out reconstruction and KL (nats per frame), PSNR and active units over time."""
    entries = read_log(run.vae / "metrics.jsonl")
    names = ("reconstruction", "kl", "held_out_reconstruction", "held_out_kl", "psnr", "active_units")
    shown = entries[:: max(1, len(entries) // 6)]
    shown += [] if shown[-1] is entries[-1] else [entries[-1]]
    rows = [("step", *names), *((e["step"], *(e[name] for name in names)) for e in shown)]
    last = entries[-1]
    speed = last["step"] * config.batch_size / last["seconds"]
    return f"{cli.table(rows)}\n{HEALTHY}\n{speed:.0f} frames/s, held-out measurements included"


def main(run: cli.Run, config: cli.Flat[VAETrainingConfig] = VAETrainingConfig()) -> None:  # noqa: B008
    """Train the frame VAE on RUN/rollouts; resumes, and writes RUN/vae and RUN/pictures.

    On several GPUs: torchrun --nproc-per-node 4 -m scripts.train_vae RUN --batch-size 128
    """
    folder = RunFolder(run)
    with joined(pick_device(config.device)) as world:
        if world.leads:
            with folder.stage("train_vae"):
                train(folder, config, world)
        else:
            train_vae(RolloutStore(folder.rollouts), config, folder.vae, world)


if __name__ == "__main__":
    cli.run(main)
