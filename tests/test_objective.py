"""The loss, in nats, against scipy's densities, closed forms and slow plain versions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import logsumexp
from torch.distributions import Normal, kl_divergence

from worldvae import DiagonalGaussian, ObjectiveConfig
from worldvae.objective import (
    LEAST_SIGMA,
    PIXEL_NLL,
    PUBLISHED,
    changed_pixel_weights,
    discretised_gaussian_nll,
    discretised_logistic_nll,
    equivalent_beta,
    floored_kl,
    gaussian_nll,
    kl_pressure,
    negative_elbo,
    optimal_variance,
    slow_kl,
    total_correlation,
    worst_pixel_weights,
)

DISCRETISED = {discretised_gaussian_nll: stats.norm, discretised_logistic_nll: stats.logistic}


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """A reconstruction, and images at uint8 levels."""
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 256, (3, 2, 4, 4), generator=generator)
    return torch.rand(3, 2, 4, 4, generator=generator), levels / 255


@pytest.fixture
def posterior() -> DiagonalGaussian:
    generator = torch.Generator().manual_seed(1)
    return DiagonalGaussian(torch.randn(3, 5, generator=generator), torch.randn(3, 5, generator=generator))


@pytest.mark.parametrize("sigma", [0.05, 0.7, 2.0])
def test_reconstruction_is_scipys_negative_log_density(pair, sigma):
    reconstruction, images = pair
    expected = -stats.norm.logpdf(images.numpy(), reconstruction.numpy(), sigma)
    np.testing.assert_allclose(gaussian_nll(reconstruction, images, sigma), expected, rtol=1e-4, atol=1e-5)


def test_the_default_sigma_gives_the_papers_summed_squared_error_up_to_a_constant(pair):
    reconstruction, images = pair
    nll = gaussian_nll(reconstruction, images, PUBLISHED.sigma).sum((1, 2, 3))
    constant = nll - (reconstruction - images).square().sum((1, 2, 3))
    torch.testing.assert_close(constant, torch.full((3,), 32 * 0.5 * math.log(math.pi)))


@pytest.mark.parametrize("nll", DISCRETISED)
@pytest.mark.parametrize("sigma", [0.01, 0.1, 1.0])
def test_the_probabilities_of_all_256_values_sum_to_one(nll, sigma):
    images = (torch.arange(256).double() / 255).reshape(256, 1, 1, 1)
    for mean in (0.0, 0.3, 1.0):
        probabilities = (-nll(torch.full_like(images, mean), images, sigma)).exp()
        assert probabilities.sum().item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(("nll", "distribution"), DISCRETISED.items())
def test_it_is_scipys_mass_between_the_edges(nll, distribution):
    values, mean, sigma = torch.tensor([0.0, 3, 100, 255], dtype=torch.float64) / 255, 0.35, 0.05
    scale = sigma * (math.sqrt(3) / math.pi if distribution is stats.logistic else 1)
    images = values.reshape(4, 1, 1, 1)
    edges = np.stack([values.numpy() - 0.5 / 255, values.numpy() + 0.5 / 255])
    edges[0, 0], edges[1, 3] = -np.inf, np.inf
    z = (edges - mean) / scale
    z = np.where(z.sum(0) > 0, -z[::-1], z)  # scipy's differences lose the upper tail
    expected = -(distribution.logcdf(z[1]) + np.log1p(-np.exp(distribution.logcdf(z[0]) - distribution.logcdf(z[1]))))
    told = nll(torch.full_like(images, mean), images, sigma)
    np.testing.assert_allclose(told.flatten(), expected, rtol=1e-6)


@pytest.mark.parametrize("nll", DISCRETISED)
def test_where_sigma_is_wide_it_is_the_density_times_the_levels_width(nll):
    images = torch.full((1, 1, 2, 2), 128 / 255)
    density = stats.logistic.logpdf(128 / 255, 0.4, 0.2 * math.sqrt(3) / math.pi)
    if nll is discretised_gaussian_nll:
        density = stats.norm.logpdf(128 / 255, 0.4, 0.2)
    told = nll(torch.full_like(images, 0.4), images, 0.2)
    torch.testing.assert_close(told, torch.full_like(images, -(density + math.log(1 / 255))), rtol=1e-3, atol=0)


@pytest.mark.parametrize("likelihood", PIXEL_NLL)
@given(value=st.integers(0, 255), made=st.floats(0, 1, width=32), sigma=st.floats(LEAST_SIGMA, 2.0), wide=st.booleans())
def test_every_value_and_gradient_is_finite_in_float32(likelihood, value, made, sigma, wide):
    reconstruction = torch.full((1, 1, 1, 1), made, requires_grad=True)
    spread = torch.tensor(sigma * (10 if wide else 1), requires_grad=True)
    nll = PIXEL_NLL[likelihood](reconstruction, torch.full((1, 1, 1, 1), value / 255), spread)
    nll.sum().backward()
    assert torch.isfinite(nll).all()
    assert torch.isfinite(reconstruction.grad).all()
    assert torch.isfinite(spread.grad)


def test_the_optimal_sigma_is_where_the_loss_is_least(pair, posterior):
    sigma = optimal_variance(*pair).sqrt()
    losses = [gaussian_nll(*pair, s).sum().item() for s in (0.99 * sigma, sigma, 1.01 * sigma)]
    assert losses[1] < min(losses[0], losses[2])
    calibrated = ObjectiveConfig(sigma="optimal", free_bits=0.0)
    loss, parts = negative_elbo(*pair, posterior, calibrated)
    pixels, kl = pair[0][0].numel(), posterior.kl().sum(1).mean()
    torch.testing.assert_close(loss, pixels / 2 * (1 + math.log(2 * math.pi) + parts["mse"].log()) + kl)


def test_an_exact_decoder_has_the_roundings_sigma(pair):
    assert optimal_variance(pair[1], pair[1]).sqrt().item() == pytest.approx(1 / 255 / math.sqrt(12))


def test_one_means_what_it_says():
    summed_squares = PUBLISHED
    assert equivalent_beta(summed_squares, mse=10 ** (-30 / 10)) == pytest.approx(500)
    assert equivalent_beta(ObjectiveConfig(sigma="optimal", beta=3), mse=0.001) == 3


def test_weights_single_out_what_moved_and_keep_the_mean():
    images = torch.zeros(2, 3, 8, 8)
    images[0, 1, 2, 3] = 0.5
    weights = changed_pixel_weights(images, torch.zeros(2, 3, 8, 8), emphasis=19)
    torch.testing.assert_close(weights.mean((1, 2, 3)), torch.ones(2))
    assert weights[0, 0, 2, 3] == pytest.approx(20 * weights[0, 0, 0, 0].item())
    assert (weights[1] == 1).all()


def test_a_small_thing_that_moved_counts_as_much_as_a_large_one_and_a_whole_view_evenly():
    images = torch.zeros(3, 3, 40, 40)
    images[0, :, 5, 5] = images[0, :, 20:23, 20:23] = 0.5
    images[1] = 0.5
    weights = changed_pixel_weights(images, torch.zeros(3, 3, 40, 40), emphasis=19)
    extra = weights[0] / weights[0, 0, 0, 0] - 1
    assert extra[0, 5, 5].item() == pytest.approx(19)
    assert extra[0, 20:23, 20:23].sum().item() == pytest.approx(19)
    assert extra.sum().item() == pytest.approx(38)
    inside = weights[1, 0, 8:-8, 8:-8]
    torch.testing.assert_close(inside, inside[:1, :1].expand_as(inside))


def test_weights_single_out_each_frames_worst_pixels():
    images, reconstruction = torch.zeros(2, 3, 10, 10), torch.zeros(2, 3, 10, 10)
    reconstruction[0, :, 4, 5], reconstruction[1, 2, 6, 7] = 0.1, 0.9
    weights = worst_pixel_weights(reconstruction, images, emphasis=9, share=0.01)
    assert [tuple(w.squeeze().argmax().item() for w in weights)] == [(45, 67)]
    assert weights.max().item() == pytest.approx(10 * weights.min().item())


@pytest.mark.parametrize("likelihood", PIXEL_NLL)
def test_even_weights_change_no_likelihood_and_others_do(pair, posterior, likelihood):
    config = ObjectiveConfig(likelihood=likelihood, sigma=0.2)
    plain, _ = negative_elbo(*pair, posterior, config)
    even, _ = negative_elbo(*pair, posterior, config, weights=torch.ones(3, 1, 4, 4))
    worst, _ = negative_elbo(*pair, posterior, config, weights=worst_pixel_weights(*pair, 20))
    torch.testing.assert_close(plain, even)
    assert worst > even


def test_kl_below_the_floor_costs_the_floor_and_has_no_gradient():
    mean = torch.tensor([[0.1, 0.1], [3.0, 3.0]], requires_grad=True)  # KL 0.01 and 9 nats
    floored = floored_kl(DiagonalGaussian(mean, torch.zeros(2, 2)).kl(), 0.5, "sample")
    assert floored.item() == pytest.approx((1 + 9) / 2)
    floored.backward()
    torch.testing.assert_close(mean.grad, torch.tensor([[0.0, 0.0], [1.5, 1.5]]))


def test_each_scope_of_free_bits_has_its_floor():
    kl = torch.tensor([[0.2, 2.0], [0.0, 0.6]])  # of a latent on average 0.1 and 1.3, of a frame 2.2 and 0.6
    assert floored_kl(kl, 0.5, "dimension").item() == pytest.approx(0.5 + 1.3)
    assert floored_kl(kl, 0.5, "sample").item() == pytest.approx((2.2 + 1.0) / 2)
    assert floored_kl(kl, 0.5, "batch").item() == pytest.approx(1.4)
    assert floored_kl(kl, 0.8, "batch").item() == pytest.approx(1.6)


def test_warm_up_and_capacity_grow_in_a_line_and_stay():
    config = ObjectiveConfig(beta=4, kl_warm_up=100, capacity=25, capacity_steps=50)
    assert [kl_pressure(config, step) for step in (0, 25, 50, 100, 1000)] == [
        (0, 0),
        (1, 12.5),
        (2, 25),
        (4, 25),
        (4, 25),
    ]
    assert kl_pressure(PUBLISHED, 0) == (1, 0)


def test_capacity_draws_the_kl_from_both_sides(pair, posterior):
    kl = posterior.kl().sum(1).mean().item()
    for target in (kl - 1, kl + 1):
        loss, parts = negative_elbo(*pair, posterior, ObjectiveConfig(beta=3, free_bits=0, capacity=target))
        assert loss.item() == pytest.approx(parts["reconstruction"].item() + 3, rel=1e-4)


def test_an_autoencoder_pays_for_pixels_alone(pair, posterior):
    loss, parts = negative_elbo(*pair, posterior, ObjectiveConfig(sigma=0.2, autoencoder=True))
    assert loss == parts["reconstruction"]


def test_loss_is_reconstruction_plus_beta_kl(pair, posterior):
    loss, parts = negative_elbo(*pair, posterior, ObjectiveConfig(sigma=0.3, beta=2.5, free_bits=0.0))
    torch.testing.assert_close(loss, parts["reconstruction"] + 2.5 * parts["kl"])
    torch.testing.assert_close(parts["kl"], posterior.kl().sum(1).mean())
    torch.testing.assert_close(parts["mse"], (pair[0] - pair[1]).square().mean())


def test_total_correlation_is_the_slow_sum_over_pairs(posterior):
    z = posterior.sample(torch.Generator().manual_seed(2))
    log = [
        [
            [stats.norm.logpdf(z[i, k], posterior.mean[j, k], posterior.sd[j, k]) for k in range(z.shape[1])]
            for j in range(3)
        ]
        for i in range(3)
    ]
    joint = [logsumexp([sum(log[i][j]) for j in range(3)]) - math.log(3) for i in range(3)]
    marginal = [
        sum(logsumexp([log[i][j][k] for j in range(3)]) - math.log(3) for k in range(z.shape[1])) for i in range(3)
    ]
    assert total_correlation(z, posterior).item() == pytest.approx(np.mean(joint) - np.mean(marginal), rel=1e-5)


def test_total_correlation_of_a_gaussian_aggregate_is_its_closed_form():
    generator = torch.Generator().manual_seed(0)
    cholesky = torch.linalg.cholesky(torch.tensor([[1.0, 0.8], [0.8, 1.0]]))
    mean = torch.randn(3000, 2, generator=generator) @ cholesky.T
    posterior = DiagonalGaussian(mean, torch.full_like(mean, math.log(0.25)))
    rho = 0.8 / 1.25  # posteriors of variance 1/4 around means of variance 1
    told = total_correlation(posterior.sample(generator), posterior).item()
    assert told == pytest.approx(-0.5 * math.log(1 - rho**2), abs=0.03)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.97])
def test_the_slow_kl_is_that_of_a_clip_under_an_autoregressive_prior(correlation):
    """Against a sum over the clip's frames of torch's own KLs, averaged over draws of the code before."""
    random = torch.Generator().manual_seed(0)
    means = torch.randn(2, 3, 4, generator=random)
    logvars = torch.randn(2, 3, 4, generator=random) - 2
    now, before = (DiagonalGaussian(m, v) for m, v in zip(means, logvars, strict=True))
    past = before.rsample(torch.randn(100_000, 3, 4, generator=random))
    q = Normal(now.mean, (0.5 * now.logvar).exp())
    following = kl_divergence(q, Normal(correlation * past, math.sqrt(1 - correlation**2))).mean(0)
    first = kl_divergence(q, Normal(torch.zeros(3, 4), 1.0))
    told = slow_kl(now, before, correlation)
    torch.testing.assert_close(10 * told, first + 9 * following, rtol=0.02, atol=0.02)


def test_a_code_that_stays_costs_less_than_one_that_leaps():
    still, leaping = (DiagonalGaussian(torch.full((1, 2), x), torch.full((1, 2), -4.0)) for x in (1.0, -1.0))
    costs = [slow_kl(still, before, 0.97).sum().item() for before in (still, leaping)]
    assert costs[1] > 10 * costs[0]


def test_its_weight_enters_the_loss_beside_beta(pair, posterior):
    z = posterior.mean
    plain, _ = negative_elbo(*pair, posterior, ObjectiveConfig(beta=2), z=z)
    heavy, _ = negative_elbo(*pair, posterior, ObjectiveConfig(beta=2, total_correlation=6), z=z)
    torch.testing.assert_close(heavy - plain, 2 * 5 * total_correlation(z, posterior), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"sigma": 0.0}, {"beta": -1.0}, {"free_bits": -0.1}, {"capacity_steps": 0}, {"emphasis": -1.0}),
        {"correlation": 1.0},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        ObjectiveConfig(**wrong)
