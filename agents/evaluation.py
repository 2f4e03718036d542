"""The one honest protocol: listed seeds, each played once to its end, on official environments."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from tqdm import tqdm

from worldvae.devices import on_threads
from worldvae.environments import closing, make_vector_env
from worldvae.frames import FrameSpec
from worldvae.policies import BehaviourPolicy
from worldvae.record import interact

SELECTION_SEEDS = 1_000_000
"""Any choice made by looking at scores uses seeds from here on; training stays below."""
TEST_SEEDS = 2_000_000
"""Reported scores use seeds from here on, never touched by training or selection."""

TRAINING_SEEDS = range(90)
"""Each has 10,000 seeds of episodes to learn from and as many to select on; those from 1,900,000 on are dream_gap's."""

MakePolicy = Callable[[VectorEnv], BehaviourPolicy]


def first_seed(training_seed: int) -> int:
    """Where an agent's episodes begin: training seeds (below 1,000,000) that no rollouts use."""
    return 10_000 * checked(training_seed) + 1_000


def first_selection_seed(training_seed: int) -> int:
    """Where the episodes begin that choices are made on."""
    return SELECTION_SEEDS + 10_000 * checked(training_seed)


def checked(training_seed: int) -> int:
    """The same. Raises ValueError where its episodes would be others' to select or to judge on."""
    if training_seed not in TRAINING_SEEDS:
        raise ValueError(f"training seeds are 0..89 (from 1,000,000 on episodes are for judging), got {training_seed}")
    return training_seed


@dataclass(frozen=True)
class Scores:
    """One entry an episode, in the order of ``seeds``.

    Attributes:
        seeds: one ``reset(seed=...)`` each.
        returns: undiscounted sums of the environment's own rewards.
        lengths: in env steps.
        wall_seconds: the whole evaluation's.
    """

    seeds: tuple[int, ...]
    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    wall_seconds: float

    @property
    def mean(self) -> float:
        return float(np.mean(self.returns))

    @property
    def sd(self) -> float | None:
        """With ddof 1; None for a single episode."""
        return float(np.std(self.returns, ddof=1)) if len(self.returns) > 1 else None

    @property
    def ci95(self) -> tuple[float, float]:
        """95% percentile bootstrap interval of the mean, over episodes."""
        return bootstrap_interval(np.array(self.returns))

    def __str__(self) -> str:
        """Mean ± sd over how many episodes, and the interval."""
        low, high = self.ci95
        return f"{spread(self.mean, self.sd, 1)} over {len(self.seeds)} episodes, 95% [{low:.1f}, {high:.1f}]"

    def as_json(self) -> dict[str, Any]:
        return {
            "episode_seeds": list(self.seeds),
            "returns": list(self.returns),
            "lengths": list(self.lengths),
            "mean": self.mean,
            "sd": self.sd,
            "ci95": list(self.ci95),
        }


def evaluate(
    env_id: str,
    make_policy: MakePolicy,
    seeds: Sequence[int],
    *,
    workers: int = 4,
    action_repeat: int = 1,
    max_episode_steps: int | None = None,
    frame: FrameSpec | None = None,
    env_kwargs: dict[str, Any] | None = None,
    name: str = "evaluate",
) -> Scores:
    """Plays exactly the listed seeds, one ``reset(seed=...)`` each, in Gymnasium's environment.

    Args:
        make_policy: from the vector environment (raw pixels, or what becomes ``frame``) to who acts in it.
        workers: environments stepped in parallel, each in its own process.

    Raises:
        ValueError: no seeds, or one listed twice. UnknownEnvironment: as ``make_vector_env``.
    """
    if len(seeds) == 0 or len(set(seeds)) < len(seeds):
        raise ValueError("an evaluation needs seeds, each listed once")
    begin = time.monotonic()
    env = make_vector_env(
        env_id,
        min(workers, len(seeds)),
        backend="async",
        action_repeat=action_repeat,
        max_episode_steps=max_episode_steps,
        frame=frame,
        env_kwargs=env_kwargs,
    )
    running_return, running_length = np.zeros(env.num_envs), np.zeros(env.num_envs, np.int64)
    played: dict[int, tuple[float, int]] = {}
    with closing(env), on_threads(1), tqdm(total=len(seeds), desc=name, unit="episode", dynamic_ncols=True) as bar:
        for step in interact(env, make_policy(env), seeds):
            running_return[step.started] = running_length[step.started] = 0
            running_return += step.rewards_tp1
            running_length += step.env_steps
            for i in np.flatnonzero(step.done & step.recorded):
                played[int(step.seeds[i])] = (float(running_return[i]), int(running_length[i]))
                bar.set_postfix(mean=f"{np.mean([r for r, _ in played.values()]):.1f}")
                bar.update()
    returns, lengths = zip(*(played[s] for s in seeds), strict=True)
    return Scores(tuple(seeds), returns, lengths, time.monotonic() - begin)


def bootstrap_interval(values: NDArray[Any], level: float = 0.95, resamples: int = 10_000) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron 1979); the same values give the same interval."""
    random = np.random.default_rng(0)
    means = random.choice(values, (resamples, len(values))).mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def spread(mean: float, sd: float | None, digits: int = 0) -> str:
    """``906 ± 21``; the mean alone where there is no sd."""
    return f"{mean:.{digits}f}" + ("" if sd is None else f" ± {sd:.{digits}f}")


def env_version(env_id: str) -> str:
    """Who made the environment: ``gymnasium 1.4.0 CarRacing-v3``."""
    entry = gymnasium.spec(env_id.split(":")[-1]).entry_point  # without the "module:" that is imported first
    maker = entry if isinstance(entry, str) else getattr(entry, "__module__", "")
    owner = maker.split(".")[0]
    if owner == "agents":  # our own environments are made of these
        owner = "vizdoom" if maker.startswith("agents.takecover") else "gymnasium"
    try:
        return f"{owner} {version(owner)} {env_id}"
    except PackageNotFoundError:  # an environment of a script's own, in no package
        return f"{owner} {env_id}"


def machine() -> str:
    """The machine in words: processor, cores, accelerator, torch."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = f"{names[0]}, {len(names)} cores" if names else processor
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{processor}, {gpu}, torch {torch.__version__}"


def commit() -> str:
    """The repository's commit, with '+' where the tree differs from it; 'unknown' outside git."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
