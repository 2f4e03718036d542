"""Rollouts -> a trained codec: what one training step of the VAE is, and when it is good."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldvae.batches import frame_batches
from worldvae.fit import FitConfig, Metrics, autocast, fit, load_optimiser, pick_device
from worldvae.frames import to_unit
from worldvae.measures.images import psnr
from worldvae.measures.latents import active_units
from worldvae.objective import ObjectiveConfig, negative_elbo
from worldvae.rollouts import RolloutStore, split_episodes
from worldvae.vae import FrameVAE, FrameVAEConfig


@dataclass(frozen=True)
class VAETrainingConfig:
    """How a codec is trained.

    Attributes:
        latent_size: Z, the number of latents.
        objective: what is minimised.
        passes: how often each training frame is seen.
        batch_size: frames a step.
        learning_rate: Adam's.
        colour_jitter: sd of a random gain and shift per frame and channel on the encoder's input;
            the target stays as it was, so codes learn to ignore shades (another renderer's, say).
        held_out: share of the episodes kept for measuring.
        seed: of weights, order, noise and split.
        device: cpu, cuda, or auto.
    """

    latent_size: int = 32
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    passes: float = 8.0
    batch_size: int = 128
    learning_rate: float = 1e-3
    colour_jitter: float = 0.02
    held_out: float = 0.1
    seed: int = 0
    device: str = "auto"


def train_vae(store: RolloutStore, config: VAETrainingConfig, folder: str | Path) -> FrameVAE:
    """Trains a codec on the store's frames; resumes what ``folder`` has begun.

    Writes the best codec by held-out loss into ``folder`` (``FrameVAE.load`` reads it), and the
    metrics and checkpoint of ``worldvae.fit``.

    Raises:
        ValueError: fewer than two episodes (one is held out), or no CUDA where asked for.
    """
    folder = Path(folder)
    train, held_out = split_episodes(len(store), config.held_out, config.seed)
    learner = VAELearner(config, FrameVAEConfig(frame=store.frame_spec, latent_size=config.latent_size))
    learner.vae.start_from_colour(mean_colour(store, train))
    frames = sum(store.visible_counts(train))
    steps = max(1, round(config.passes * frames / config.batch_size))
    judge = HeldOut(learner, store, held_out, folder, {"frames": frames, "steps": steps, **asdict(config)})
    per_pass = max(1, round(steps / config.passes))
    fit(
        learner.step,
        partial(frame_batches, store, train, config.batch_size, config.seed, device=learner.device),
        judge,
        FitConfig(steps, log_every=max(1, per_pass // 2), checkpoint_every=per_pass),
        folder,
        name="frame VAE",
        observe=judge,
    )
    return FrameVAE.load(folder, learner.device)


def mean_colour(store: RolloutStore, episodes: Sequence[int], most: int = 32) -> Tensor:
    """The frames' mean colour, float32 [C] in [0, 1], over at most so many episodes."""
    chosen = episodes[:: -(-len(episodes) // most)]
    colours = [store.visible_frames(e).mean((0, 1, 2)) / 255 for e in chosen]
    return torch.from_numpy(np.mean(colours, 0)).float()


class VAELearner:
    """The VAE, its optimiser and its noise: all that training changes."""

    def __init__(self, config: VAETrainingConfig, vae_config: FrameVAEConfig):
        self.config = config
        self.device = pick_device(config.device)
        torch.manual_seed(config.seed)
        self.vae = FrameVAE(vae_config).to(self.device)
        self.optimiser = torch.optim.Adam(self.vae.parameters(), config.learning_rate, fused=True)
        self.generator = torch.Generator(self.device).manual_seed(config.seed)

    def step(self, frames: Tensor) -> dict[str, Tensor]:
        """One gradient step on uint8 [B, H, W, C] frames on its device; returns the loss's parts."""
        images = to_unit(frames)
        with autocast(self.device):
            posterior = self.vae.posterior(self._jitter(images))
            noise = torch.randn(posterior.mean.shape, generator=self.generator, device=self.device)
            reconstruction = self.vae.decoder(posterior.rsample(noise))
        loss, parts = negative_elbo(reconstruction, images, posterior, self.config.objective)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return parts

    def _jitter(self, images: Tensor) -> Tensor:
        if self.config.colour_jitter == 0:
            return images
        shape = (2, len(images), images.shape[1], 1, 1)
        gain, shift = self.config.colour_jitter * torch.randn(shape, generator=self.generator, device=self.device)
        return torch.addcmul(images + shift, images, gain).clamp_(0, 1)

    def state_dict(self) -> dict[str, Any]:
        return {
            "vae": self.vae.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.vae.load_state_dict(state["vae"])
        load_optimiser(self.optimiser, state["optimiser"])
        self.generator.set_state(state["generator"])


class HeldOut:
    """Measures the learner on held-out episodes and keeps the best codec; resumes with it."""

    FRAMES = 1024

    def __init__(
        self,
        learner: VAELearner,
        store: RolloutStore,
        episodes: Sequence[int],
        folder: Path,
        summary: dict[str, Any],
    ):
        self.learner, self.folder, self.summary = learner, folder, summary
        frames = np.concatenate([store.visible_frames(e) for e in episodes])
        every = max(1, len(frames) // self.FRAMES)
        self.frames = torch.from_numpy(frames[::every].copy())
        self.best = float("inf")

    @torch.no_grad()
    def __call__(self) -> Metrics:
        """Held-out loss at the posterior mean (nats per frame), KL, PSNR in dB, active units."""
        vae, objective = self.learner.vae, self.learner.config.objective
        totals: dict[str, float] = {}
        means = []
        for chunk in self.frames.split(256):
            images = to_unit(chunk.to(self.learner.device))
            with autocast(self.learner.device):
                posterior = vae.posterior(images)
                reconstruction = vae.decoder(posterior.mean)
            _, parts = negative_elbo(reconstruction, images, posterior, objective)
            means.append(posterior.mean)
            for key, value in parts.items():
                totals[key] = totals.get(key, 0.0) + value.item() * len(chunk) / len(self.frames)
        measured = {f"held_out_{key}": totals[key] for key in ("loss", "reconstruction", "kl")}
        measured["psnr"] = psnr(totals["mse"])
        measured["active_units"] = active_units(torch.cat(means))
        if measured["held_out_loss"] < self.best:
            self.best = measured["held_out_loss"]
            vae.noise_sd.fill_(totals["mse"] ** 0.5)
            vae.save(self.folder, {**self.summary, **measured})
        return measured

    def state_dict(self) -> dict[str, Any]:
        return {"learner": self.learner.state_dict(), "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.learner.load_state_dict(state["learner"])
        self.best = state["best"]
