"""Stage 6: the agent's score on unseen episodes of the official environment, and a film."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from agents.agent import Agent, PixelAgent
from agents.evaluation import TEST_SEEDS, Scores, commit, env_version, evaluate, machine
from scripts import cli
from scripts.run_folder import RunFolder
from worldvae.checkpoint import read_json, write_json
from worldvae.environments import closing, make_vector_env
from worldvae.pictures import save_film, side_by_side
from worldvae.policies import UniformPolicy
from worldvae.record import record
from worldvae.rollouts import RolloutStore
from worldvae.vae import FrameVAE

PRETRAINED = Path(__file__).parent.parent / "agents" / "pretrained"


@dataclass(frozen=True)
class EvaluateConfig:
    """Whom to judge, on which episodes.

    Attributes:
        policy: the run's agent, its evolved controller, or uniformly random actions (each played as
            long as the agent's).
        episodes: how many, on first_seed, first_seed + 1, ...
        first_seed: test seeds start at 2,000,000.
        env: judge in this environment instead of the rollouts' own; its name goes into the files'.
        workers: environments stepped in parallel processes.
        max_episode_steps: truncate earlier than the id's own limit (then it is no official score).
        film: record the first seed as WebM and GIF: real | reconstruction.
    """

    policy: Literal["agent", "evolved", "random"] = "agent"
    episodes: int = 100
    first_seed: int = TEST_SEEDS
    env: str | None = None
    workers: int = 4
    max_episode_steps: int | None = None
    film: bool = True


def score(run: RunFolder, config: EvaluateConfig) -> dict[str, Any]:
    """Plays the listed seeds, writes and returns ``evaluation.json`` (``evolved.json``, ``random.json``), or with
    another environment's name in it."""
    store = RolloutStore(run.rollouts)
    manifest = store.manifest
    seeds = range(config.first_seed, config.first_seed + config.episodes)
    setting = {
        "action_repeat": manifest["action_repeat"],
        "max_episode_steps": config.max_episode_steps,
        "frame": store.frame_spec,
        "env_kwargs": manifest["env_kwargs"],
    }
    vae = None if config.policy == "random" else FrameVAE.load(_judged(run, config).vae)
    make_policy: Any = _random_policy
    if vae is not None:
        make_policy = partial(_agent_policy, Agent.load(_learned(run, config)), vae)
    env_id = config.env or manifest["env_id"]
    scores = evaluate(env_id, make_policy, seeds, workers=config.workers, name=config.policy, **setting)
    report = as_report(run, config, scores)
    name, film_name = ("evaluation", "film") if config.policy == "agent" else (config.policy, config.policy)
    elsewhere = "" if config.env is None else "_" + config.env.split(":")[-1].split("/")[-1]
    write_json(run.path / f"{name}{elsewhere}.json", report)
    print(f"{config.policy}: {scores}")
    if vae is not None and config.film:
        film(run.pictures / (film_name + elsewhere), vae, make_policy, env_id, config.first_seed, setting)
    return report


def as_report(run: RunFolder, config: EvaluateConfig, scores: Scores) -> dict[str, Any]:
    """The contents of ``evaluation.json``: score, cost, and all it takes to judge them."""
    store = RolloutStore(run.rollouts)
    env_id = config.env or store.manifest["env_id"]
    report = {
        "env": env_id,
        "env_version": env_version(env_id),
        "policy": config.policy,
        **scores.as_json(),
        "action_repeat": store.manifest["action_repeat"],
        "wall_seconds": {"evaluate": scores.wall_seconds},
        "commit": commit(),
        "machine": machine(),
    }
    if config.policy == "random" or len(store) == 0:  # without its rollouts nobody knows what it has cost
        return report
    vae, agent = (read_json(p / "config.json") for p in (_judged(run, config).vae, _learned(run, config)))
    learned = agent["training"]
    agents = [each.agent for each in (*run.earlier, run)] if config.policy == "agent" else [run.evolved]
    summaries = [read_json(folder / "config.json")["training"] for folder in agents]
    select = sum(int(summary.get("select_env_steps", 0)) for summary in summaries)
    train = sum(int(summary["env_steps"]) for summary in summaries)
    steps = {"collect": store.env_steps, "train": train, "select": select}
    last_stage = "train_agent" if config.policy == "agent" else "evolve"
    trained = run.seconds("train_vae", "encode", "train_dynamics", last_stage)
    wall = {"collect": run.seconds("collect", "choose"), "train": trained}
    return report | {
        "train_seed": learned["seed"],
        "env_steps": steps,
        "env_steps_total": sum(steps.values()),
        "wall_seconds": {**wall, **report["wall_seconds"]},
        "latent": {"z": agent["config"]["latent_size"], "kl_nats": vae["training"]["held_out_kl"]},
        "config": {"vae": vae["training"], "agent": learned},
        **({"chosen": run.chosen} if run.chosen else {}),
    }


def film(path: Path, vae: FrameVAE, make_policy: Any, env_id: str, seed: int, setting: dict[str, Any]) -> None:
    """Records an episode's first 250 decisions: real | reconstruction, in the codec's frames."""
    env = make_vector_env(env_id, 1, backend="sync", **setting)
    fps = env.metadata.get("render_fps", 50) / setting["action_repeat"]
    with closing(env):
        episode = next(record(env, make_policy(env), vae.config.frame, [seed]))
    frames = episode.frames[:250]
    images = side_by_side([frames, vae.decode(vae.encode(frames).mean.cpu().numpy())])
    for written in save_film(path, images, fps):
        print(written)


def _judged(run: RunFolder, config: EvaluateConfig) -> RunFolder:
    """The round whose agent was chosen; controllers evolve in the last."""
    return run.best if config.policy == "agent" else run


def _learned(run: RunFolder, config: EvaluateConfig) -> Path:
    return run.best.agent if config.policy == "agent" else run.evolved


def _agent_policy(agent: Agent, vae: FrameVAE, env: Any) -> PixelAgent:
    return PixelAgent(agent, vae, env.num_envs)


def _random_policy(env: Any) -> UniformPolicy:
    return UniformPolicy(env.single_action_space, env.num_envs, seed=0)


def unpacked(name: str) -> RunFolder:
    """A run whose codec and agent came with this repository, in runs/pretrained."""
    run = Path("runs") / "pretrained" / name
    shutil.copytree(PRETRAINED / name, run, dirs_exist_ok=True)
    return RunFolder(run)


def main(
    run: cli.OptionalRun = None,
    pretrained: Literal["carracing"] | None = None,
    config: cli.Flat[EvaluateConfig] = EvaluateConfig(),
) -> None:
    """Score RUN's agent, evolved controller or the random policy on test seeds into RUN/evaluation.json.

    Args:
        pretrained: instead of RUN, a codec and an agent that came with this repository.
    """
    if run is not None and pretrained is None:
        score(RunFolder(run), config)
    elif pretrained is not None and run is None:
        score(unpacked(pretrained), config)
    else:
        raise ValueError("whom to judge? name a run's folder, or --pretrained carracing, and not both")


if __name__ == "__main__":
    cli.run(main)
