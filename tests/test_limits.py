"""What benchmarks count and time: arithmetic beside torch's own counter, rooflines by hand."""

from __future__ import annotations

import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from scripts.limits import (
    CPU,
    Limits,
    encoding_roofline,
    flops_per_frame,
    layer_costs,
    limits,
    seconds_of,
    training_roofline,
)
from worldvae import FrameVAE, FrameVAEConfig


@pytest.mark.parametrize("architecture", ["paper", "compact"])
def test_the_arithmetic_of_a_frame_is_what_torch_counts(architecture):
    vae = FrameVAE(FrameVAEConfig(architecture=architecture))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        vae(torch.zeros(1, 3, 64, 64), torch.zeros(1, 32))
    assert flops_per_frame(vae) == counter.get_total_flops()
    assert flops_per_frame(vae, "encoder") + flops_per_frame(vae, "decoder") == flops_per_frame(vae)


def test_a_roofline_is_the_slower_of_arithmetic_and_memory():
    vae = FrameVAE()
    costs = layer_costs(vae)
    adam = 7 * 4 * sum(p.numel() for p in vae.parameters())
    arithmetic = training_roofline(vae, 8, Limits(1e9, 1e30, torch.float32))
    assert arithmetic == pytest.approx(8 * 3 * flops_per_frame(vae) / 1e9)
    memory = training_roofline(vae, 8, Limits(1e30, 1e9, torch.bfloat16))
    assert memory == pytest.approx((3 * 2 * sum(8 * c.values + c.weights for c in costs) + adam) / 1e9)
    assert encoding_roofline(vae, 8, Limits(1e9, 1e30, torch.float32)) == pytest.approx(
        8 * flops_per_frame(vae, "encoder") / 1e9
    )


def test_timing_leaves_the_first_call_out():
    calls = iter([0.2, 0.0, 0.0])
    times = seconds_of(lambda: time.sleep(next(calls)), rounds=2)
    assert len(times) == 2
    assert max(times) < 0.1


def test_the_limits_of_this_machine_are_positive_and_finite():
    told = limits(CPU, torch.float32, sizes=(64,), rounds=1)
    assert 0 < told.flops < float("inf")
    assert 0 < told.copy < float("inf")
