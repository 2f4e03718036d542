"""What the VAE minimises, in nats: pure functions of images and posteriors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from worldvae.vae import DiagonalGaussian


@dataclass(frozen=True)
class ObjectiveConfig:
    """The negative ELBO's settings; the defaults are World Models' loss up to a constant.

    Attributes:
        sigma: sd of the Gaussian pixel likelihood (pixels in [0, 1]). sqrt(1/2) makes it the plain
            summed squared error; smaller keeps more detail and costs more nats of KL.
        beta: weight of the KL (Higgins et al. 2017).
        free_bits: nats per latent and frame that cost nothing: a floor on a frame's total KL at
            ``free_bits * Z``, as published (0.5 * 32 = 16 nats).
    """

    sigma: float = math.sqrt(0.5)
    beta: float = 1.0
    free_bits: float = 0.5

    def __post_init__(self) -> None:
        if self.sigma <= 0 or self.beta < 0 or self.free_bits < 0:
            raise ValueError(f"sigma must be > 0, beta and free_bits >= 0: {self}")


def gaussian_nll(reconstruction: Tensor, images: Tensor, sigma: float) -> Tensor:
    """-log N(images | reconstruction, sigma^2), summed over pixels: nats per frame [B]."""
    pixels = images[0].numel()
    error = (reconstruction.float() - images).square().flatten(1).sum(1)
    return error / (2 * sigma**2) + pixels * (math.log(sigma) + 0.5 * math.log(2 * math.pi))


def kl_with_floor(posterior: DiagonalGaussian, free_bits: float) -> Tensor:
    """Each frame's KL to the prior [B] in nats, floored at free_bits * Z (no gradient below)."""
    return posterior.kl().sum(-1).clamp(min=free_bits * posterior.mean.shape[-1])


def negative_elbo(
    reconstruction: Tensor, images: Tensor, posterior: DiagonalGaussian, config: ObjectiveConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, a batch mean in nats per frame, and its parts (detached).

    Args:
        reconstruction, images: float [B, C, H, W] in [0, 1].
        posterior: of latents [B, Z].
    """
    nll = gaussian_nll(reconstruction, images, config.sigma).mean()
    loss = nll + config.beta * kl_with_floor(posterior, config.free_bits).mean()
    with torch.no_grad():
        mse = (reconstruction.float() - images).square().mean()
        parts = {"loss": loss.detach(), "reconstruction": nll.detach(), "kl": posterior.kl().sum(-1).mean(), "mse": mse}
    return loss, parts
