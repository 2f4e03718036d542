"""The codec's networks: images to Gaussian parameters, codes to images. Knows nothing of files or training.

``paper`` is World Models' (Ha & Schmidhuber 2018, appendix A.1). ``compact`` spends its arithmetic
where it is needed: pixels meet it in patches of 4x4, the decoder's residual blocks work on small maps, and latents
reach the maps at 1/8 of the size directly too, so that small things need not pass through the coarsest ones.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from worldvae.frames import FrameSpec

WIDTHS = (32, 64, 64)
"""Channels of the compact encoder's maps at 1/4, 1/8 and 1/16 of the frame's size."""
FINE = 12
"""Channels of the maps between latents and those at 1/8."""


class PaperEncoder(nn.Module):
    """float [B, C, 64, 64] -> mean and log-variance, each float [B, Z]."""

    def __init__(self, frame: FrameSpec, latent_size: int):
        super().__init__()
        channels = (frame.channels, 32, 64, 128, 256)
        layers: list[nn.Module] = []
        for c_in, c_out in itertools.pairwise(channels):
            layers += [nn.Conv2d(c_in, c_out, kernel_size=4, stride=2), nn.ReLU()]
        self.convs = nn.Sequential(*layers, nn.Flatten())
        self.mean = nn.Linear(1024, latent_size)
        self.logvar = nn.Linear(1024, latent_size)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.convs(images)
        return self.mean(features), self.logvar(features)


class PaperDecoder(nn.Module):
    """float [B, Z] -> logits of images, float [B, C, 64, 64]."""

    def __init__(self, frame: FrameSpec, latent_size: int):
        super().__init__()
        self.project = nn.Linear(latent_size, 1024)
        self.deconvs = nn.Sequential(
            nn.ConvTranspose2d(1024, 128, kernel_size=5, stride=2),
            nn.ReLU(),
            nn.ConvTranspose2d(128, 64, kernel_size=5, stride=2),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 32, kernel_size=6, stride=2),
            nn.ReLU(),
            nn.ConvTranspose2d(32, frame.channels, kernel_size=6, stride=2),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.deconvs(self.project(z)[:, :, None, None])


class Residual(nn.Module):
    """x + 3x3 convolution of SiLU(x). Without normalisation, which cost time and gained nothing here."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        with torch.no_grad():
            self.conv.weight.mul_(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(nn.functional.silu(x))


class MapOf(nn.Linear):
    """Vectors float [B, Z] -> maps [B, C, H, W], channels last in memory as the convolutions want them."""

    def __init__(self, size: int, channels: int, height: int, width: int):
        super().__init__(size, height * width * channels)
        self.shape = (height, width, channels)

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z).unflatten(1, self.shape).permute(0, 3, 1, 2)


class CompactEncoder(nn.Module):
    """float [B, C, H, W] -> mean and log-variance, each float [B, Z]; H and W are multiples of 16."""

    def __init__(self, frame: FrameSpec, latent_size: int):
        super().__init__()
        quarter, eighth, sixteenth = WIDTHS
        height, width = frame.height // 16, frame.width // 16
        self.to_eighth = nn.Sequential(
            nn.Conv2d(frame.channels, quarter, kernel_size=4, stride=4),
            nn.SiLU(),
            nn.Conv2d(quarter, eighth, kernel_size=4, stride=2, padding=1),
            nn.SiLU(),
        )
        self.to_sixteenth = nn.Sequential(nn.Conv2d(eighth, sixteenth, kernel_size=4, stride=2, padding=1), nn.SiLU())
        self.fine = nn.Conv2d(eighth, FINE, kernel_size=1)
        self.posterior = nn.Linear(height * width * (sixteenth + 4 * FINE), 2 * latent_size)
        with torch.no_grad():
            self.posterior.weight[latent_size:].mul_(0.1)  # variances near 1 at first, whatever the frame

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        eighth = self.to_eighth(images)
        features = torch.cat([self.to_sixteenth(eighth).flatten(1), self.fine(eighth).flatten(1)], dim=1)
        mean, logvar = self.posterior(features).chunk(2, dim=-1)
        return mean, logvar


class CompactDecoder(nn.Module):
    """float [B, Z] -> logits of images, float [B, C, H, W]: the encoder mirrored, with residual blocks and richer
    patches."""

    def __init__(self, frame: FrameSpec, latent_size: int):
        super().__init__()
        quarter, eighth, sixteenth = (48, *WIDTHS[1:])
        height, width = frame.height // 16, frame.width // 16
        self.project = MapOf(latent_size, sixteenth, height, width)
        self.to_eighth = nn.Sequential(
            Residual(sixteenth),
            nn.SiLU(),
            nn.ConvTranspose2d(sixteenth, eighth, kernel_size=4, stride=2, padding=1),
        )
        self.fine = nn.Sequential(
            MapOf(latent_size, FINE, 2 * height, 2 * width),
            nn.Conv2d(FINE, eighth, kernel_size=1),
        )
        self.to_pixels = nn.Sequential(
            Residual(eighth),
            nn.SiLU(),
            nn.ConvTranspose2d(eighth, quarter, kernel_size=4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(quarter, 16 * frame.channels, kernel_size=1),
            nn.PixelShuffle(4),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.to_pixels(self.to_eighth(self.project(z)) + self.fine(z))


ARCHITECTURES: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "paper": (PaperEncoder, PaperDecoder),
    "compact": (CompactEncoder, CompactDecoder),
}
