"""How fast are dreams, beside the time of their matrix products alone?

The tensor path: M of the published size for Doom, and a population of linear controllers on z and h, one step
of all dreams at a time. No render. Their limit is every matrix product of a step, with nothing around it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box

from agents.agent import Agent, AgentSpec
from agents.dream import DreamConfig, Starts
from agents.dream_play import DreamPlayer
from agents.observations import Z_ALONE
from agents.play import controller_of
from agents.world_model import WorldModel, WorldModelConfig
from scripts import cli
from scripts.bench_agents import Product, alone, seconds
from worldvae.checkpoint import write_record

DOOM = WorldModelConfig(latent_size=64, action_size=1, hidden=512, termination=True, restart=True)
"""As published."""
ACTIONS = 1


def products(config: WorldModelConfig, dreams: int) -> list[Product]:
    """Those of one step of so many dreams and their controllers."""
    seen = config.latent_size + config.hidden
    return [
        Product(dreams, 1, seen, ACTIONS),
        Product(1, dreams, config.latent_size + config.action_size + config.restart + config.hidden, 4 * config.hidden),
        Product(1, dreams, config.hidden, 3 * config.latent_size * config.mixtures + 1),
    ]


def stepping(config: WorldModelConfig, dreams: int, device: torch.device) -> Any:
    """One step of dreams, each played by its controller, as in a population's evaluation."""
    model = WorldModel(config).eval().to(device)
    starts = Starts(torch.randn(256, config.latent_size, device=device), model.start(256))
    space = Box(-1, 1, (ACTIONS,), np.float32)
    spec = AgentSpec(Z_ALONE, config.latent_size, "", space, 1, 0, "controller", config)
    player = DreamPlayer(agent := Agent(spec, model), model, starts, DreamConfig(temperature=1.15))
    player.dream.begin(player.dream.draw_starts(dreams))
    weights = torch.randn(dreams, len(controller_of(agent).weights), device=device) / 10
    return lambda: player.step(weights)


def measured(
    config: WorldModelConfig, dreams: int, rounds: int, repeats: int, device: torch.device
) -> dict[str, float]:
    """Median over rounds that take turns."""
    step, limit = stepping(config, dreams, device), alone(products(config, dreams), device)
    times = np.array([[seconds(step, repeats, device), seconds(limit, repeats, device)] for _ in range(rounds)])
    whole, bare = np.median(times, axis=0)
    return {
        "dreams": dreams,
        "steps_per_second": dreams / whole,
        "of_its_products": float(np.median(times[:, 1] / times[:, 0])),
        "product_gflops": sum(p.flops for p in products(config, dreams)) / bare / 1e9,
    }


def main(
    dreams: tuple[int, ...] = (1024,),
    device: str = "cpu",
    rounds: int = 5,
    tiny: bool = False,
    out: Path = Path("benchmarks/dream.json"),
) -> None:
    """Time steps of so many dreams at once."""
    config = WorldModelConfig(4, 1, hidden=8, termination=True, restart=True) if tiny else DOOM
    rows = [measured(config, count, rounds, 2 if tiny else 40, torch.device(device)) for count in dreams]
    print(cli.table([tuple(rows[0]), *(tuple(row.values()) for row in rows)]))
    write_record(out, {**cli.provenance(), "device": device, "rounds": rounds, "steps": rows})


if __name__ == "__main__":
    cli.run(main)
