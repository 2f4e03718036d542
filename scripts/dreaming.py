"""A run's dreams, and the reality beside them."""

from __future__ import annotations

from agents.dream import Starts, real_starts
from agents.evaluation import MakePolicy, Scores, evaluate
from agents.sequences import Trajectories
from agents.world_model import WorldModel
from scripts.run_folder import RunFolder
from worldvae.devices import pick_device
from worldvae.latents import LatentStore
from worldvae.rollouts import RolloutStore
from worldvae.vae import FrameVAE


def dreaming(
    run: RunFolder,
    store: RolloutStore,
    vae: FrameVAE,
    context: int,
    seed: int,
    most: int = 10_000,
    random_play: bool = False,
) -> tuple[WorldModel, Starts]:
    """The run's world model, and where its dreams may begin: as ``real_starts``.

    Args:
        random_play: only in what no agent has played; ValueError where agents played all.
    """
    latents, device = LatentStore(run.latents), pick_device("auto")
    latents.check_codec(vae)
    model = WorldModel.load(run.dynamics, vae.sha256, device)
    played = [
        latents[i]
        for i, index in enumerate(latents.indices)
        if not (random_play and store.episodes.header(index)["policy"] == "agent")
    ]
    if not played:
        raise ValueError(f"agents played all rollouts in {run.rollouts}: let dreams begin in any of them")
    return model, real_starts(model, Trajectories(played, store.action_space, device), context, most, seed)


def awake(store: RolloutStore, make_policy: MakePolicy, seeds: range, workers: int, name: str) -> Scores:
    """What somebody earns in the rollouts' own environment."""
    return evaluate(
        store.manifest["env_id"],
        make_policy,
        seeds,
        workers=workers,
        action_repeat=store.manifest["action_repeat"],
        frame=store.frame_spec,
        env_kwargs=store.manifest["env_kwargs"],
        name=name,
    )
