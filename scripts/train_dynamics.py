"""Stage 4: train the latent dynamics model on the encoded episodes, and see it dream."""

from __future__ import annotations

from typing import Any, Literal

import gymnasium
import numpy as np
import torch

from agents.dynamics import DynamicsConfig, load_trajectories, train_dynamics
from agents.forecasts import CONTEXT, ForecastScores, compare
from agents.observations import action_size, as_vector
from agents.world_model import WorldModel, WorldModelConfig
from scripts import cli
from scripts.run_folder import RunFolder
from worldvae.checkpoint import write_json
from worldvae.latents import LatentStore
from worldvae.pictures import grid, save_film, save_png, side_by_side
from worldvae.rollouts import RolloutStore, split_episodes
from worldvae.vae import FrameVAE

Memory = Literal["none", "untrained", "trained"]
"""Whose h a controller sees beside z."""

HEALTHY = (
    "healthy: the world model's NLL below both baselines', and close to that of training;\n"
    "an NLL below zero is no bug (densities may exceed 1); open-loop error 1 means knowing nothing"
)


def train(run: RunFolder, config: DynamicsConfig) -> WorldModel:
    """Trains M on ``run``'s latents, prints how well it foretells, and films a dream."""
    store, latents, vae = RolloutStore(run.rollouts), LatentStore(run.latents), FrameVAE.load(run.vae)
    latents.check_codec(vae)
    model = train_dynamics(latents, store.action_space, config, run.dynamics)
    scores = compare(model, *load_trajectories(latents, store.action_space, config), config.seed)
    write_json(run.dynamics / "forecasts.json", {name: vars(s) for name, s in scores.items()})
    print(f"{cli.table(rows(scores))}\n{HEALTHY}")
    film(run, store, latents, vae, model.cpu(), config)
    return model


def rows(scores: dict[str, ForecastScores]) -> list[tuple[Any, ...]]:
    """A line for each forecaster: nats per step, open-loop error by steps ahead."""
    horizons = list(scores["world model"].open_loop)
    head = ("held-out episodes", "NLL, nats/step", *(f"error at +{k}" for k in horizons))
    return [head, *((name, s.nll, *s.open_loop.values()) for name, s in scores.items())]


def film(
    run: RunFolder, store: RolloutStore, latents: LatentStore, vae: FrameVAE, model: WorldModel, config: DynamicsConfig
) -> None:
    """real | reconstruction | dream of the longest held-out episode, and its steps as a picture.

    The dream is given the first real codes, then only the actions; it feeds on its own draws.
    """
    _, held_out = split_episodes(len(latents), config.held_out, config.seed)
    chosen = max(held_out, key=lambda i: store.header(i)["length"])
    episode = latents[chosen]
    seen = max(2, int(episode.visible.cumprod().sum()))  # all, or all but a blanked last frame
    codes, frames = episode.mean[:seen], store[chosen].frames[:seen]
    known = min(CONTEXT, seen - 1)
    actions = as_vector(episode.actions, store.action_space)[: seen - 1]
    dream = model.imagine(
        torch.from_numpy(codes[None, :known]),
        torch.from_numpy(actions[None]),
        torch.Generator().manual_seed(config.seed),
    )
    columns = [frames[known:], vae.decode(codes[known:]), vae.decode(dream[0].numpy())]
    shown = [i for i in (0, 1, 3, 7, 15, 31, 63) if i < len(columns[0])]
    run.pictures.mkdir(parents=True, exist_ok=True)
    save_png(run.pictures / "dream.png", grid(np.stack(columns)[:, shown]))
    for path in (run.pictures / "dream.png", *save_film(run.pictures / "dream", side_by_side(columns), fps=10)):
        print(path)


def memory_of(run: RunFolder, choice: Memory, vae: FrameVAE, space: gymnasium.Space, seed: int) -> WorldModel | None:
    """The world model whose h a controller sees beside z: RUN/dynamics, an untrained one, or none."""
    if choice == "trained":
        return WorldModel.load(run.dynamics, vae.sha256)
    if choice == "untrained":
        torch.manual_seed(seed)
        return WorldModel(WorldModelConfig(vae.latent_size, action_size(space))).eval()
    return None


def main(run: cli.Run, config: cli.Flat[DynamicsConfig] = DynamicsConfig()) -> None:  # noqa: B008
    """Train the world model on RUN/latents into RUN/dynamics; resumes from its last checkpoint."""
    folder = RunFolder(run)
    with folder.stage("train_dynamics"):
        train(folder, config)


if __name__ == "__main__":
    cli.run(main)
