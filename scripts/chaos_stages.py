"""The stages on small but real jobs, and what a run's folder holds whatever befell them.

For ``scripts.chaos``. A folder is read by the project's own readers, in another process than the
one that wrote it: what was whole before must be whole still, and the end must be an unbroken run's.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agents.agent import Agent
from worldvae.checkpoint import load_model, load_tree, read_json
from worldvae.fit import read_log
from worldvae.latents import LatentStore
from worldvae.rollouts import RolloutStore

EPISODES = 300
CARTPOLE = ("--env", "CartPole-v1", "--policy", "uniform", "--backend", "async", "--num-envs", "2")
AGENT = ("--env-steps", "3000", "--batch-size", "64", "--updates", "2", "--replay-capacity", "10000")
EVOLUTION = ("--population", "6", "--generations", "12", "--select-every", "3", "--select-episodes", "2")
STORED = re.compile(r"episode-\d{6}\.safetensors|(rollouts|latents|sizes|statistics)\.json|\.lock|\..+\.\d+\.tmp")
"""What may lie in a folder of rollouts or latents; the next writer clears away what a killed one left half-written."""
MAKERS = {"rollouts": "collect", "vae": "train_vae", "latents": "encode"}
"""Which stage makes what others need."""


@dataclass(frozen=True)
class Stage:
    """A command on a job of some seconds.

    Attributes:
        name: of its module.
        folder: in the run's, that it writes.
        arguments: of the command.
        needs: folders that it reads.
        episodes: it is given so many of the rollouts; None: all.
        exact: files that equal an unbroken run's to the byte.
        check: (run, unbroken run) -> what else is wrong at the end.
        room: share of what it writes that a small disk has room for. Training needs a little more
            than all, for each checkpoint is there twice for a moment.
    """

    name: str
    folder: str
    arguments: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    episodes: int | None = None
    exact: str | None = None
    check: Callable[[Path, Path], Iterator[str]] = lambda run, unbroken: iter(())
    room: float = 1.0

    def command(self, run: Path) -> list[str]:
        return [sys.executable, "-m", f"scripts.{self.name}", str(run), *self.arguments]

    def prepare(self, run: Path, unbroken: Path) -> None:
        """Makes ``run`` a folder where the stage can begin, from the unbroken runs of those before."""
        run.mkdir()
        for name in self.needs:
            shutil.copytree(unbroken / MAKERS[name] / name, run / name)
        for file in sorted(run.glob("rollouts/episode-*"))[self.episodes :] if self.episodes else ():
            file.unlink()


@dataclass(frozen=True)
class Held:
    """What a run's folder holds.

    Attributes:
        whole: file -> what must not be lost of it: an episode's bytes (their hash), a checkpoint's
            step; None where it is enough that it can be read.
        broken: what cannot be read or does not belong, and why.
    """

    whole: dict[str, str | int | None]
    broken: dict[str, str]

    def progress(self, folder: str) -> int:
        """Steps or episodes that are safe in a stage's folder."""
        kept = [value for name, value in self.whole.items() if name.startswith(f"{folder}/") and value is not None]
        return sum(value if isinstance(value, int) else 1 for value in kept)


def inspect(run: Path) -> Held:
    """Reads all that is there."""
    whole: dict[str, str | int | None] = {}
    broken: dict[str, str] = {}
    for pattern, read in READERS.items():
        for path in sorted(run.glob(pattern)):
            name = str(path.relative_to(run))
            try:
                value = read(path)
                whole[name] = value if isinstance(value, str | int) else None
            except Exception as error:
                broken[name] = f"{type(error).__name__}: {error}"
    for path in (*run.glob("rollouts/*"), *run.glob("latents/*")):
        if not STORED.fullmatch(path.name):
            broken[str(path.relative_to(run))] = "does not belong there"
    return Held(whole, broken)


def losses(before: Held, after: Held) -> list[str]:
    """What was whole and is no more, and what has gone back."""
    found = [f"{name} is damaged: {why}" for name, why in after.broken.items()]
    for name, was in before.whole.items():
        value = after.whole.get(name)
        if name in after.broken:
            continue
        if name not in after.whole:
            found.append(f"{name} is gone")
        elif isinstance(was, int) and (not isinstance(value, int) or value < was):
            found.append(f"{name} went back from step {was} to {value}")
        elif isinstance(was, str) and value != was:
            found.append(f"{name} has other bytes than before")
    return found


def differences(stage: Stage, run: Path, unbroken: Path) -> list[str]:
    """What a run that has ended lacks, or has otherwise than one that nothing ever befell."""
    ours, theirs = inspect(run), inspect(unbroken)
    found = [f"{name} is damaged: {why}" for name, why in ours.broken.items()]
    found += [f"{name} is missing at the end" for name in theirs.whole if name not in {**ours.whole, **ours.broken}]
    found += [f"{name} is too much at the end" for name in ours.whole if name not in theirs.whole]
    found += [f"{path.relative_to(run)} is left over at the end" for path in run.rglob("*.tmp")]
    for name, step in theirs.whole.items():
        if isinstance(step, int) and ours.whole.get(name, step) != step:
            found.append(f"{name} ends at step {ours.whole[name]}, not {step}")
    for path in unbroken.glob(stage.exact) if stage.exact else ():
        file = path.relative_to(unbroken)
        if (run / file).exists() and (run / file).read_bytes() != path.read_bytes():
            found.append(f"{file} differs from an unbroken run's")
    if found:
        return found  # what follows may trust the readers
    if not read_json(run / "stages.json").get(stage.name, {}).get("done"):
        found.append("stages.json does not say done")
    log = Path(stage.folder, "metrics.jsonl")
    if (unbroken / log).exists() and _logged(run / log) != _logged(unbroken / log):
        found.append(f"{log} has entries at other steps than an unbroken run's")
    return found + list(stage.check(run, unbroken))


def _logged(path: Path) -> list[float]:
    return [entry["step"] for entry in read_log(path)]


def _rollouts(manifest: Path) -> None:
    seeds = [episode.seed for episode in RolloutStore(manifest.parent)]
    if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        raise ValueError(f"seeds {twice} are there more than once")


def _latents(manifest: Path) -> None:
    for episode in LatentStore(manifest.parent):
        if not np.isfinite(episode.mean).all() or not np.isfinite(episode.logvar).all():
            raise ValueError("a code is not finite")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _step(path: Path) -> int:
    return load_tree(path)["step"]


def _model(config: Path) -> None:
    load_model(config.parent, read_json(config)["kind"])


READERS: dict[str, Callable[[Path], Any]] = {
    "stages.json": read_json,
    "rollouts/rollouts.json": _rollouts,
    "latents/latents.json": _latents,
    "*/episode-*.safetensors": _sha256,
    "*/training.safetensors": _step,
    "*/metrics.jsonl": read_log,
    "*/config.json": _model,
}


def _collected(run: Path, unbroken: Path) -> Iterator[str]:
    """Who acts in which episode depends on who ended when, but a seed's first frame does not."""
    ours, theirs = ({e.seed: e for e in RolloutStore(folder / "rollouts")} for folder in (run, unbroken))
    if sorted(ours) != list(range(EPISODES)):
        yield f"the seeds are not 0..{EPISODES - 1}, each once"
    for seed, episode in ours.items():
        if len(episode) < 1 or episode.env_steps != len(episode):
            yield f"the episode of seed {seed} has {len(episode)} steps and {episode.env_steps} env steps"
        if seed in theirs and not np.array_equal(episode.frames[0], theirs[seed].frames[0]):
            yield f"the episode of seed {seed} begins otherwise than an unbroken run's"


def _agent(run: Path, unbroken: Path) -> Iterator[str]:
    Agent.load(run / "agent")
    ours, theirs = (
        load_tree(folder / "agent/training.safetensors")["state"]["env_steps"] for folder in (run, unbroken)
    )
    if ours < theirs:
        yield f"the agent has played {ours} env steps, not {theirs}"


def _flags(prefix: str, flags: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(flag.replace("--", f"--{prefix}.", 1) for flag in flags)


STAGES = {
    stage.name: stage
    for stage in (
        Stage("collect", "rollouts", ("--episodes", str(EPISODES), *CARTPOLE), check=_collected, room=0.5),
        Stage(
            "train_vae",
            "vae",
            ("--latent-size", "8", "--batch-size", "16", "--passes", "6", "--held-out", "0.3", "--device", "cpu"),
            needs=("rollouts",),
            episodes=30,
            exact="vae/model.safetensors",
        ),
        Stage("encode", "latents", needs=("rollouts", "vae"), exact="latents/episode-*", room=0.5),
        Stage(
            "train_dynamics",
            "dynamics",
            ("--hidden", "64", "--passes", "40", "--device", "cpu"),
            needs=("rollouts", "vae", "latents"),
            exact="dynamics/model.safetensors",
            room=0.6,  # pictures come after
        ),
        Stage(
            "train_agent",
            "agent",
            ("--backend", "async", "--num-envs", "2", *_flags("learning", (*AGENT, "--device", "cpu"))),
            needs=("rollouts", "vae", "latents"),
            check=_agent,
        ),
        Stage(
            "evolve",
            "evolved",
            ("--backend", "sync", *_flags("evolution", EVOLUTION)),
            needs=("rollouts", "vae"),
            exact="evolved/model.safetensors",
        ),
    )
}
