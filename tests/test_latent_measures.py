"""Numbers about codes, against closed forms where codes are Gaussian."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from worldvae.measures.latents import change, kl_split, prior_gap, saturated_units
from worldvae.vae import DiagonalGaussian

COVARIANCE = torch.tensor([[0.8, 0.5, 0.0], [0.5, 0.9, 0.0], [0.0, 0.0, 0.1]], dtype=torch.float64)
"""Of the codes' means: two latents that go together, and one that hardly varies."""
NOISE = torch.tensor([0.4, 0.3, 0.6], dtype=torch.float64)
"""Variances of each posterior."""
SHIFT = torch.tensor([0.5, 0.0, -0.2], dtype=torch.float64)


def posteriors(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Means [N, 3] whose sample mean and covariance are exactly the above, and log-variances."""
    raw = torch.randn(count, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    raw = raw - raw.mean(0)
    white = raw @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(raw.T, correction=0))).T
    means = white @ torch.linalg.cholesky(COVARIANCE).T + SHIFT
    return means.float(), NOISE.log().float().expand(count, 3)


def test_the_kls_split_is_the_closed_form_where_codes_are_gaussian():
    means, logvars = posteriors(4000)
    told = kl_split(means, logvars)
    whole = COVARIANCE + torch.diag(NOISE)
    variances = whole.diag()
    assert told.mutual_information == pytest.approx(0.5 * (whole.logdet() - NOISE.log().sum()).item(), abs=0.03)
    assert told.total_correlation == pytest.approx(0.5 * (variances.log().sum() - whole.logdet()).item(), abs=0.02)
    dimension_wise = 0.5 * (variances + SHIFT**2 - 1 - variances.log()).sum().item()
    assert told.dimension_wise == pytest.approx(dimension_wise, abs=0.02)
    assert told.limit == pytest.approx(math.log(4000))


def test_the_splits_parts_add_up_to_the_kl():
    means, logvars = posteriors(2000)
    told = kl_split(means, logvars)
    parts = told.mutual_information + told.total_correlation + told.dimension_wise
    assert parts == pytest.approx(DiagonalGaussian(means, logvars).kl().sum(1).mean().item(), abs=0.1)  # one draw each


def test_codes_that_tell_every_frame_apart_have_the_mutual_information_of_its_number():
    means, logvars = posteriors(500)
    assert kl_split(means, logvars - 30).mutual_information == pytest.approx(math.log(500), abs=1e-4)


def test_a_code_that_says_nothing_splits_into_nothing():
    told = kl_split(torch.zeros(300, 4), torch.zeros(300, 4))
    assert [told.mutual_information, told.total_correlation, told.dimension_wise] == pytest.approx([0, 0, 0], abs=1e-5)


def test_a_chunked_split_is_the_whole_one(monkeypatch):
    means, logvars = posteriors(300)
    whole = kl_split(means, logvars)
    monkeypatch.setattr("worldvae.measures.latents.ELEMENTS", 300 * 3 * 7)
    assert vars(kl_split(means, logvars)) == pytest.approx(vars(whole), abs=1e-5)


def test_the_prior_gap_is_the_kl_of_the_codes_gaussian():
    means, logvars = posteriors(1000)
    codes = torch.distributions.MultivariateNormal(SHIFT, COVARIANCE + torch.diag(NOISE))
    prior = torch.distributions.MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double())
    expected = torch.distributions.kl_divergence(codes, prior).item()
    assert prior_gap(means, logvars) == pytest.approx(expected, rel=1e-5)


def test_the_prior_gap_is_at_most_what_the_split_says_and_nothing_where_codes_fill_the_prior():
    means, logvars = posteriors(3000)
    split = kl_split(means.abs(), logvars)  # no Gaussian
    assert prior_gap(means.abs(), logvars) < split.total_correlation + split.dimension_wise
    fill = torch.randn(5000, 4, generator=torch.Generator().manual_seed(1)) * 0.9
    assert prior_gap(fill, torch.full((5000, 4), math.log(1 - 0.81))) < 0.01


def test_latents_that_often_lie_where_the_prior_does_not_are_saturated():
    means = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
    means[:5, 1] = 9  # too rare
    means[:50, 2] = -9
    assert saturated_units(means) == 1


def test_change_is_the_squared_step_over_the_variance_and_2_for_what_is_unrelated():
    random = np.random.default_rng(0)
    a, b = random.standard_normal((2, 4000, 2))
    a[:, 1] = 3 * np.sin(np.arange(4000) / 10)  # smooth, and varies most
    b[:, 1] = 3 * np.sin(np.arange(4000) / 10)
    told = change([torch.from_numpy(a), torch.from_numpy(b)])
    both = np.concatenate([a, b])
    steps = np.concatenate([np.diff(a, axis=0), np.diff(b, axis=0)])  # never from one episode into the next
    np.testing.assert_allclose(told.per_dimension, np.square(steps).mean(0) / both.var(0), rtol=1e-9)
    assert told.overall == pytest.approx(np.square(steps).mean(0).sum() / both.var(0).sum())
    assert told.per_dimension[0] == pytest.approx(2, abs=0.1)
    assert told.per_dimension[1] < 0.02
