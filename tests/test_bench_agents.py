"""The benchmark of the agent's and M's learning runs, and its counts are those of the layers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from agents.dynamics import DynamicsConfig
from agents.learning import LearningConfig
from scripts.bench_agents import ROOT, agent, agent_products, dynamics_products, main

CPU = torch.device("cpu")


def test_it_compares_a_checkout_with_another_and_with_the_products_alone(tmp_path, capsys):
    main(before=ROOT, device="cpu", rounds=1, tiny=True, out=tmp_path / "agents.json")
    record = json.loads((tmp_path / "agents.json").read_text())
    assert record["steps"].keys() == {"agent", "M, 16 x 128 steps", "M, 16 random episodes"}
    for row in record["steps"].values():
        assert np.isfinite(list(row.values())).all()
        assert min(row.values()) > 0
        assert row["gain"] == pytest.approx(row["per_second"] / row["before_per_second"])
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_the_agents_products_are_those_that_an_update_computes():
    update = agent(LearningConfig(batch_size=32, replay_capacity=10_000), CPU)
    with FlopCounterMode(display=False) as counter:
        update()
    assert sum(p.flops for p in agent_products(32, 256)) == counter.get_total_flops()


def test_padding_costs_the_heads_nothing():
    config = DynamicsConfig()
    ragged, full = (sum(p.flops for p in dynamics_products(n, config)) for n in ([8, 2], [8, 8]))
    assert full - ragged == 3 * 2 * 6 * 256 * (480 + 2)
