"""How well a codec predicts frames it has not seen: the ELBO, as comparisons need it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from worldvae.frames import to_unit
from worldvae.measures.images import psnr
from worldvae.objective import discretised_gaussian_nll
from worldvae.vae import DiagonalGaussian, FrameVAE


@dataclass(frozen=True)
class Likelihood:
    """Means over frames, one sample of each posterior.

    Attributes:
        elbo: nats per frame, beta 1, no floor, discretised Gaussian pixels.
        bits_per_dim: the same as bits per pixel and channel, -elbo / (H W C ln 2).
        kl: nats per frame.
        psnr: dB.
        sigma: the pixels' sd, fitted on training frames.
    """

    elbo: float
    bits_per_dim: float
    kl: float
    psnr: float
    sigma: float


@torch.no_grad()
def held_out_likelihood(vae: FrameVAE, train_frames: Tensor, held_out_frames: Tensor, seed: int = 0) -> Likelihood:
    """The held-out ELBO, its sigma fitted on training frames (in closed form: their mean squared error).

    Args:
        train_frames, held_out_frames: uint8 [B, H, W, C].
    """
    generator = torch.Generator(vae.device).manual_seed(seed)
    errors = [(made - images).square().mean((1, 2, 3)) for images, made, _ in _decoded(vae, train_frames, generator)]
    sigma = math.sqrt(torch.cat(errors).mean().item())
    nll, kl, mse = [], [], []
    for images, made, posterior in _decoded(vae, held_out_frames, generator):
        nll.append(discretised_gaussian_nll(made.double(), images.double(), sigma).flatten(1).sum(1))
        kl.append(posterior.kl().sum(-1))
        mse.append((made - images).square().mean((1, 2, 3)))
    elbo = -(torch.cat(nll).mean() + torch.cat(kl).mean()).item()
    pixels = held_out_frames[0].numel()
    quality = psnr(torch.cat(mse).mean().item())
    return Likelihood(elbo, -elbo / (pixels * math.log(2)), torch.cat(kl).mean().item(), quality, sigma)


def _decoded(
    vae: FrameVAE, frames: Tensor, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor, DiagonalGaussian]]:
    """Chunks of images, their reconstructions from a sample, and their posteriors."""
    for chunk in frames.split(256):
        images = to_unit(chunk.to(vae.device))
        noise = torch.randn(len(chunk), vae.latent_size, generator=generator, device=vae.device)
        made, posterior = vae(images, noise)
        yield images, made, posterior
