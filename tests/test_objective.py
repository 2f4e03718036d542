"""The loss, in nats, against scipy's densities and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from worldvae import DiagonalGaussian, ObjectiveConfig
from worldvae.objective import gaussian_nll, kl_with_floor, negative_elbo


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(3, 2, 4, 4, generator=generator), torch.rand(3, 2, 4, 4, generator=generator)


@pytest.fixture
def posterior() -> DiagonalGaussian:
    generator = torch.Generator().manual_seed(1)
    return DiagonalGaussian(torch.randn(3, 5, generator=generator), torch.randn(3, 5, generator=generator))


@pytest.mark.parametrize("sigma", [0.05, 0.7, 2.0])
def test_reconstruction_is_scipys_negative_log_density(pair, sigma):
    reconstruction, images = pair
    expected = -stats.norm.logpdf(images.numpy(), reconstruction.numpy(), sigma).sum((1, 2, 3))
    np.testing.assert_allclose(gaussian_nll(reconstruction, images, sigma), expected, rtol=1e-4)


def test_the_default_sigma_gives_the_papers_summed_squared_error_up_to_a_constant(pair):
    reconstruction, images = pair
    nll = gaussian_nll(reconstruction, images, ObjectiveConfig().sigma)
    constant = nll - (reconstruction - images).square().sum((1, 2, 3))
    torch.testing.assert_close(constant, torch.full((3,), 32 * 0.5 * math.log(math.pi)))


def test_kl_below_the_floor_costs_the_floor_and_has_no_gradient():
    mean = torch.tensor([[0.1, 0.1], [3.0, 3.0]], requires_grad=True)  # KL 0.01 and 9 nats
    kl = kl_with_floor(DiagonalGaussian(mean, torch.zeros(2, 2)), free_bits=0.5)
    torch.testing.assert_close(kl.detach(), torch.tensor([1.0, 9.0]))
    kl.sum().backward()
    torch.testing.assert_close(mean.grad, torch.tensor([[0.0, 0.0], [3.0, 3.0]]))


def test_loss_is_reconstruction_plus_beta_kl(pair, posterior):
    loss, parts = negative_elbo(*pair, posterior, ObjectiveConfig(sigma=0.3, beta=2.5, free_bits=0.0))
    torch.testing.assert_close(loss, parts["reconstruction"] + 2.5 * parts["kl"])
    torch.testing.assert_close(parts["kl"], posterior.kl().sum(1).mean())
    torch.testing.assert_close(parts["mse"], (pair[0] - pair[1]).square().mean())


@pytest.mark.parametrize("wrong", [{"sigma": 0.0}, {"beta": -1.0}, {"free_bits": -0.1}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="sigma must be"):
        ObjectiveConfig(**wrong)
