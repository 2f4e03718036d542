"""The codecs that are compared: the same networks and as many frames for each, trained by other ideas."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from scripts.adversarial import AdversarialConfig, AdversarialLearner
from scripts.frame_sets import FrameSet
from worldvae.frames import to_unit
from worldvae.objective import CALIBRATED, ObjectiveConfig
from worldvae.training import VAELearner, VAETrainingConfig
from worldvae.vae import FrameVAE, FrameVAEConfig

BATCH_SIZE = 32
FINE_TUNING = AdversarialConfig(fidelity=0.1)


@dataclass(frozen=True)
class Contender:
    """An idea, and how to train it.

    Attributes:
        train: (frames, steps, seed) -> a codec.
        noisy: its codes are Gaussians with a likelihood; an autoencoder's are points.
    """

    train: Callable[[FrameSet, int, int], FrameVAE]
    noisy: bool = True


def by_objective(objective: ObjectiveConfig, frames: FrameSet, steps: int, seed: int) -> FrameVAE:
    """Encoder and decoder together."""
    return _learned(_learner(objective, frames, steps, seed), frames, steps, seed)


def gan(frames: FrameSet, steps: int, seed: int) -> FrameVAE:
    """A generator that is the codec's decoder; afterwards, in a third as many steps more, an encoder to it.

    That encoder maximises the ELBO of the finished generator, and so bounds its likelihood.
    """
    learner = _learner(CALIBRATED, frames, max(1, steps // 3), seed)
    images = to_unit(torch.from_numpy(frames.train[:512]))
    learner.vae.start_from_colour(images.mean((0, 2, 3)))  # a mean picture is told at once, and little is learned
    _adversarially(learner.vae, AdversarialConfig(), frames, steps, seed)
    learner.vae.decoder.requires_grad_(False)
    return _learned(learner, frames, max(1, steps // 3), seed)


def fine_tuned(frames: FrameSet, steps: int, seed: int) -> FrameVAE:
    """A VAE in half of the steps; in the others its decoder learns adversarially, its encoder frozen."""
    vae = by_objective(CALIBRATED, frames, steps - steps // 2, seed)
    return _adversarially(vae, FINE_TUNING, frames, steps // 2, seed)


CONTENDERS: dict[str, Contender] = {
    "ae": Contender(partial(by_objective, replace(CALIBRATED, autoencoder=True)), noisy=False),
    "vae": Contender(partial(by_objective, CALIBRATED)),
    "beta_vae": Contender(partial(by_objective, replace(CALIBRATED, beta=4.0))),
    "beta_tcvae": Contender(partial(by_objective, replace(CALIBRATED, total_correlation=6.0))),
    "gan": Contender(gan),
    "vae_gan": Contender(fine_tuned),
}


def _learner(objective: ObjectiveConfig, frames: FrameSet, steps: int, seed: int) -> VAELearner:
    config = VAETrainingConfig(
        latent_size=frames.latent_size,
        objective=objective,
        batch_size=BATCH_SIZE,
        optimiser="adam",  # which the GANs have too
        colour_jitter=0.0,
        seed=seed,
        device="cpu",
    )
    learner = VAELearner(config, FrameVAEConfig(frames.spec, frames.latent_size), steps)
    learner.vae.start_from(torch.from_numpy(frames.train[:512]))
    return learner


def _learned(learner: VAELearner, frames: FrameSet, steps: int, seed: int) -> FrameVAE:
    for batch in itertools.islice(frames.batches(BATCH_SIZE, seed), steps):
        learner.step(batch)
    return learner.vae


def _adversarially(vae: FrameVAE, config: AdversarialConfig, frames: FrameSet, steps: int, seed: int) -> FrameVAE:
    learner = AdversarialLearner(vae, config, seed)
    for batch in itertools.islice(frames.batches(BATCH_SIZE, seed), steps):
        learner.step(batch)
    return learner.finish()
