"""How fast do the agent and M learn, beside the time of their matrix products alone?

No environment and no rollouts: random data of the right shapes. An update of the agent is
``Replay.sample`` and ``SAC.step``, a step of M is ``DynamicsLearner.step``. Their limit is every
matrix product of the forward and backward pass, at its own shape and in its order of time, with
nothing around it. ``--before`` names another checkout of this repository (``git worktree add``): the
two take turns, each in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box

from agents.dynamics import DynamicsConfig, DynamicsLearner, world_model_config
from agents.learning import LearningConfig
from agents.replay import Replay
from agents.sac import SAC, SACConfig
from agents.sequences import Trajectories
from agents.world_model import WorldModel
from scripts import cli
from worldvae.batches import padded_rows
from worldvae.checkpoint import write_record
from worldvae.latents import LatentEpisode

ROOT = Path(__file__).parent.parent
LATENT, ACTIONS, STACK = 32, 3, 4
LENGTHS = {
    "M, 16 x 128 steps": [128] * 16,
    "M, 16 random episodes": [31, 32, 33, 34, 35, 36, 37, 39, 39, 41, 45, 49, 53, 60, 72, 88],  # CarRacing's are so
}


@dataclass(frozen=True)
class Product:
    """E matrix products [m, k] @ [k, n] at once, so many times one after the other."""

    members: int
    m: int
    k: int
    n: int
    times: int = 1

    @property
    def flops(self) -> int:
        return 2 * self.members * self.m * self.k * self.n * self.times

    def operands(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        shapes = ((self.members, self.m, self.k), (self.members, self.k, self.n))
        return torch.randn(shapes[0], device=device), torch.randn(shapes[1], device=device)

    def to_inputs(self) -> Product:
        """The gradient's product for the inputs [m, k]."""
        return Product(self.members, self.m, self.n, self.k, self.times)

    def to_weights(self) -> Product:
        """The gradient's product for the weights [k, n], for all times at once."""
        return Product(self.members, self.k, self.m * self.times, self.n)


def agent_products(batch: int, hidden: int) -> list[Product]:
    """Those of one update: two passes of the actor, three of both critics, gradients as far as needed."""
    observation = STACK * LATENT + ACTIONS

    def net(members: int, n_in: int, n_out: int) -> list[Product]:
        sizes = ((n_in, hidden), (hidden, hidden), (hidden, n_out))
        return [Product(members, batch, k, n) for k, n in sizes]

    actor, critics = net(1, observation, 2 * ACTIONS), net(2, observation + ACTIONS, 1)
    weights = [p.to_weights() for p in actor + critics]
    inputs = [p.to_inputs() for p in actor[1:] + critics[1:] + critics]  # the last: through them to the actions
    return 2 * actor + 3 * critics + weights + inputs


def dynamics_products(lengths: list[int], config: DynamicsConfig) -> list[Product]:
    """Those of one step of M: the LSTM step by step, its heads on the real steps."""
    batch, steps, real, gates = len(lengths), max(lengths), sum(lengths), 4 * config.hidden
    read = Product(1, batch * steps, LATENT + ACTIONS, gates)
    remember = Product(1, batch, config.hidden, gates, times=steps)
    heads = [Product(1, real, config.hidden, n) for n in (3 * LATENT * config.mixtures, 1, 1)]
    layers = [remember, *heads]
    return [read, read.to_weights(), *layers, *(p.to_inputs() for p in layers), *(p.to_weights() for p in layers)]


def alone(products: list[Product], device: torch.device) -> Callable[[], Any]:
    """Nothing but the products."""
    operands = [(p.times, *p.operands(device)) for p in products]

    def multiply() -> None:
        for times, a, b in operands:
            for _ in range(times):
                torch.bmm(a, b)

    return multiply


def agent(config: LearningConfig, device: torch.device) -> Callable[[], Any]:
    """One update from a replay of random transitions."""
    random, size, rows = np.random.default_rng(0), STACK * LATENT + ACTIONS, 10_000
    sac = SAC(size, ACTIONS, False, config.sac, 0, device)
    replay = Replay(config.replay_capacity, size, ACTIONS, device)
    seen = random.standard_normal((2, rows, size), np.float32)
    actions = random.uniform(-1, 1, (rows, ACTIONS)).astype(np.float32)
    replay.add(seen[0], actions, random.standard_normal(rows), random.random(rows) < 0.01, seen[1])
    return lambda: sac.step(replay.sample(config.batch_size, sac.generator))


def dynamics(lengths: list[int], config: DynamicsConfig, device: torch.device) -> Callable[[], Any]:
    """One step of M on a batch of random episodes of these lengths."""
    random, space = np.random.default_rng(0), Box(-1, 1, (ACTIONS,), np.float32)

    def episode(steps: int) -> LatentEpisode:
        mean, logvar = random.standard_normal((2, steps + 1, LATENT), np.float32)
        actions = random.uniform(-1, 1, (steps, ACTIONS)).astype(np.float32)
        rewards = random.standard_normal(steps).astype(np.float32)
        return LatentEpisode(mean, logvar - 3, actions, rewards, np.ones(steps + 1, bool), True, False)

    train = Trajectories([episode(n) for n in lengths], space, device)
    model = WorldModel(world_model_config(LATENT, space, config))
    learner = DynamicsLearner(config, model, train, steps=10**6)
    batch = padded_rows(train.first_rows, train.lengths)
    return lambda: learner.step(batch)


def seconds(work: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """Median time of one call."""
    times = []
    for _ in range(3 + repeats):
        _synchronise(device)
        begin = time.perf_counter()
        work()
        _synchronise(device)
        times.append(time.perf_counter() - begin)
    return float(np.median(times[3:]))  # the first ones allocate


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def timings(device_name: str, tiny: bool) -> dict[str, list[float]]:
    """Name -> seconds of one step, of its products alone, and GFLOP in them."""
    device = torch.device(device_name)
    hidden, batch, repeats = (16, 8, 2) if tiny else (256, 256, 40)
    sac, m = LearningConfig(batch_size=batch, sac=SACConfig(hidden)), DynamicsConfig(hidden)
    works = {"agent": (agent(sac, device), agent_products(batch, hidden))}
    for name, lengths in LENGTHS.items():
        works[name] = dynamics(lengths, m, device), dynamics_products(lengths, m)
    return {
        name: [
            seconds(step, repeats, device),
            seconds(alone(products, device), repeats, device),
            sum(p.flops for p in products) / 1e9,
        ]
        for name, (step, products) in works.items()
    }


def timed_in(checkout: Path, device: str, tiny: bool) -> dict[str, list[float]]:
    """``timings`` of a checkout's code, in a process of its own."""
    code = f"import json, bench_agents; print(json.dumps(bench_agents.timings({device!r}, {tiny!r})))"
    path = f"import sys; sys.path[:0] = [{str(checkout)!r}, {str(ROOT / 'scripts')!r}]; "
    done = subprocess.run([sys.executable, "-c", path + code], cwd=checkout, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the code in {checkout} cannot be timed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(
    before: Path | None = None,
    device: str = "cpu",
    rounds: int = 5,
    tiny: bool = False,
    out: Path = Path("benchmarks/agents.json"),
) -> None:
    """Time the learners of this checkout, and of BEFORE in turn, in so many rounds of medians."""
    checkouts = {"now": ROOT} | ({} if before is None else {"before": before.resolve()})
    found: dict[str, list[dict[str, list[float]]]] = {key: [] for key in checkouts}
    for i in range(rounds):
        for key in list(checkouts)[:: 1 if i % 2 else -1]:
            found[key].append(timed_in(checkouts[key], device, tiny))
    measured: dict[str, dict[str, float]] = {}
    for name in found["now"][0]:
        step, products, gflop = np.median([round_[name] for round_ in found["now"]], axis=0)
        row = {"per_second": 1 / step, "times_its_products": step / products, "product_gflops": gflop / products}
        if before is not None:
            earlier = [round_[name][0] for round_ in found["before"]]
            row |= {"before_per_second": 1 / np.median(earlier), "gain": np.median(earlier) / step}
        measured[name] = {key: float(value) for key, value in row.items()}
    shown = list(measured["agent"])
    print(cli.table([("a second", *shown), *((name, *(row[k] for k in shown)) for name, row in measured.items())]))
    compared = {} if before is None else {"before": _commit(before)}
    write_record(out, {**cli.provenance(), **compared, "device": device, "rounds": rounds, "steps": measured})


def _commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


if __name__ == "__main__":
    cli.run(main)
