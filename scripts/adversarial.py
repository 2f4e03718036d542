"""A codec's decoder trained against a discriminator: from noise alone (a GAN), or on top of its codes.

The non-saturating loss (Goodfellow et al. 2014) with the R1 penalty on real frames (Mescheder et al. 2018),
and an average of the decoder's weights as the result (Yazıcı et al. 2019): what keeps small GANs from
falling over without a search for settings.
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from worldvae.frames import FrameSpec, to_unit
from worldvae.vae import FrameVAE


@dataclass(frozen=True)
class AdversarialConfig:
    """How a decoder is trained adversarially.

    Attributes:
        learning_rate: Adam's, of both sides.
        penalty: R1's weight (gamma): half of it times the squared gradient of the score of real images.
        penalty_every: steps between penalties, each then so many times as heavy (Karras et al. 2020).
        average: the decoder's averaging factor a step, once so many steps have been made.
        fidelity: weight of the squared error of reconstructions, summed over pixels; 0 for a GAN, which
            decodes noise; otherwise half of the decoder's inputs are codes of frames and half noise.
    """

    learning_rate: float = 1e-3
    penalty: float = 0.1
    penalty_every: int = 4
    average: float = 0.998
    fidelity: float = 0.0


class Discriminator(nn.Module):
    """float [B, C, H, W] in [0, 1] -> float [B], high for real ones; H and W are multiples of 16."""

    def __init__(self, frame: FrameSpec, width: int = 16):
        super().__init__()
        channels = (frame.channels, width, 2 * width, 4 * width, 4 * width)
        layers: list[nn.Module] = []
        for c_in, c_out in itertools.pairwise(channels):
            layers += [nn.Conv2d(c_in, c_out, kernel_size=4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        last = channels[-1] * (frame.height // 16) * (frame.width // 16)
        self.score = nn.Sequential(*layers, nn.Flatten(), nn.Linear(last, 1))
        nn.Module.to(self, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        return self.score(images - 0.5)[:, 0]


class AdversarialLearner:
    """Trains ``vae.decoder`` on frames; the encoder stays as it is. ``finish`` puts the averaged decoder in."""

    def __init__(self, vae: FrameVAE, config: AdversarialConfig, seed: int):
        torch.manual_seed(seed)
        self.vae, self.config, self.steps = vae, config, 0
        self.discriminator = Discriminator(vae.config.frame)
        self.averaged = copy.deepcopy(vae.decoder).requires_grad_(False)
        self.for_decoder, self.for_discriminator = (
            torch.optim.Adam(side.parameters(), config.learning_rate, betas=(0.0, 0.99), fused=True)
            for side in (vae.decoder, self.discriminator)
        )
        self.generator = torch.Generator().manual_seed(seed)

    def step(self, frames: Tensor) -> dict[str, Tensor]:
        """One step of both sides on uint8 [B, H, W, C]; returns their losses and the mean scores."""
        images = to_unit(frames)
        codes = self._codes(images)
        made = self.vae.decoder(codes)
        parts = self._learn_to_tell(images, made.detach())
        return parts | self._learn_to_make(images, made)

    def finish(self) -> FrameVAE:
        """The codec, its decoder's weights the average over steps."""
        self.vae.decoder.load_state_dict(self.averaged.state_dict())
        return self.vae

    def _codes(self, images: Tensor) -> Tensor:
        """What is decoded, float [B, Z]: draws from the prior, in the first half of the batch from the posteriors."""
        noise = torch.randn(len(images), self.vae.latent_size, generator=self.generator)
        if self.config.fidelity == 0:
            return noise
        half = len(images) // 2
        with torch.no_grad():
            return torch.cat([self.vae.posterior(images[:half]).rsample(noise[:half]), noise[half:]])

    def _learn_to_tell(self, images: Tensor, made: Tensor) -> dict[str, Tensor]:
        penalised = self.steps % self.config.penalty_every == 0
        images = images.detach().requires_grad_(penalised)
        of_real, of_made = self.discriminator(images), self.discriminator(made)
        loss = softplus(-of_real).mean() + softplus(of_made).mean()
        parts = {"discriminator": loss.detach(), "real": of_real.detach().mean(), "made": of_made.detach().mean()}
        if penalised:
            (slope,) = torch.autograd.grad(of_real.sum(), images, create_graph=True)
            weight = self.config.penalty * self.config.penalty_every / 2
            loss = loss + weight * slope.square().sum((1, 2, 3)).mean()
        self.for_discriminator.zero_grad()
        loss.backward()
        self.for_discriminator.step()
        return parts

    def _learn_to_make(self, images: Tensor, made: Tensor) -> dict[str, Tensor]:
        self.discriminator.requires_grad_(False)
        loss = softplus(-self.discriminator(made)).mean()
        parts = {"decoder": loss.detach()}
        if self.config.fidelity > 0:
            half = len(images) // 2
            error = (made[:half] - images[:half]).square().sum((1, 2, 3)).mean()
            parts["error"] = error.detach()
            loss = loss + self.config.fidelity * error
        self.for_decoder.zero_grad()
        loss.backward()
        self.for_decoder.step()
        self.discriminator.requires_grad_(True)
        self._average()
        return parts

    @torch.no_grad()
    def _average(self) -> None:
        self.steps += 1
        keep = min(self.config.average, (self.steps - 1) / (self.steps + 9))  # the first steps are soon forgotten
        for kept, new in zip(self.averaged.parameters(), self.vae.decoder.parameters(), strict=True):
            kept.lerp_(new, 1 - keep)
