"""The held-out ELBO is what its definition says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from worldvae import FrameSpec, FrameVAE, FrameVAEConfig
from worldvae.frames import to_unit
from worldvae.measures.likelihood import held_out_likelihood, importance_weighted_bound, log_weights
from worldvae.objective import discretised_gaussian_nll


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
    nll = discretised_gaussian_nll(made[1].double(), to_unit(held_out).double(), sigma).sum((1, 2, 3)).mean().item()
    assert told.sigma == pytest.approx(sigma)
    assert told.kl == pytest.approx(kl)
    assert told.elbo == pytest.approx(-nll - kl)
    assert told.bits_per_dim == pytest.approx((nll + kl) / (64 * 64 * 3 * math.log(2)))


class Linear(torch.nn.Module):
    """images -> mean and log-variance of the exact posterior of a linear-Gaussian model, its variances widened."""

    def __init__(self, weight: torch.Tensor, offset: torch.Tensor, sigma: float, widened: float):
        super().__init__()
        precision = torch.eye(weight.shape[1]) + weight.T @ weight / sigma**2  # diagonal: orthogonal columns
        self.gain, self.offset = torch.linalg.inv(precision) @ weight.T / sigma**2, offset
        self.logvar = -precision.diag().log() + math.log(widened)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = (images.flatten(1) - self.offset) @ self.gain.T
        return mean, self.logvar.expand_as(mean)


def linear_gaussian(widened: float) -> tuple[FrameVAE, torch.Tensor, torch.Tensor, float]:
    """A codec x = W z + b + noise with orthogonal columns, frames drawn from it, their exact log-likelihood, sigma."""
    generator, sigma, size = torch.Generator().manual_seed(0), 0.05, 16 * 16
    weight = torch.linalg.qr(torch.randn(size, 2, generator=generator)).Q * torch.tensor([0.5, 0.3])
    offset = torch.full((size,), 0.5)
    z = torch.randn(200, 2, generator=generator)
    frames = ((z @ weight.T + offset + sigma * torch.randn(200, size, generator=generator)) * 255).round()
    assert frames.min() > 0
    assert frames.max() < 255
    covariance = (weight @ weight.T + sigma**2 * torch.eye(size)).double()
    exact = torch.distributions.MultivariateNormal(offset.double(), covariance).log_prob(frames.double() / 255)
    vae = FrameVAE(FrameVAEConfig(FrameSpec(16, 16, 1), latent_size=2))
    vae.encoder = Linear(weight, offset, sigma, widened)
    vae.decoder = Lambda(lambda z: (z @ weight.T + offset).view(-1, 1, 16, 16))
    return vae, frames.byte().view(200, 16, 16, 1), exact + size * math.log(1 / 255), sigma


class Lambda(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, z):
        return self.function(z)


def test_under_the_exact_posterior_every_weight_is_the_likelihood():
    vae, frames, exact, sigma = linear_gaussian(widened=1)
    weights = log_weights(vae, frames, sigma, samples=3)
    np.testing.assert_allclose(weights, exact.expand(3, -1), atol=0.05)  # levels are not quite a density


def test_under_another_the_bound_rises_from_the_elbo_to_the_likelihood_with_samples():
    vae, frames, exact, sigma = linear_gaussian(widened=4)
    weights = log_weights(vae, frames, sigma, samples=512)
    elbo = weights.mean(0)
    gap = 2 * 0.5 * (4 - 1 - math.log(4))  # KL between the two posteriors, of two latents
    assert (exact - elbo).mean().item() == pytest.approx(gap, abs=0.1)
    bounds = [importance_weighted_bound(weights[:k]).mean().item() for k in (1, 4, 64, 512)]
    assert bounds == sorted(bounds)
    assert (importance_weighted_bound(weights) >= elbo).all()
    assert bounds[-1] == pytest.approx(exact.mean().item(), abs=0.03)
