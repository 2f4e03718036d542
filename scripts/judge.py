"""All that is measured of a codec on a set of frames, and of the set itself, as nested numbers.

Where a measure has no meaning for an idea (an autoencoder's bits), it is None.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from scripts.contenders import Contender
from scripts.frame_sets import FrameSet, shifted
from scripts.state_regressor import StateRegressor, r_squared
from worldvae.frames import Frames
from worldvae.latents import quantise, restore
from worldvae.measures.disentanglement import dci, factor_vae_score, mutual_information_gap
from worldvae.measures.images import image_format_sizes, laplacian_variance, psnr, squared_error
from worldvae.measures.likelihood import held_out_likelihood
from worldvae.measures.samples import (
    dropped_modes,
    evenness,
    fidelity,
    neighbour_novelty,
    novelty_auroc,
    within_reach,
)
from worldvae.vae import FrameVAE

MOST = 2000
"""Frames that a measure looks at, where it needs no more."""
DCI_FRAMES = 4000
PATHS, POINTS = 200, 11
COMMON = 0.004
"""Least share of the real frames that makes a value one that samples should show."""

Numbers = dict[str, Any]


class Judge:
    """Judges codecs on one set of frames; what they are all held against is worked out once."""

    def __init__(self, frames: FrameSet, regressor: StateRegressor):
        self.frames, self.regressor = frames, regressor
        self.real = frames.held_out[:MOST]
        self.train = frames.train[:MOST]
        self.strange = shifted(self.real[: len(self.real) // 2], frames.strangers[: len(self.real) // 2])
        self.known = self.real[len(self.real) // 2 :]
        self.features, states = regressor.read(self.real)
        self.modes = _flat(frames.modes(states))
        self.sharpness = laplacian_variance(self.real)
        self.formats = image_format_sizes(self.real[:200])

    def reference(self) -> Numbers:
        """The set's own numbers: training frames as if they were samples, image formats, novelty without a model."""
        scores = {name: neighbour_novelty(self.train, some) for name, some in self.strange.items()}
        known = neighbour_novelty(self.train, self.known)
        return {
            "regressor_r2": r_squared(self.regressor, self.real, self.frames.held_out_states[:MOST]),
            "prior": self._likeness(self.train),
            "novelty": _aurocs(known, scores),
            "formats": {
                name: {"bytes": size, "psnr": None if math.isinf(quality) else quality}  # JSON knows no infinity
                for name, (size, quality) in self.formats.items()
            },
        }

    def __call__(self, vae: FrameVAE, contender: Contender) -> Numbers:
        """The codec's numbers; ``noise_sd`` of the codec is fitted on training frames."""
        codes = vae.encode(self.real).mean.numpy()
        made = vae.decode(codes)
        vae.noise_sd.fill_(max(_mse(self.train, vae.decode(vae.encode(self.train).mean.numpy())), 1e-9) ** 0.5)
        return {
            "psnr": psnr(_mse(self.real, made)),
            "sharpness": laplacian_variance(made) / self.sharpness,
            **self._likelihood(vae, contender),
            "prior": self._likeness(vae.sample(len(self.real))),
            "fitted_prior": self._likeness(_from_fitted_gaussian(vae, codes)),
            "interpolation": self._interpolation(vae, codes),
            "bytes": self._bytes(vae, codes),
            "novelty": self._novelty(vae, contender),
            **self._disentanglement(vae),
        }

    def _likeness(self, samples: Frames) -> Numbers:
        """How samples lie among the real frames, in the regressor's features; which common modes none shows.

        A sample that lies nowhere among the real ones shows nothing.
        """
        features, states = self.regressor.read(samples)
        fitting = within_reach(self.features, features)
        shown = _flat(self.frames.modes(states[fitting])) if fitting.any() else []
        dropped = dropped_modes(self.modes, shown, least=max(2, math.ceil(COMMON * len(self.real))))
        sharpness = laplacian_variance(samples) / self.sharpness
        return {**asdict(fidelity(self.features, features)), "dropped": dropped, "sharpness": sharpness}

    def _likelihood(self, vae: FrameVAE, contender: Contender) -> Numbers:
        if not contender.noisy:
            return {"bits_per_dim": None, "kl": None, "elbo": None}
        told = held_out_likelihood(vae, torch.from_numpy(self.train), torch.from_numpy(self.real))
        return {"bits_per_dim": told.bits_per_dim, "kl": told.kl, "elbo": told.elbo}

    def _interpolation(self, vae: FrameVAE, codes: np.ndarray) -> Numbers:
        """Lines between codes of frames: do the frames along them change evenly, and is the middle a real one?"""
        ends = codes[: 2 * PATHS]
        paths = straight(ends[::2], ends[1::2], POINTS)
        made = vae.decode(paths)
        features, _ = self.regressor.read(made.reshape(-1, *self.frames.spec.shape))
        features = features.reshape(*paths.shape[:2], -1)
        return {
            "evenness_pixels": evenness(made / np.float32(255)),
            "evenness_features": evenness(features),
            "precision": float(within_reach(self.features, features[:, POINTS // 2]).mean()),
        }

    def _bytes(self, vae: FrameVAE, codes: np.ndarray) -> Numbers:
        """One byte a latent, and the image format that needs the fewest bytes for as good a picture."""
        quality = psnr(_mse(self.real, vae.decode(restore(quantise("mean", codes, "uint8"), "mean"))))
        size, name = min((size, name) for name, (size, good) in self.formats.items() if good >= quality)
        told = {"code": codes.shape[1], "image": size, "saved": size - codes.shape[1]}
        return {**told, "psnr": quality, "image_format": name}

    def _novelty(self, vae: FrameVAE, contender: Contender) -> Numbers:
        def score(frames: Frames) -> np.ndarray:
            if contender.noisy:
                return vae.novelty(frames)
            return np.square(vae.decode(vae.encode(frames).mean.numpy()) / 255.0 - frames / 255.0).mean((1, 2, 3))

        return _aurocs(score(self.known), {name: score(some) for name, some in self.strange.items()})

    def _disentanglement(self, vae: FrameVAE) -> Numbers:
        if self.frames.factors is None:
            return {"mig": None, "dci": None, "factor_vae": None}
        codes, factors = vae.encode(self.frames.held_out).mean.numpy(), self.frames.factors
        return {
            "mig": mutual_information_gap(codes, factors),
            "dci": asdict(dci(codes[:DCI_FRAMES], factors[:DCI_FRAMES], self.frames.unordered)),
            "factor_vae": factor_vae_score(codes, factors),
        }


def straight(first: np.ndarray, last: np.ndarray, points: int) -> np.ndarray:
    """Codes [R, points, Z] on the lines from the first [R, Z] to the last."""
    along = np.linspace(0, 1, points, dtype=np.float32)[:, None]
    return first[:, None] + (last - first)[:, None] * along


def _from_fitted_gaussian(vae: FrameVAE, codes: np.ndarray) -> Frames:
    """As many frames, decoded from a Gaussian with the codes' mean and covariance [B, Z]: a prior made afterwards."""
    random = np.random.default_rng(0)  # a latent that stands still makes the covariance singular, which does no harm
    draws = random.multivariate_normal(codes.mean(0), np.cov(codes.T), len(codes), check_valid="ignore")
    return vae.decode(draws.astype(np.float32))


def _aurocs(known: np.ndarray, strange: dict[str, np.ndarray]) -> Numbers:
    each = {name: novelty_auroc(known, scores) for name, scores in strange.items()}
    return {**each, "mean": float(np.mean(list(each.values())))}


def _mse(frames: Frames, made: Frames) -> float:
    """Of pixels in [0, 1]."""
    return float(squared_error(made, frames).mean())


def _flat(lists: list[list[Any]]) -> list[Any]:
    return [value for some in lists for value in some]
