"""What is M worth to whom? The same codec and episodes, agents that see z, stacked z, or z and h, and some that dream.

Off-policy learners get as many env steps each; linear controllers, evolved, as many minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from agents.evolution import EvolutionConfig
from agents.imagination import ImaginationConfig
from agents.observations import Z_ALONE, ObservationConfig
from scripts import cli
from scripts.evaluate import EvaluateConfig, score
from scripts.evolve import EvolveConfig, run_evolution
from scripts.pipeline import CARRACING_AGENT
from scripts.run_folder import RunFolder
from scripts.train_agent import AgentConfig
from scripts.train_agent import train as train_agent
from scripts.train_dynamics import Memory
from worldvae.checkpoint import CheckpointError, read_json, write_record
from worldvae.fit import settled

LEARNERS: dict[str, tuple[ObservationConfig, Memory, float]] = {
    "z": (Z_ALONE, "none", 0.0),
    "stacked z": (ObservationConfig(), "none", 0.0),
    "z + h untrained": (Z_ALONE, "untrained", 0.0),
    "z + h": (Z_ALONE, "trained", 0.0),
    "z + h, a quarter dreamt": (Z_ALONE, "trained", 0.25),
}
"""What it sees, whose h, and how much of what it learns from is dreamt."""
EVOLVED: dict[str, Memory] = {"z, evolved": "none", "z + h, evolved": "trained"}
EVOLVER = EvolveConfig(start=(0, 0.3, 0), evolution=EvolutionConfig(rollouts=2, minutes=20, patience=120))
FIRST_SEED = 2_500_000
"""Of episodes that judge: neither learned from, nor selected on, nor those of the scores."""


def beside(run: RunFolder, name: str) -> RunFolder:
    """A run of its own on the same rollouts, codec and world model."""
    folder = RunFolder(run.path / "worth" / name, run.rollouts)
    folder.vae, folder.latents, folder.dynamics = run.vae, run.latents, run.dynamics
    return folder


def entry(
    run: RunFolder, name: str, settings: dict[str, Any], train: Callable[[RunFolder], Any], judge: EvaluateConfig
) -> dict[str, Any]:
    """Trains and judges one kind of controller; what was done before is not done again.

    Raises CheckpointError where that was done under other settings.
    """
    folder = beside(run, name)
    stage, file = ("evolve", "evolved") if judge.policy == "evolved" else ("train_agent", "evaluation")
    if not folder.is_done(stage):
        folder.path.mkdir(parents=True, exist_ok=True)
        with folder.stage(stage):
            train(folder)
    record = folder.path / f"{file}.json"
    if not record.exists() or len(read_json(record)["returns"]) != judge.episodes:
        score(folder, judge)
    told = read_json(record)
    changed = [key for key, value in settings.items() if told["config"]["agent"].get(key) != value]
    if changed:
        raise CheckpointError(f"{folder.path} was done under other settings ({', '.join(changed)}): delete it first")
    kept = ("train_seed", "mean", "sd", "ci95", "returns", "env_steps", "env_steps_total")
    return {"who": name, **{key: told[key] for key in kept}, "seconds": folder.seconds(stage)}


def entries(run: RunFolder, learner: AgentConfig, evolution: EvolveConfig, episodes: int) -> list[dict[str, Any]]:
    """The table's rows of one run, whose training seed is M's."""
    seed = read_json(run.dynamics / "config.json")["training"]["seed"]
    judge = EvaluateConfig(episodes=episodes, first_seed=FIRST_SEED, film=False)
    told = []
    for name, (sees, memory, share) in LEARNERS.items():
        learning = replace(learner.learning, observation=sees, imagination=ImaginationConfig(share), seed=seed)
        config, settings = replace(learner, memory=memory, learning=learning), settled(learning, but=("env_steps",))
        told.append(entry(run, name, settings, partial(train_agent, config=config), judge))
    for name, memory in EVOLVED.items():
        evolving = replace(evolution.evolution, seed=seed)
        settings = settled(evolving, but=("workers", "timeout"))
        evolve = partial(run_evolution, config=replace(evolution, memory=memory, evolution=evolving))
        told.append(entry(run, name, settings, evolve, replace(judge, policy="evolved")))
    return told


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each kind of controller: the mean of each training seed, and of all."""
    lines: list[tuple[Any, ...]] = [("who", "mean of the seeds", "by training seed", "env steps")]
    for name in (*LEARNERS, *EVOLVED):
        own = [row for row in rows if row["who"] == name]
        means = [row["mean"] for row in own]
        steps = ", ".join(str(row["env_steps_total"]) for row in own)
        lines.append((name, f"{np.mean(means):.0f}", ", ".join(f"{mean:.0f}" for mean in means), steps))
    return cli.table(lines)


def main(
    runs: cli.Runs,
    learner: AgentConfig = CARRACING_AGENT,
    evolution: EvolveConfig = EVOLVER,
    episodes: int = 20,
    json_file: Path | None = None,
) -> None:
    """Train and judge all kinds of controllers beside RUNS (in RUN/worth), each done up to its world model.

    Args:
        runs: one a training seed.
        learner, evolution: settings that all of a kind share.
        episodes: that judge, on the environment's own seeds from 2,500,000.
        json_file: where the record goes.
    """
    rows = [row for run in runs for row in entries(RunFolder(run), learner, evolution, episodes)]
    print(table(rows))
    if json_file is not None:
        write_record(json_file, {"runs": rows, **cli.provenance()})


if __name__ == "__main__":
    cli.run(main)
