"""What the VAE minimises, in nats: pure functions of images, reconstructions and posteriors.

Each pixel's likelihood, times its weight, plus the divergence of the code from the prior, under a schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, logsigmoid

from worldvae.vae import DiagonalGaussian

LEVEL = 1 / 255
"""Distance between two values of a uint8 pixel in [0, 1]."""
LEAST_SIGMA = LEVEL / math.sqrt(12)
"""sd of the rounding to uint8: no decoder is more exact than its data."""
CLIP = 10
"""Frames in which a code is once a new one."""
NEARBY = 9
"""Pixels: changes within a square of that side are one thing."""
FAR = 1e6
"""In place of infinity, whose gradients are not numbers."""

PixelLikelihood = Literal["gaussian", "discretised_gaussian", "discretised_logistic"]
Scope = Literal["dimension", "sample", "batch"]
Weighting = Literal["even", "motion", "background", "worst"]


@dataclass(frozen=True)
class ObjectiveConfig:
    """The negative ELBO's settings; the defaults are World Models' loss up to a constant.

    Attributes:
        likelihood: of a pixel: a density, or a probability of its uint8 value (real bits).
        sigma: sd of that likelihood (pixels in [0, 1]). sqrt(1/2) makes the Gaussian the plain summed
            squared error; smaller keeps more detail and costs more nats of KL. ``optimal`` is each batch's root
            mean squared error, ``learned`` a parameter (Rybkin et al. 2021, sigma-VAE): then a beta of 1 means
            the ELBO. See ``equivalent_beta``.
        beta: weight of the KL (Higgins et al. 2017).
        free_bits: nats per latent and frame that cost nothing.
        free_bits_scope: where that floor lies: under each latent's batch mean (Kingma et al. 2016), under each
            frame's total at ``free_bits * Z`` (World Models: 0.5 * 32 = 16 nats), or under the batch's mean total.
        kl_warm_up: steps over which beta grows from 0.
        capacity: nats that the KL is drawn to, from above and below, instead of to 0 (Burgess et al. 2018).
        capacity_steps: over which that target grows from 0.
        total_correlation: weight of that part of the KL (Chen et al. 2018, beta-TCVAE); 1 is the ELBO's own.
        autoencoder: no noise and no KL: a plain autoencoder, for comparison.
        weighting: which pixels count more: those that changed since the frame before, those that differ from
            the rollouts' median frame, or each frame's worst hundredth.
        emphasis: how many times more; pixels that changed side by side share it, so that a small thing counts as
            much as a large one. A frame's weights always have mean 1.
        correlation: of a code with that of the frame before, under the prior: 0 is a standard normal for every
            frame, 0.97 one whose codes change slowly (see ``slow_kl``). What follows is then easier foretold.
    """

    likelihood: PixelLikelihood = "gaussian"
    sigma: float | Literal["optimal", "learned"] = math.sqrt(0.5)
    beta: float = 1.0
    free_bits: float = 0.5
    free_bits_scope: Scope = "sample"
    kl_warm_up: int = 0
    capacity: float | None = None
    capacity_steps: int = 1000
    total_correlation: float = 1.0
    autoencoder: bool = False
    weighting: Weighting = "even"
    emphasis: float = 40.0
    correlation: float = 0.0

    def __post_init__(self) -> None:
        if (isinstance(self.sigma, float | int) and self.sigma <= 0) or self.beta < 0 or self.free_bits < 0:
            raise ValueError(f"sigma must be > 0, beta and free_bits >= 0: {self}")
        if min(self.kl_warm_up, self.capacity or 0, self.total_correlation, self.emphasis) < 0:
            raise ValueError(f"kl_warm_up, capacity, total_correlation and emphasis must be >= 0: {self}")
        if not 0 <= self.correlation < 1:
            raise ValueError(f"correlation must be in [0, 1), got {self.correlation}")
        if self.capacity_steps < 1:
            raise ValueError(f"capacity_steps must be >= 1, got {self.capacity_steps}")


PUBLISHED = ObjectiveConfig()
"""World Models' (Ha & Schmidhuber 2018)."""
CALIBRATED = ObjectiveConfig(sigma="optimal", free_bits=0.0)
"""On a calibrated decoder beta means what it says (Rybkin et al. 2021)."""
MOVING = replace(CALIBRATED, weighting="motion")
"""Keeps small moving things too (benchmarks/objects.json)."""


def gaussian_nll(reconstruction: Tensor, images: Tensor, sigma: Tensor | float) -> Tensor:
    """-log N(images | reconstruction, sigma^2) of each pixel, in nats: float [B, C, H, W]."""
    log_sigma = sigma.log() if isinstance(sigma, Tensor) else math.log(sigma)
    return (reconstruction - images).square() / (2 * sigma**2) + log_sigma + 0.5 * math.log(2 * math.pi)


def discretised_gaussian_nll(reconstruction: Tensor, images: Tensor, sigma: Tensor | float) -> Tensor:
    """-log P(each pixel's uint8 value | N(reconstruction, sigma^2)), in nats: float [B, C, H, W].

    A value's probability is the Gaussian's mass within half a level of it; that of 0 and 255 reaches to
    infinity. So it is a real probability, and real bits (Salimans et al. 2017, for the logistic).

    Args:
        reconstruction, images: float [B, C, H, W] in [0, 1], images at uint8 levels.
    """
    lower, upper = _edges(reconstruction, images, sigma)
    mirrored = upper + lower > 0  # the lower tail is where differences of cumulative probabilities are exact
    upper, lower = torch.where(mirrored, -lower, upper), torch.where(mirrored, -upper, lower)
    log_upper, log_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    return -(log_upper + _log_share(log_lower - log_upper))


def discretised_logistic_nll(reconstruction: Tensor, images: Tensor, sigma: Tensor | float) -> Tensor:
    """The same under a logistic of that mean and sd (Salimans et al. 2017), whose tails forgive more."""
    lower, upper = _edges(reconstruction, images, sigma * (math.sqrt(3) / math.pi))
    return -(logsigmoid(upper) + logsigmoid(-lower) + _log_share(lower - upper))


PIXEL_NLL: dict[PixelLikelihood, Callable[[Tensor, Tensor, Tensor | float], Tensor]] = {
    "gaussian": gaussian_nll,
    "discretised_gaussian": discretised_gaussian_nll,
    "discretised_logistic": discretised_logistic_nll,
}


def _edges(reconstruction: Tensor, images: Tensor, scale: Tensor | float) -> tuple[Tensor, Tensor]:
    """The lower and upper end of each uint8 value, seen from the reconstruction, in scales."""
    values = (images / LEVEL).round() * LEVEL
    lower = torch.where(values < LEVEL / 2, -FAR, (values - LEVEL / 2 - reconstruction) / scale)
    upper = torch.where(values > 1 - LEVEL / 2, FAR, (values + LEVEL / 2 - reconstruction) / scale)
    return lower, upper


def _log_share(log_ratio: Tensor) -> Tensor:
    """log(1 - exp(log_ratio)) of negative ratios."""
    return torch.log(-torch.expm1(log_ratio.clamp(max=-1e-7)))


def optimal_variance(reconstruction: Tensor, images: Tensor, weights: Tensor | None = None) -> Tensor:
    """The Gaussian's most likely variance: the (weighted) mean squared error, without gradient [].

    At the best sigma the loss does not change with it, so the gradient is that of the calibrated decoder.
    """
    error = (reconstruction.detach().float() - images).square()
    return (error if weights is None else error * weights).mean().clamp(min=LEAST_SIGMA**2)


def equivalent_beta(config: ObjectiveConfig, mse: float) -> float:
    """The beta that this objective would be on a calibrated decoder of that mean squared error.

    The summed squared error (sigma 0.71, beta 1) at 30 dB is one of 500.
    """
    return config.beta * (config.sigma**2 / mse if isinstance(config.sigma, float | int) else 1.0)


def changed_pixel_weights(images: Tensor, reference: Tensor, emphasis: float, threshold: float = 0.04) -> Tensor:
    """Weights float [B, 1, H, W] of frame mean 1: pixels that differ from ``reference`` count more, the fewer the more.

    What changed within ``NEARBY`` pixels shares the emphasis: so a thing of one pixel counts as much as one of eighty,
    and is not outweighed where a large one, or the whole view, moves too.

    Args:
        images: float [B, C, H, W] in [0, 1]. reference: the frames before, or one frame [C, H, W].
        threshold: least difference of a channel: ten grey levels.
    """
    changed = ((images - reference).abs().amax(1, keepdim=True) > threshold).float()
    nearby = NEARBY**2 * avg_pool2d(changed, NEARBY, stride=1, padding=NEARBY // 2)
    return _mean_one(1 + emphasis * changed / nearby.clamp(min=1))


def worst_pixel_weights(reconstruction: Tensor, images: Tensor, emphasis: float, share: float = 0.01) -> Tensor:
    """Weights float [B, 1, H, W] of frame mean 1: each frame's worst share of pixels counts more."""
    error = (reconstruction.detach().float() - images).square().sum(1, keepdim=True)
    count = max(1, round(share * error[0].numel()))
    worst = torch.zeros_like(error).flatten(1).scatter_(1, error.flatten(1).topk(count).indices, 1.0)
    return _mean_one(1 + emphasis * worst.view_as(error))


def _mean_one(weights: Tensor) -> Tensor:
    return weights / weights.mean((1, 2, 3), keepdim=True)


def floored_kl(kl: Tensor, free_bits: float, scope: Scope) -> Tensor:
    """The batch's mean KL [], in nats per frame, where less than the free bits costs as much as they do.

    Args:
        kl: of each frame and latent [B, Z].
    """
    latents = kl.shape[-1]
    if scope == "dimension":
        return kl.mean(0).clamp(min=free_bits).sum()
    totals = kl.sum(-1)
    if scope == "sample":
        return totals.clamp(min=free_bits * latents).mean()
    return totals.mean().clamp(min=free_bits * latents)


def slow_kl(posterior: DiagonalGaussian, before: DiagonalGaussian, correlation: float) -> Tensor:
    """The KL of a frame in a clip of ``CLIP``, in nats for each frame and latent [B, Z], where codes change slowly.

    The clip's first code is drawn from the standard normal, every other from what the one before leaves of it,
    N(correlation * z_t, 1 - correlation^2), so that each alone is standard normal too. After Klindt et al. 2021
    (SlowVAE, with Laplace steps).

    Args:
        posterior, before: of latents [B, Z], a frame's and the one's before it.
    """
    spread = 1 - correlation**2
    square = (posterior.mean - correlation * before.mean).square() + correlation**2 * before.logvar.exp()
    step = 0.5 * ((square + posterior.logvar.exp()) / spread - 1 - posterior.logvar + math.log(spread))
    return posterior.kl() / CLIP + step * (1 - 1 / CLIP)


def total_correlation(z: Tensor, posterior: DiagonalGaussian) -> Tensor:
    """KL from the aggregate posterior to the product of its marginals, in nats []; the batch stands for all data.

    Its gradient is that of minibatch-weighted sampling (Chen et al. 2018), which adds a constant.

    Args:
        z: a sample [B, Z] of each frame's posterior [B, Z].
    """
    mean, logvar = posterior.mean, posterior.logvar
    density = -0.5 * ((z[:, None] - mean).square() / logvar.exp() + logvar + math.log(2 * math.pi))  # [B, B, Z]
    log_count = math.log(len(z))
    joint = density.sum(-1).logsumexp(1) - log_count
    marginals = (density.logsumexp(1) - log_count).sum(-1)
    return (joint - marginals).mean()


def kl_pressure(config: ObjectiveConfig, step: int) -> tuple[float, float]:
    """beta, and the KL's target in nats, at a training step."""
    if config.autoencoder:
        return 0.0, 0.0
    beta = config.beta * min(1.0, step / config.kl_warm_up) if config.kl_warm_up else config.beta
    return beta, (config.capacity or 0.0) * min(1.0, step / config.capacity_steps)


def negative_elbo(
    reconstruction: Tensor,
    images: Tensor,
    posterior: DiagonalGaussian,
    config: ObjectiveConfig,
    *,
    sigma: Tensor | float | None = None,
    pressure: Tensor | tuple[float, float] | None = None,
    weights: Tensor | None = None,
    z: Tensor | None = None,
    before: DiagonalGaussian | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, a batch mean in nats per frame, and its parts (detached).

    Args:
        reconstruction, images: float [B, C, H, W] in [0, 1].
        posterior: of latents [B, Z].
        sigma: instead of the config's, which where ``optimal`` or ``learned`` means the optimal one of this batch.
        pressure: of ``kl_pressure``; the schedules' ends by default.
        weights: of pixels, float [B, 1, H, W].
        z: the codes [B, Z] that were decoded: with them the total correlation counts.
        before: of the frames before, latents [B, Z]: with them codes that change cost more.
    """
    reconstruction = reconstruction.float()
    if sigma is None:
        fitted = isinstance(config.sigma, str)
        sigma = optimal_variance(reconstruction, images, weights).sqrt() if fitted else float(config.sigma)
    nll = PIXEL_NLL[config.likelihood](reconstruction, images, sigma)
    nll = (nll if weights is None else nll * weights).flatten(1).sum(1).mean()
    kl = posterior.kl() if before is None else slow_kl(posterior, before, config.correlation)
    beta, target = kl_pressure(config, 10**9) if pressure is None else pressure
    loss = nll + beta * (floored_kl(kl, config.free_bits, config.free_bits_scope) - target).abs()
    if z is not None and config.total_correlation != 1:
        loss = loss + beta * (config.total_correlation - 1) * total_correlation(z, posterior)
    with torch.no_grad():
        mse = (reconstruction - images).square().mean()
        parts = {"loss": loss.detach(), "reconstruction": nll.detach(), "kl": posterior.kl().sum(-1).mean(), "mse": mse}
    return loss, parts
