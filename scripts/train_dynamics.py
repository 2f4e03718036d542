"""Stage 4: train the latent dynamics model on the encoded episodes, and see it dream."""

from __future__ import annotations

from typing import Any, Literal

import gymnasium
import torch

from agents.dynamics import DynamicsConfig, load_trajectories, train_dynamics
from agents.forecasts import ForecastScores, compare
from agents.observations import action_size
from agents.world_model import WorldModel, WorldModelConfig
from scripts import cli
from scripts.dream import film, longest_held_out
from scripts.run_folder import RunFolder
from worldvae.checkpoint import write_json
from worldvae.latents import LatentStore
from worldvae.rollouts import RolloutStore
from worldvae.vae import FrameVAE

Memory = Literal["none", "untrained", "trained"]
"""Whose h a controller sees beside z."""

HEALTHY = (
    "healthy: the world model's NLL below both baselines', and close to that of training;\n"
    "an NLL below zero is no bug (densities may exceed 1); open-loop error 1 means knowing nothing"
)


def train(run: RunFolder, config: DynamicsConfig, start: WorldModel | None = None) -> WorldModel:
    """Trains M on ``run``'s latents, prints how well it foretells, and films a dream."""
    store, latents, vae = RolloutStore(run.rollouts), LatentStore(run.latents), FrameVAE.load(run.vae)
    latents.check_codec(vae)
    model = train_dynamics(latents, store.action_space, config, run.dynamics, start)
    scores = compare(model, *load_trajectories(latents, store.action_space, config), config.seed)
    write_json(run.dynamics / "forecasts.json", {name: vars(s) for name, s in scores.items()})
    print(f"{cli.table(rows(scores))}\n{HEALTHY}")
    for path in film(run, model.cpu(), longest_held_out(run)):
        print(path)
    return model


def rows(scores: dict[str, ForecastScores]) -> list[tuple[Any, ...]]:
    """A line for each forecaster: nats per step, open-loop error by steps ahead."""
    horizons = list(scores["world model"].open_loop)
    head = ("held-out episodes", "NLL, nats/step", *(f"error at +{k}" for k in horizons))
    return [head, *((name, s.nll, *s.open_loop.values()) for name, s in scores.items())]


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
