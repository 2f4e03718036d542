"""Rollouts -> a trained codec: what one training step of the VAE is, and when it is good."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from worldvae.augmentation import PATCHES, covered, patch_size, shaded
from worldvae.batches import frame_batches
from worldvae.devices import CapturedStep, autocast, out_of_memory_in_words, pick_device
from worldvae.distributed import ALONE, World
from worldvae.fit import FitConfig, Metrics, fit, settled
from worldvae.frames import to_unit
from worldvae.measures.images import median_frame, psnr
from worldvae.measures.latents import active_units
from worldvae.muon import beside_adam, matrices
from worldvae.objective import (
    LEAST_SIGMA,
    MOVING,
    ObjectiveConfig,
    changed_pixel_weights,
    equivalent_beta,
    kl_pressure,
    negative_elbo,
    optimal_variance,
    worst_pixel_weights,
)
from worldvae.optimisers import Optimisers
from worldvae.rollouts import RolloutStore, split_episodes
from worldvae.vae import Architecture, DiagonalGaussian, FrameVAE, FrameVAEConfig


@dataclass(frozen=True)
class VAETrainingConfig:
    """How a codec is trained.

    Attributes:
        latent_size: Z, the number of latents.
        architecture: of the codec's networks.
        objective: what is minimised.
        passes: how often each training frame is seen.
        batch_size: frames a step.
        optimiser: muon for the networks' weights and Adam for what is no matrix, or too broad a one; or adam for all.
        learning_rate: at its highest, after ``warm_up`` steps; it then falls to nothing in a line.
            ``paper`` wants about 1e-3.
        warm_up: steps; at most a fifth of all.
        colour_jitter: sd of a random gain and shift per frame and channel on the encoder's input;
            the target stays as it was, so codes learn to ignore shades (another renderer's, say).
        covers: share of the two random rectangles, each of one colour, that hide something on the encoder's input;
            the target stays as it was, so codes learn to do without.
        held_out: share of the episodes kept for measuring.
        seed: of weights, order, noise and split.
        device: cpu, cuda, or auto.
        budget_gib: memory for frames; where they take more, windows of them are read ahead (GPU: all of
            them stay on it where they fit).
        compile: let torch.compile fuse the networks: for long trainings on a GPU; on a CPU it did not pay.
    """

    latent_size: int = 32
    architecture: Architecture = "compact"
    objective: ObjectiveConfig = MOVING
    passes: float = 8.0
    batch_size: int = 32
    optimiser: Literal["muon", "adam"] = "muon"
    learning_rate: float = 3e-3
    warm_up: int = 100
    colour_jitter: float = 0.02
    covers: float = 0.0
    held_out: float = 0.1
    seed: int = 0
    device: str = "auto"
    budget_gib: float = 4.0
    compile: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.covers <= 1:
            raise ValueError(f"covers is a share, in [0, 1]: {self.covers}")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out is a share, in [0, 1): {self.held_out}")
        if self.batch_size < 1 or self.passes <= 0:
            raise ValueError(f"batch_size must be >= 1 and passes > 0, got {self.batch_size} and {self.passes:g}")


def train_vae(
    store: RolloutStore,
    config: VAETrainingConfig,
    folder: str | Path,
    world: World = ALONE,
    start: FrameVAE | None = None,
) -> FrameVAE:
    """Trains a codec on the store's frames; resumes what ``folder`` has begun.

    Writes the best codec by held-out loss into ``folder`` (``FrameVAE.load`` reads it), and the
    metrics and checkpoint of ``worldvae.fit``.

    Args:
        world: the processes that train it together, from ``distributed.joined``; each calls this.
        start: a codec of the same kind, from whose weights training sets out instead of new ones.

    Raises:
        ValueError: ``start`` is of another kind, fewer than two episodes (one is held out), no CUDA where asked
            for, or a batch that the processes cannot share equally.
        RuntimeError: out of memory; says what to lower.
    """
    folder = Path(folder)
    train, held_out = split_episodes(len(store), config.held_out, config.seed)
    frames = sum(store.visible_counts(train))
    steps = max(1, round(config.passes * frames / config.batch_size))
    vae_config = FrameVAEConfig(store.frame_spec, config.latent_size, config.architecture)
    learner = VAELearner(config, vae_config, steps, world)
    sample = some_frames(store, train, most=512)
    if start is None:
        learner.vae.start_from(sample)
    elif start.config != vae_config:
        raise ValueError(f"a codec of {start.config} is no start for one of {vae_config}")
    else:
        learner.vae.load_state_dict(start.state_dict())
    if config.objective.weighting == "background":
        median = torch.from_numpy(median_frame(sample.numpy(), len(sample)))
        learner.background = to_unit(median[None]).to(learner.device)
    judge = HeldOut(learner, store, held_out, folder, {"frames": frames, "steps": steps, **asdict(config)})
    per_pass = max(1, round(steps / config.passes))
    budget = int(config.budget_gib * 2**30)

    def batches(start: int) -> Iterator[Tensor]:
        return frame_batches(
            store,
            train,
            config.batch_size,
            config.seed,
            start,
            budget,
            learner.device,
            pairs=looks_back(config.objective),
        )

    remedy = f"lower batch_size (now {config.batch_size}) or budget_gib (now {config.budget_gib:g})"
    with out_of_memory_in_words(remedy):
        fit(
            learner.step,
            batches,
            judge,
            FitConfig(steps, log_every=max(1, per_pass // 2), checkpoint_every=per_pass),
            folder,
            name="frame VAE",
            settings=settled(config, but=("passes", "device", "budget_gib", "compile")),
            observe=judge,
            leads=world.leads,
        )
    world.wait()
    return FrameVAE.load(folder, learner.device)


def mean_colour(store: RolloutStore, episodes: Sequence[int], most: int = 32) -> Tensor:
    """The frames' mean colour, float32 [C] in [0, 1], over at most so many episodes."""
    chosen = episodes[:: -(-len(episodes) // most)]
    colours = [store.visible_frames(e).mean((0, 1, 2)) / 255 for e in chosen]
    return torch.from_numpy(np.mean(colours, 0)).float()


def some_frames(store: RolloutStore, episodes: Sequence[int], most: int) -> Tensor:
    """About so many frames uint8 [B, H, W, C], evenly from all episodes, and some of each.

    From the middle of a stride on: from 0 on, the first frames of episodes would count too often.
    """
    every = max(1, sum(store.visible_counts(episodes)) // most)
    shown = (store.visible_frames(e) for e in episodes)
    # Copies: a view would keep all of its episode's frames in memory.
    return torch.from_numpy(np.concatenate([frames[min(every, len(frames)) // 2 :: every].copy() for frames in shown]))


def looks_back(objective: ObjectiveConfig) -> bool:
    """Whether it needs the frame before."""
    return objective.weighting == "motion" or objective.correlation > 0


def rising_then_falling(step: int, steps: int, warm_up: int) -> float:
    """The share of the highest learning rate at a step: a line up, and a line down to nothing."""
    warm_up = max(1, min(warm_up, steps // 5))
    return min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up))


class VAELearner:
    """The VAE, its optimiser and its noise: all that training changes."""

    def __init__(self, config: VAETrainingConfig, vae_config: FrameVAEConfig, steps: int, world: World = ALONE):
        self.config, self.world = config, world
        self.device = pick_device(config.device)
        torch.manual_seed(config.seed)
        self.vae = FrameVAE(vae_config).to(self.device)
        network = world.share(self.vae)
        self._network = torch.compile(network) if config.compile else network
        self.log_sigma = torch.nn.Parameter(torch.tensor(-2.0, device=self.device))
        self.background: Tensor | None = None  # float [1, C, H, W]: what differs from it counts more
        on_gpu = self.device.type == "cuda"  # there a graph must find the rate in memory
        highest = torch.tensor(config.learning_rate, device=self.device) if on_gpu else config.learning_rate
        weights = matrices(self.vae) if config.optimiser == "muon" else []
        parameters = [*self.vae.parameters(), *([self.log_sigma] if config.objective.sigma == "learned" else [])]
        # The loss falls tenfold in the first steps: moments of a longer memory would keep later steps small.
        both = beside_adam(weights, parameters, highest, betas=(0.9, 0.95), capturable=on_gpu)
        rate = partial(rising_then_falling, steps=steps, warm_up=config.warm_up)
        self.optimisers = Optimisers(both, partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=rate))
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        self._pressure: tuple[tuple[float, float] | None, Tensor] = None, torch.empty(0)
        self._begin()

    def _begin(self) -> None:
        exchanges = self.world.size > 1  # between processes, which no graph captures
        self._learn = self._gradient_step if exchanges else CapturedStep(self._gradient_step, self.device)

    def step(self, frames: Tensor) -> dict[str, Tensor]:
        """One gradient step on uint8 [B, H, W, C] frames on its device; returns the loss's parts.

        Where the frame before counts (``looks_back``) it takes [B, 2, H, W, C]: each frame and that one.

        All processes of the world are given the same frames and draw the same noise for all of them;
        each takes its part of both. So the step is that of a single process (but what an objective takes
        from a batch as a whole, other than its mean and sigma, it takes from each process's part).
        """
        part, (count, *_, channels) = self.world.part, frames.shape
        objective = self.config.objective
        noise = self._normal(count, self.vae.latent_size) * (0.0 if objective.autoencoder else 1.0)
        shades = self.config.colour_jitter * self._normal(2, count, channels, 1, 1)
        size = (count, PATCHES, patch_size(channels)) if self.config.covers else (count, 0)
        patches = torch.rand(size, generator=self.generator, device=self.device)
        pressure = kl_pressure(objective, self.optimisers.steps)
        if pressure != self._pressure[0]:
            self._pressure = pressure, torch.tensor(pressure, device=self.device)
        parts = self._learn(part(frames), part(noise), part(shades, 1), part(patches), self._pressure[1])
        self.optimisers.next_rate()
        return self.world.mean(parts)

    def _gradient_step(
        self, frames: Tensor, noise: Tensor, shades: Tensor, patches: Tensor, pressure: Tensor
    ) -> dict[str, Tensor]:
        objective, before, past = self.config.objective, None, None

        def disturbed(images: Tensor) -> Tensor:
            return covered(shaded(images, shades), patches, self.config.covers)

        if looks_back(objective):
            frames, before = frames[:, 0], to_unit(frames[:, 1])
        images = to_unit(frames)
        with autocast(self.device):
            reconstruction, posterior = self._network(disturbed(images), noise)
            if before is not None and objective.correlation:
                past = self.vae.posterior(disturbed(before))
        weights = self._weights(reconstruction, images, before)
        sigma = self._sigma(reconstruction, images, weights)
        z = posterior.rsample(noise)
        loss, parts = negative_elbo(
            reconstruction,
            images,
            posterior,
            objective,
            sigma=sigma,
            pressure=pressure,
            weights=weights,
            z=z,
            before=past,
        )
        self.optimisers.zero_grad()
        loss.backward()
        if self.log_sigma.grad is not None:
            self.log_sigma.grad = self.world.mean({"sigma": self.log_sigma.grad})["sigma"]
        self.optimisers.step()
        return parts

    def _weights(self, reconstruction: Tensor, images: Tensor, before: Tensor | None) -> Tensor | None:
        objective = self.config.objective
        reference = {"motion": before, "background": self.background}.get(objective.weighting)
        if reference is not None:
            return changed_pixel_weights(images, reference, objective.emphasis)
        if objective.weighting == "worst":
            return worst_pixel_weights(reconstruction, images, objective.emphasis)
        return None

    def _sigma(self, reconstruction: Tensor, images: Tensor, weights: Tensor | None) -> Tensor | float:
        sigma = self.config.objective.sigma
        if sigma == "learned":
            return self.log_sigma.exp().clamp(min=LEAST_SIGMA)
        if sigma == "optimal":
            variance = optimal_variance(reconstruction, images, weights)
            return self.world.mean({"variance": variance})["variance"].sqrt()
        return float(sigma)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device)

    def state_dict(self) -> dict[str, Any]:
        return {
            "vae": self.vae.state_dict(),
            "log_sigma": self.log_sigma.detach(),
            "optimisers": self.optimisers.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.vae.load_state_dict(state["vae"])
        self.log_sigma.data.copy_(state["log_sigma"])
        self.optimisers.load_state_dict(state["optimisers"])
        self.generator.set_state(state["generator"])
        self._begin()  # what was captured learns into the old moments


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
        self.frames = some_frames(store, episodes, self.FRAMES)
        self.best = float("inf")

    @torch.no_grad()
    def __call__(self) -> Metrics:
        """Held-out loss at the posterior mean (nats per frame, all pixels even), KL, PSNR in dB, active units, and
        the beta that the objective would be on a calibrated decoder."""
        vae, objective = self.learner.vae, self.learner.config.objective
        decoded = []
        for chunk in self.frames.split(256):
            with autocast(self.learner.device):
                posterior = vae.posterior(to_unit(chunk.to(self.learner.device)))
                decoded.append((vae.decoder(posterior.mean).float(), posterior.mean, posterior.logvar))
        reconstruction, mean, logvar = (torch.cat(parts) for parts in zip(*decoded, strict=True))
        images = to_unit(self.frames.to(self.learner.device))
        _, parts = negative_elbo(reconstruction, images, DiagonalGaussian(mean, logvar), objective)
        measured = {f"held_out_{key}": parts[key].item() for key in ("loss", "reconstruction", "kl")}
        mse = parts["mse"].item()
        measured["psnr"] = psnr(mse)
        measured["active_units"] = active_units(mean)
        measured["equivalent_beta"] = equivalent_beta(objective, max(mse, LEAST_SIGMA**2))
        if measured["held_out_loss"] < self.best:
            self.best = measured["held_out_loss"]
            vae.noise_sd.fill_(mse**0.5)
            vae.save(self.folder, {**self.summary, **measured})
        return measured

    def state_dict(self) -> dict[str, Any]:
        return {"learner": self.learner.state_dict(), "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.learner.load_state_dict(state["learner"])
        self.best = state["best"]
