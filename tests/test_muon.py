"""The optimiser of inner weights, against a singular value decomposition and PyTorch's own for matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldvae.muon import Muon, matrices, orthogonal
from worldvae.vae import FrameVAE, FrameVAEConfig

sides = st.integers(1, 40)


@settings(deadline=None, max_examples=50)
@given(sides, sides, st.integers(0, 1000), st.sampled_from([1e-6, 1.0, 1e6]))
def test_singular_vectors_stay_and_values_become_about_one(rows, columns, seed, scale):
    matrix = np.random.default_rng(seed).normal(size=(rows, columns))
    u, values, vh = np.linalg.svd(matrix, full_matrices=False)
    others = [torch.ones(columns, rows, dtype=torch.float64), torch.ones(rows, rows + 1, dtype=torch.float64)]
    made = orthogonal([others[0], torch.from_numpy(matrix * scale), others[1]])[1].numpy()
    turned = u.T @ made @ vh.T  # diagonal where the singular vectors are the same
    kept = values / np.linalg.norm(values) > 0.01
    assert ((np.diag(turned) > 0.65) & (np.diag(turned) < 1.25))[kept].all()
    assert abs(turned - np.diag(np.diag(turned))).max() < 1e-3


def test_nothing_moves_without_a_gradient():
    weight, idle = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    weight.grad = torch.zeros(3, 4)
    Muon([weight, idle], 0.1).step()
    assert torch.equal(weight, torch.ones(3, 4))
    assert torch.equal(idle, torch.ones(3, 4))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch before 2.9")
def test_steps_are_pytorchs():
    own, theirs = (torch.nn.Parameter(torch.ones(16, 48)) for _ in range(2))
    mine = Muon([own], 0.01)
    reference = torch.optim.Muon([theirs], 0.01, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    random = torch.Generator().manual_seed(0)
    for _ in range(5):
        own.grad = torch.randn(16, 48, generator=random)
        theirs.grad = own.grad.clone()
        mine.step()
        reference.step()
    moved = (theirs - 1).norm()
    assert (own - theirs).norm() < 0.02 * moved  # they multiply in bfloat16


def test_convolutions_move_alike_in_any_memory_layout_and_by_a_rate_on_the_device():
    kernel, gradient = torch.randn(2, 8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    plain = torch.nn.Parameter(kernel.clone())
    last = torch.nn.Parameter(kernel.clone(memory_format=torch.channels_last))
    plain.grad, last.grad = gradient.clone(), gradient.clone(memory_format=torch.channels_last)
    Muon([plain], 0.1).step()
    Muon([last], torch.tensor(0.1)).step()
    torch.testing.assert_close(plain, last)


def test_two_schedules_from_one_rate_in_memory_go_the_same_way():
    """As on a GPU, where a captured step must find the rate in memory."""
    weights, rate = [torch.nn.Parameter(torch.ones(3, 3)) for _ in range(2)], torch.tensor(0.5)
    both = [torch.optim.Adam(weights[:1], rate, capturable=True, foreach=False), Muon(weights[1:], rate)]
    schedules = [torch.optim.lr_scheduler.LambdaLR(each, lambda step: (step + 1) / 10) for each in both]
    for step in range(1, 4):
        for each, schedule in zip(both, schedules, strict=True):
            each.step()
            schedule.step()
        rates = [each.param_groups[0]["lr"].item() for each in both]
        assert rates == pytest.approx([0.5 * (step + 1) / 10] * 2)


def test_faint_directions_are_learned_where_adam_still_waits():
    """A linear map of inputs whose variances span three orders of magnitude, in turned axes."""
    random = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(12, 12, generator=random)).Q
    inputs = torch.randn(512, 12, generator=random) * torch.logspace(0, -1.5, 12) @ turn
    goal = torch.randn(12, 12, generator=random)
    ends = []
    for optimiser in (Muon, torch.optim.Adam):
        weight = torch.nn.Parameter(torch.zeros(12, 12))
        steps = optimiser([weight], 0.05)
        for _ in range(400):
            steps.zero_grad()
            (inputs @ (weight - goal)).square().sum(1).mean().backward()
            steps.step()
        ends.append((turn @ (weight - goal)).square().mean(1)[-6:].mean().item())
    assert ends[0] < 0.1 * ends[1], ends


def test_all_matrices_but_the_broadest():
    compact = FrameVAE(FrameVAEConfig())
    biases = sum(weight.ndim == 1 for weight in compact.parameters())
    assert len(matrices(compact)) == len(list(compact.parameters())) - biases
    paper = FrameVAE(FrameVAEConfig(architecture="paper"))
    assert not any(weight is paper.decoder.net.deconvs[0].weight for weight in matrices(paper))
    assert any(weight is paper.decoder.net.deconvs[2].weight for weight in matrices(paper))
    assert max(min(weight.flatten(1).shape) for weight in matrices(paper)) <= 256
