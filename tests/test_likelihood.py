"""The discretised likelihood is a probability, and the held-out ELBO is what its definition says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from worldvae import FrameVAE
from worldvae.frames import to_unit
from worldvae.measures.likelihood import discretised_gaussian_nll, held_out_likelihood


@pytest.mark.parametrize("sigma", [0.01, 0.1, 1.0])
def test_the_probabilities_of_all_256_values_sum_to_one(sigma):
    images = (torch.arange(256) / 255).reshape(256, 1, 1, 1)
    for mean in (0.0, 0.3, 1.0):
        probabilities = (-discretised_gaussian_nll(torch.full_like(images, mean), images, sigma)).exp()
        assert probabilities.sum().item() == pytest.approx(1, abs=1e-9)


def test_it_is_scipys_mass_between_the_edges_and_finite_far_away():
    values, mean, sigma = torch.tensor([0.0, 3, 100, 255]) / 255, 0.35, 0.02
    images = values.reshape(4, 1, 1, 1)
    edges = np.stack([values.numpy() - 0.5 / 255, values.numpy() + 0.5 / 255])
    edges[0, 0], edges[1, 3] = -np.inf, np.inf
    told = discretised_gaussian_nll(torch.full_like(images, mean), images, sigma)
    z = (edges - mean) / sigma
    mirrored = z.sum(0) > 0  # scipy's differences lose the upper tail
    z = np.where(mirrored, -z[::-1], z)
    expected = -(norm.logcdf(z[1]) + np.log1p(-np.exp(norm.logcdf(z[0]) - norm.logcdf(z[1]))))
    np.testing.assert_allclose(told, expected, rtol=1e-6)
    far = discretised_gaussian_nll(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1), 0.001)
    assert math.isfinite(far.item())


def test_where_sigma_is_wide_it_is_the_density_times_the_levels_width():
    images = torch.full((1, 1, 2, 2), 128 / 255)
    expected = -4 * (norm.logpdf(128 / 255, 0.4, 0.2) + math.log(1 / 255))
    told = discretised_gaussian_nll(torch.full_like(images, 0.4), images, 0.2).item()
    assert told == pytest.approx(expected, rel=1e-4)


def test_the_held_out_elbo_is_put_together_as_defined():
    torch.manual_seed(0)
    vae = FrameVAE().eval()
    train, held_out = torch.randint(0, 256, (2, 6, 64, 64, 3), dtype=torch.uint8)
    told = held_out_likelihood(vae, train, held_out, seed=3)
    generator = torch.Generator().manual_seed(3)
    noise = [torch.randn(6, 32, generator=generator) for _ in range(2)]
    with torch.no_grad():
        made = [vae(to_unit(frames), n)[0] for frames, n in zip((train, held_out), noise, strict=True)]
        kl = vae.posterior(to_unit(held_out)).kl().sum(1).mean().item()
    sigma = (made[0] - to_unit(train)).square().mean().sqrt().item()
    nll = discretised_gaussian_nll(made[1], to_unit(held_out), sigma).mean().item()
    assert told.sigma == pytest.approx(sigma)
    assert told.kl == pytest.approx(kl)
    assert told.elbo == pytest.approx(-nll - kl)
    assert told.bits_per_dim == pytest.approx((nll + kl) / (64 * 64 * 3 * math.log(2)))
