"""The frame VAE: uint8 frames in, Gaussian codes out, and back.

Knows its own preprocessing (the frame spec travels with it) but nothing of environments, training
or agents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from worldvae.checkpoint import CheckpointError, load_model, save_model
from worldvae.frames import FrameSpec, to_uint8, to_unit
from worldvae.networks import ARCHITECTURES

Architecture = Literal["compact", "paper"]
KIND = "frame-vae"
LEAST_SD = 0.1
"""Frames' sd below which the encoder magnifies them no further: the rare large difference would blow its codes up."""
MOST_LOGVAR = 5.0
"""A posterior twelve times as wide as the prior says nothing; wider ones only overflow. Below the free bits'
floor nothing else would hold them."""
CHUNK = {"cpu": 256, "cuda": 8192}
"""Frames encoded or decoded at once, by device: bounds memory, and larger is not faster."""


@dataclass(frozen=True)
class DiagonalGaussian:
    """Independent normals: ``mean`` and ``logvar`` float [.., Z]."""

    mean: Tensor
    logvar: Tensor

    @property
    def sd(self) -> Tensor:
        """float [.., Z]"""
        return (0.5 * self.logvar).exp()

    def rsample(self, noise: Tensor) -> Tensor:
        """mean + sd * noise [.., Z]: differentiable in mean and sd (Kingma & Welling 2014)."""
        return self.mean + self.sd * noise

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """A draw [.., Z] from ``generator``, one on the CPU (torch's global one by default)."""
        noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype)
        return self.rsample(noise.to(self.mean.device))

    def kl(self) -> Tensor:
        """KL to the unit Gaussian in nats per dimension [.., Z]."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1 - self.logvar)


@dataclass(frozen=True)
class FrameVAEConfig:
    """What a codec is built of.

    Attributes:
        frame: the frames it takes and gives.
        latent_size: Z, the number of latents.
        architecture: ``compact``, for heights and widths of multiples of 16, or ``paper``, the published
            one, for 64x64 frames.
    """

    frame: FrameSpec = field(default_factory=FrameSpec)
    latent_size: int = 32
    architecture: Architecture = "compact"

    def __post_init__(self) -> None:
        if self.latent_size < 1:
            raise ValueError(f"latent_size must be >= 1, got {self.latent_size}")
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"unknown architecture {self.architecture!r}, there are: {', '.join(ARCHITECTURES)}")
        size = self.frame.height, self.frame.width
        if self.architecture == "paper" and size != (64, 64):
            raise ValueError(f"architecture 'paper' takes 64x64 frames, not {self.frame.shape}; 'compact' takes others")
        if self.architecture == "compact" and any(n % 16 for n in size):
            raise ValueError(f"architecture 'compact' takes heights and widths of multiples of 16, not {size}")


class Encoder(nn.Module):
    """Images float [B, C, H, W] in [0, 1] -> mean and log-variance, each [B, Z].

    The network sees what differs from the mean frame, in units of its sd: small things in large still
    pictures are then no whisper.
    """

    mean: Tensor
    sd: Tensor

    def __init__(self, net: nn.Module, frame: FrameSpec):
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.zeros(1, frame.channels, frame.height, frame.width))
        self.register_buffer("sd", torch.tensor(1.0))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.net((images - self.mean) / self.sd)


class Decoder(nn.Module):
    """Codes float [B, Z] -> images float [B, C, H, W] in [0, 1]: the mean frame, and what the network adds to it."""

    background: Tensor

    def __init__(self, net: nn.Module, frame: FrameSpec):
        super().__init__()
        self.net = net
        self.register_buffer("background", torch.zeros(1, frame.channels, frame.height, frame.width))  # as logits

    def forward(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.net(z) + self.background)


class FrameVAE(nn.Module):
    """A convolutional VAE over frames.

    ``encode``, ``decode``, ``sample`` and ``novelty`` work on uint8 frames, numpy or torch, with
    any leading shape; ``posterior`` and ``decoder`` on float images, for training.
    """

    noise_sd: Tensor

    def __init__(self, config: FrameVAEConfig | None = None):
        super().__init__()
        self.config = config or FrameVAEConfig()
        encoder, decoder = ARCHITECTURES[self.config.architecture]
        frame = self.config.frame
        self.encoder = Encoder(encoder(frame, self.latent_size), frame)
        self.decoder = Decoder(decoder(frame, self.latent_size), frame)
        self.register_buffer("noise_sd", torch.tensor(1.0))
        self.sha256 = ""
        nn.Module.to(self, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def latent_size(self) -> int:
        """Z"""
        return self.config.latent_size

    @property
    def device(self) -> torch.device:
        return self.noise_sd.device

    @torch.no_grad()
    def start_from(self, frames: Tensor) -> None:
        """Makes an untrained codec see and paint what differs from the mean of frames uint8 [B, H, W, C].

        Without it the first steps go into the mean picture, where small things are too faint to be noticed, and
        every pixel of a dark environment is pushed to black, far into the sigmoid's flat end.
        """
        images = to_unit(frames.to(self.device))
        mean = images.mean(0, keepdim=True)
        self.encoder.mean.copy_(mean)
        self.encoder.sd.copy_((images - mean).square().mean().sqrt().clamp(min=LEAST_SD))
        self.start_from_colour(mean)

    @torch.no_grad()
    def start_from_colour(self, colour: Tensor) -> None:
        """Makes the untrained decoder paint ``colour``, float in [0, 1]: [C], or a picture [1, C, H, W]."""
        logit = torch.logit(colour.to(self.device).clamp(0.01, 0.99))
        self.decoder.background.copy_(logit if logit.ndim == 4 else logit[:, None, None])

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, DiagonalGaussian]:
        """images float [B, C, H, W] in [0, 1] and noise [B, Z] -> reconstructions of a sample, and the posterior."""
        posterior = self.posterior(images)
        return self.decoder(posterior.rsample(noise)), posterior

    def posterior(self, images: Tensor) -> DiagonalGaussian:
        """float [B, C, H, W] in [0, 1] -> q(z | x), in float32 under autocast too."""
        mean, logvar = self.encoder(images)
        logvar = logvar.float()
        beyond = (logvar - MOST_LOGVAR).relu().detach()  # taken off with the gradient left as it is: it leads back
        return DiagonalGaussian(mean.float(), logvar - beyond)

    @torch.no_grad()
    def encode(self, frames: NDArray[np.uint8] | Tensor) -> DiagonalGaussian:
        """The posterior of frames.

        Args:
            frames: uint8 [.., H, W, C] of the codec's own shape, any leading shape.

        Returns:
            DiagonalGaussian of float32 [.., Z] on the codec's device.

        Raises:
            TypeError: not uint8. ValueError: another frame shape.
        """
        flat, lead = self._flat(frames)
        parts = [self.posterior(to_unit(chunk.to(self.device))) for chunk in flat.split(self._chunk)]
        shape = (*lead, self.latent_size)
        mean = torch.cat([p.mean for p in parts]).reshape(shape)
        return DiagonalGaussian(mean, torch.cat([p.logvar for p in parts]).reshape(shape))

    @torch.no_grad()
    def decode(self, z: NDArray[Any] | Tensor) -> Any:
        """Latents [.., Z] -> uint8 frames [.., H, W, C]; numpy in, numpy out, torch in, torch out."""
        latents = torch.as_tensor(z, dtype=torch.float32, device=self.device)
        if latents.shape[-1:] != (self.latent_size,):
            raise ValueError(f"latents must be [.., {self.latent_size}], got {tuple(latents.shape)}")
        flat = latents.reshape(-1, self.latent_size)
        decoded = torch.cat([to_uint8(self.decoder(chunk)) for chunk in flat.split(self._chunk)])
        frames = decoded.reshape(*latents.shape[:-1], *self.config.frame.shape)
        return frames if isinstance(z, Tensor) else frames.cpu().numpy()

    def sample(self, n: int, seed: int = 0) -> NDArray[np.uint8]:
        """n frames uint8 [n, H, W, C] decoded from the prior."""
        noise = torch.randn(n, self.latent_size, generator=torch.Generator().manual_seed(seed))
        return self.decode(noise.numpy())

    @torch.no_grad()
    def novelty(self, frames: NDArray[np.uint8] | Tensor) -> NDArray[np.float32]:
        """How unlike its training frames each frame is: float32 [..], in nats.

        The negative ELBO at the posterior mean, with the pixel noise fitted on held-out frames and
        the constant left out: squared error / (2 sd^2) + KL. Compare it with that of known frames.
        """
        flat, lead = self._flat(frames)
        scores = []
        for chunk in flat.split(self._chunk):
            images = to_unit(chunk.to(self.device))
            posterior = self.posterior(images)
            error = (self.decoder(posterior.mean) - images).square().sum((1, 2, 3))
            scores.append(error / (2 * self.noise_sd**2) + posterior.kl().sum(-1))
        return torch.cat(scores).reshape(lead).cpu().numpy()

    def save(self, folder: str | Path, training: Mapping[str, Any] | None = None) -> None:
        """Writes ``model.safetensors`` and ``config.json`` (with a summary of its training)."""
        save_model(Path(folder), KIND, self, {"config": asdict(self.config), "training": dict(training or {})})

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> FrameVAE:
        """Reads what ``save`` wrote, ready to encode.

        Raises:
            CheckpointError: nothing there, another kind, a newer format, or damaged files.
        """
        tensors, header = load_model(Path(folder), KIND)
        try:
            frame = header["config"]["frame"]
            spec = FrameSpec(**{**frame, "crop": tuple(frame["crop"])})
            vae = cls(FrameVAEConfig(**{**header["config"], "frame": spec}))
            vae.load_state_dict(tensors)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{folder} does not hold a frame VAE this version can build: {error}") from error
        vae.sha256 = header["sha256"]
        return vae.to(device).eval()

    @property
    def _chunk(self) -> int:
        return CHUNK.get(self.device.type, CHUNK["cpu"])

    def _flat(self, frames: NDArray[np.uint8] | Tensor) -> tuple[Tensor, tuple[int, ...]]:
        tensor = frames if isinstance(frames, Tensor) else torch.from_numpy(np.ascontiguousarray(frames))
        if tensor.dtype != torch.uint8:
            raise TypeError(f"frames must be uint8 in 0..255, these are {tensor.dtype}")
        if tuple(tensor.shape[-3:]) != self.config.frame.shape:
            raise ValueError(
                f"frames must be [.., {', '.join(map(str, self.config.frame.shape))}], got "
                f"{tuple(tensor.shape)}; worldvae.to_frames(pixels, vae.config.frame) makes them"
            )
        return tensor.reshape(-1, *self.config.frame.shape), tuple(tensor.shape[:-3])
