"""Can this run's dream be trusted? Numbers, pictures and verdicts in words; what agents earn in it and in reality."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from agents.agent import Agent, LatentAgent, PixelAgent
from agents.dream import DreamConfig
from agents.dynamics import DynamicsConfig, load_trajectories
from agents.evaluation import SELECTION_SEEDS, MakePolicy, Scores, spread
from agents.trust import Gap, as_json, dream_returns, exploitation, gap, numbers, verdicts
from agents.world_model import WorldModel
from scripts import cli
from scripts.dreaming import awake, dreaming
from scripts.run_folder import RunFolder
from scripts.train_dynamics import rows as forecast_rows
from worldvae.checkpoint import read_json, write_atomically, write_record
from worldvae.diagnose import finite
from worldvae.fit import read_log
from worldvae.latents import LatentStore
from worldvae.pictures import figure, png
from worldvae.policies import UniformPolicy
from worldvae.rollouts import RolloutStore, split_episodes
from worldvae.vae import FrameVAE

HEALTHY = "healthy: the dream is closer to reality than simple forecasts, ends as often, and pays no more"
SEEDS = SELECTION_SEEDS + 900_000
"""No training selects on these."""


@dataclass(frozen=True)
class Player:
    """Somebody who plays in dreams, on latents, and in reality, on pixels."""

    name: str
    asleep: MakePolicy
    awake: MakePolicy


@dataclass(frozen=True)
class Played:
    """Returns float64 [episodes] in dreams, by temperature, and in reality."""

    name: str
    dreams: dict[float, NDArray[np.float64]]
    reality: Scores

    @property
    def ratio(self) -> float:
        """Mean return in the dream of the temperature nearest to 1 over that in reality; nan where that is not > 0."""
        usual = self.dreams[min(self.dreams, key=lambda temperature: abs(temperature - 1))]
        return float(usual.mean()) / self.reality.mean if self.reality.mean > 0 else math.nan

    def as_json(self) -> dict[str, Any]:
        dreams = [{"temperature": t, "mean": r.mean(), "sd": r.std(ddof=1)} for t, r in self.dreams.items()]
        return {"name": self.name, "dreams": dreams, "reality": self.reality.as_json()}


def an_agent(folder: Path, vae: FrameVAE) -> Player:
    agent = Agent.load(folder)
    return Player(
        "the agent",
        lambda env: LatentAgent(agent, env.num_envs),
        lambda env: PixelAgent(agent, vae, env.num_envs),
    )


def random_play(held: int) -> Player:
    def make(env: VectorEnv) -> UniformPolicy:
        return UniformPolicy(env.single_action_space, env.num_envs, seed=0, held=held)

    return Player(f"random actions, {held} steps each", make, make)


def measured(run: RunFolder, store: RolloutStore, vae: FrameVAE) -> Gap:
    """The run's world model on the episodes that its training held out."""
    latents, trained = LatentStore(run.latents), read_json(run.dynamics / "config.json")["training"]
    latents.check_codec(vae)
    config = DynamicsConfig(held_out=trained["held_out"], seed=trained["seed"], device="cpu")
    train, held_out = load_trajectories(latents, store.action_space, config)
    _, chosen = split_episodes(len(latents), config.held_out, config.seed)
    frames = np.concatenate([store[e].frames for e in chosen])
    return gap(WorldModel.load(run.dynamics, vae.sha256), train, held_out, vae, frames)


def page(told: Gap) -> bytes:
    """Open-loop error and PSNR by steps ahead, and the reliability curve of ends, as PNG."""
    drawn = figure(12, 3.6)
    codes, frames, ends = drawn.subplots(1, 3)
    for name, scores in told.forecasts.items():
        codes.plot(list(scores.open_loop), list(scores.open_loop.values()), marker="o", label=name)
    for name, by_step in told.decoded.items():
        frames.plot(list(by_step), list(by_step.values()), marker="o", label=name)
    codes.set(xlabel="steps ahead", ylabel="error of codes (1: knowing nothing)", xscale="log", ylim=(0, 2))
    frames.set(xlabel="steps ahead", ylabel="PSNR of frames, dB", xscale="log")
    if told.ends is not None:
        ends.loglog(told.ends.foretold, np.maximum(told.ends.observed, 1e-5), marker="o", label="held-out steps")
        ends.loglog(told.ends.foretold, told.ends.foretold, color="grey", linestyle=":", label="calibrated")
    ends.set(xlabel="foretold probability of an end", ylabel="observed share")
    for axes in (codes, frames, ends):
        axes.grid(alpha=0.3)
        axes.legend()
    return png(drawn)


def show(told: Gap, known: dict[str, float]) -> str:
    """Tables: forecasts, ends by a dream's age, ends foreseen, and the numbers that verdicts are given on."""
    steps = list(next(iter(told.decoded.values()), {}))
    rows: list[tuple[Any, ...]] = [("decoded frames, PSNR dB", *(f"+{k}" for k in steps))]
    rows += [(name, *by_step.values()) for name, by_step in told.decoded.items()]
    ages = [("steps dreamt", *told.mortality), ("ends, times reality's", *told.mortality.values())]
    leads = [("steps ahead", *told.foresight), ("ends foreseen", *told.foresight.values())]
    judged = [("number", "value"), *((k, "unknown" if math.isnan(v) else v) for k, v in known.items())]
    return "\n\n".join(cli.table(part) for part in (forecast_rows(told.forecasts), rows, ages, leads, judged))


def returns(played: list[Played]) -> str:
    """A table like the paper's: mean ± sd of each in dreams, by temperature, and in reality."""
    temperatures = list(played[0].dreams)
    rows: list[tuple[str, ...]] = [("return", *(f"dream at {t:g}" for t in temperatures), "reality")]
    for one in played:
        dreams = (spread(r.mean(), r.std(ddof=1)) for r in one.dreams.values())
        rows.append((one.name, *dreams, spread(one.reality.mean, one.reality.sd)))
    return cli.table(rows)


def farthest(played: list[Played]) -> float:
    """The ratio farthest from 1 among players, as a factor; nan where none is known."""
    known = [one.ratio for one in played if one.ratio > 0]
    return max(known, key=lambda ratio: abs(math.log(ratio)), default=math.nan)


def main(
    run: cli.Run,
    agent: Path | None = None,
    held: tuple[int, ...] = (),
    temperatures: tuple[float, ...] = (0.5, 1.0, 1.15, 1.3),
    episodes: int = 50,
    most_steps: int = 2100,
    workers: int = 2,
) -> None:
    """Measure RUN's world model on held-out episodes, and an agent in the dream and in reality; say what is wrong.

    Writes dream_gap.json and dream_gap.png into RUN/dynamics.

    Args:
        agent: a trained agent's folder (RUN/agent, RUN/evolved) to play both; episodes in reality are on selection
            seeds and cost env steps, which are told.
        held: random play of both, too, once for each of these numbers: the steps for which each action is held.
        temperatures: of the dreams that they play; verdicts are on the one nearest to 1.
        episodes: of each in each dream, and in reality.
        most_steps: env steps of a dream.
        workers: environments stepped in parallel processes.
    """
    folder = RunFolder(run)
    store, vae = RolloutStore(folder.rollouts), FrameVAE.load(folder.vae)
    told, (model, starts) = measured(folder, store, vae), dreaming(folder, store, vae, 0, 0)

    seeds = range(SEEDS, SEEDS + episodes)
    repeat = store.manifest["action_repeat"]
    worth = repeat if model.reward is None else 1  # such a dream pays 1 a step, which lasts so many env steps

    dreams_of = {t: DreamConfig(t, max(1, most_steps // repeat)) for t in temperatures}

    def play(player: Player) -> Played:
        dreams = {
            t: worth * dream_returns(player.asleep, model, starts, store.action_space, config, episodes)
            for t, config in dreams_of.items()
        }
        return Played(player.name, dreams, awake(store, player.awake, seeds, workers, "reality"))

    agents = [play(an_agent(agent, vae))] if agent is not None else []
    randoms = [play(random_play(steps)) for steps in held]
    known = numbers(told, farthest(agents), farthest(randoms))
    print(show(told, known))
    if played := agents + randoms:
        print(f"\n{returns(played)}")
        spent = sum(sum(one.reality.lengths) for one in played)
        print(f"{episodes} episodes each; reality took {spent:,} env steps of selection")
    if agent is not None:
        print(exploitation(read_log(agent / "metrics.jsonl")))
    given = verdicts(known)
    print("\n".join(f"\n{v.name.upper()}: {v.says}.\n  {v.remedy}." for v in given) or f"\n{HEALTHY}")
    write_record(
        folder.dynamics / "dream_gap.json",
        {
            "verdicts": [asdict(v) for v in given],
            "numbers": {name: finite(value) for name, value in known.items()},
            **as_json(told),
            "played": [one.as_json() for one in played],
            **cli.provenance(),
        },
    )
    write_atomically(folder.dynamics / "dream_gap.png", page(told))
    print(f"\n{folder.dynamics / 'dream_gap.json'}\n{folder.dynamics / 'dream_gap.png'}")


if __name__ == "__main__":
    cli.run(main)
