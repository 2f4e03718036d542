"""Can this run's dream be trusted? Numbers, pictures and verdicts in words; what agents earn in it and in reality."""

from __future__ import annotations

import io
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from agents.agent import Agent
from agents.dream import DreamConfig
from agents.dynamics import DynamicsConfig, load_trajectories
from agents.evaluation import SELECTION_SEEDS
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
from worldvae.rollouts import RolloutStore, split_episodes
from worldvae.vae import FrameVAE

HEALTHY = "healthy: the dream is closer to reality than simple forecasts, ends as often, and pays no more"


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
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the picture needs matplotlib: pip install 'worldvae[report]'") from error
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    codes, frames, ends = figure.subplots(1, 3)
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
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    return buffer.getvalue()


def show(told: Gap, known: dict[str, float]) -> str:
    """Tables: forecasts by steps ahead, and the numbers that verdicts are given on."""
    steps = list(next(iter(told.decoded.values()), {}))
    rows: list[tuple[Any, ...]] = [("decoded frames, PSNR dB", *(f"+{k}" for k in steps))]
    rows += [(name, *by_step.values()) for name, by_step in told.decoded.items()]
    judged = [("number", "value"), *((k, "unknown" if math.isnan(v) else v) for k, v in known.items())]
    return "\n\n".join(cli.table(part) for part in (forecast_rows(told.forecasts), rows, judged))


def main(
    run: cli.Run,
    agent: Path | None = None,
    temperatures: tuple[float, ...] = (0.5, 1.0, 1.15, 1.3),
    episodes: int = 50,
    most_steps: int = 2100,
    workers: int = 2,
) -> None:
    """Measure RUN's world model on held-out episodes, and an agent in the dream and in reality; say what is wrong.

    Writes dream_gap.json and dream_gap.png into RUN/dynamics.

    Args:
        agent: a trained agent's folder (RUN/agent, RUN/evolved) to play both; its episodes in reality are on
            selection seeds and cost env steps, which are told.
        temperatures: of the dreams that the agent plays; the verdict is on the one nearest to 1.
        episodes: in each dream, and in reality.
        most_steps: of a dream.
        workers: environments stepped in parallel processes.
    """
    folder = RunFolder(run)
    store, vae = RolloutStore(folder.rollouts), FrameVAE.load(folder.vae)
    told, rows, reality = measured(folder, store, vae), [], None
    if agent is not None:
        player = Agent.load(agent)
        model, starts = dreaming(folder, store, vae, 0, 0)
        for temperature in temperatures:
            returns = dream_returns(player, model, starts, DreamConfig(temperature, most_steps), episodes)
            rows.append({"temperature": temperature, "mean": returns.mean(), "sd": returns.std(ddof=1)})
        seeds = range(SELECTION_SEEDS + 900_000, SELECTION_SEEDS + 900_000 + episodes)  # no training selects on these
        reality = awake(store, vae, player, seeds, workers, "reality")
    usual = min(rows, key=lambda row: abs(row["temperature"] - 1), default={"mean": math.nan})
    known = numbers(told, usual["mean"], reality.mean if reality else math.nan)
    print(show(told, known))
    if agent is not None and reality is not None:
        table = [(f"dream at {r['temperature']:g}", f"{r['mean']:.0f} ± {r['sd']:.0f}") for r in rows]
        table.append(("reality", f"{reality.mean:.0f} ± {reality.sd:.0f}"))
        print(f"\n{cli.table([('the agent', 'return'), *table])}")
        print(f"{episodes} episodes each; reality took {sum(reality.lengths):,} env steps of selection")
        print(exploitation(read_log(agent / "metrics.jsonl")))
    given = verdicts(known)
    print("\n".join(f"\n{v.name.upper()}: {v.says}.\n  {v.remedy}." for v in given) or f"\n{HEALTHY}")
    write_record(
        folder.dynamics / "dream_gap.json",
        {
            "verdicts": [asdict(v) for v in given],
            "numbers": {name: finite(value) for name, value in known.items()},
            **as_json(told),
            "dream_returns": rows,
            "reality": reality and reality.as_json(),
            **cli.provenance(),
        },
    )
    write_atomically(folder.dynamics / "dream_gap.png", page(told))
    print(f"\n{folder.dynamics / 'dream_gap.json'}\n{folder.dynamics / 'dream_gap.png'}")


if __name__ == "__main__":
    cli.run(main)
