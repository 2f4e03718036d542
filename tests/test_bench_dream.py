"""The benchmark of dreams runs, and its count of products is that of a step."""

from __future__ import annotations

import json

import torch
from torch.utils.flop_counter import FlopCounterMode

from scripts.bench_dream import DOOM, main, products, stepping


def test_it_writes_a_row_for_each_number_of_dreams(tmp_path, capsys):
    main(dreams=(64, 128), rounds=1, tiny=True, out=tmp_path / "dream.json")
    rows = json.loads((tmp_path / "dream.json").read_text())["steps"]
    assert [row["dreams"] for row in rows] == [64, 128]
    assert all(row["steps_per_second"] > 0 and row["of_its_products"] > 0 for row in rows)
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_the_products_are_those_that_a_step_computes():
    step = stepping(DOOM, 64, torch.device("cpu"))
    with FlopCounterMode(display=False) as counter:
        step()
    biases = 2 * 64 * (4 * 512 + 3 * 64 * 5 + 1)  # which a step takes along as one more row of the weights
    assert sum(p.flops for p in products(DOOM, 64)) == counter.get_total_flops() - biases
