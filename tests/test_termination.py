"""Calibration against scipy and against processes whose probabilities are known; reliability against plain counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import mannwhitneyu

from agents.termination import calibrate, imbalance, reliability


def drawn(steps: int, mean: float = -4.0, sd: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """True logits, and ends drawn from them."""
    random = np.random.default_rng(0)
    logits = random.normal(mean, sd, steps)
    return torch.tensor(logits, dtype=torch.float32), torch.tensor(random.random(steps) < expit(logits)).float()


def test_what_balance_added_is_taken_away():
    logits, ends = drawn(20_000)
    weight = imbalance(int(ends.sum()), len(ends))
    shift, gain = calibrate(logits + np.log(weight), ends, weight)
    assert shift == pytest.approx(-np.log(weight), abs=0.3)
    assert gain == pytest.approx(1, abs=0.1)
    assert reliability(shift + gain * (logits + np.log(weight)), ends).ratio == pytest.approx(1, abs=0.01)


def test_an_overconfident_model_is_tempered_as_by_scipys_optimum():
    logits, ends = drawn(2000)
    told, weight = 3 * logits + 5, 20.0
    expected = np.array([-np.log(weight), 1.0])

    def loss(scale: np.ndarray) -> float:
        scaled = scale[0] + scale[1] * told.numpy().astype(float)
        nll = np.logaddexp(0, scaled) - ends.numpy() * scaled
        return float(nll.sum() + 0.5 * np.square(scale - expected).sum())

    found = calibrate(told, ends, weight)
    np.testing.assert_allclose(found, minimize(loss, expected, tol=1e-10).x, rtol=1e-3)
    assert found[1] == pytest.approx(1 / 3, abs=0.06)


def test_without_any_end_only_the_weights_own_shift_is_left_or_less():
    shift, gain = calibrate(torch.randn(500, generator=torch.Generator().manual_seed(0)), torch.zeros(500), 1.0)
    assert -6 < shift < 0
    assert 0 < gain < 1.5


@pytest.mark.parametrize(("ends", "steps", "expected"), [(1, 101, 100), (50, 100, 1), (0, 100, 1), (100, 100, 1)])
def test_imbalance_is_how_many_steps_go_on_for_each_end(ends, steps, expected):
    assert imbalance(ends, steps) == expected


def test_a_reliability_curve_counts_what_it_says():
    logits, ends = drawn(5000)
    told = reliability(logits, ends, bins=5)
    assert told.steps.sum() == 5000
    assert (told.steps * told.foretold).sum() == pytest.approx(logits.double().sigmoid().sum().item())
    assert (told.steps * told.observed).sum() == pytest.approx(ends.sum().item())
    assert (np.diff(told.foretold) > 0).all()
    expected = told.steps * told.foretold
    assert expected.max() < 2 * expected.min(), "each bin expects about as many ends"
    for scores in (logits, logits.round()):  # the second has ties
        counted = mannwhitneyu(scores[ends > 0], scores[ends == 0]).statistic / (ends.sum() * (1 - ends).sum())
        assert reliability(scores, ends).auroc == pytest.approx(counted.item(), abs=1e-6)
    assert reliability(logits + 1, ends).ratio > 1.5
    assert reliability(torch.full((9,), -3.0), torch.zeros(9)).foretold == pytest.approx(expit(-3.0))
