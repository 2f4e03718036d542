"""How well the next codes are foretold: the world model beside two baselines that it must beat.

Likelihood per step, and the error of forecasts that feed on themselves (open loop).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from agents.sequences import Trajectories, draw
from agents.world_model import WorldModel

CONTEXT = 8
"""Real codes that a forecast is given before it is on its own."""
HORIZONS = (1, 2, 4, 8, 16)
"""Steps ahead at which open-loop forecasts are compared with what came."""


class Forecaster(Protocol):
    """Foretells codes from codes and actions."""

    def nll(self, z: Tensor, a_t: Tensor) -> Tensor:
        """-log p(z_tp1 | z, a up to t) in nats a step [B, T], of z [B, T+1, Z] and a_t [B, T, A]."""

    def imagine(self, context: Tensor, actions: Tensor) -> Tensor:
        """[B, C, Z] and [B, C-1+S, A] -> the S codes after the context [B, S, Z]."""


class SameAsNow:
    """z_tp1 = z_t + noise, its sd fitted per latent."""

    def __init__(self, z_t: Tensor, a_t: Tensor, z_tp1: Tensor):
        self.sd = (z_tp1 - z_t).square().mean(0).sqrt().clamp(min=1e-6)

    def nll(self, z: Tensor, a_t: Tensor) -> Tensor:
        standard = (z[:, 1:] - z[:, :-1]) / self.sd
        return (0.5 * standard.square() + self.sd.log() + 0.5 * math.log(2 * math.pi)).sum(-1)

    def imagine(self, context: Tensor, actions: Tensor) -> Tensor:
        return context[:, -1:].expand(-1, actions.shape[1] - context.shape[1] + 1, -1)


class LinearGaussian:
    """z_tp1 = A z_t + B a_t + c + noise, by least squares, the noise's full covariance fitted."""

    def __init__(self, z_t: Tensor, a_t: Tensor, z_tp1: Tensor):
        inputs, outputs = self._inputs(z_t, a_t).double(), z_tp1.double()
        # one-hot actions add up to the constant: only the CPU has a driver for such columns
        weights = torch.linalg.lstsq(inputs.cpu(), outputs.cpu(), driver="gelsd").solution.to(z_t.device)
        residuals = outputs - inputs @ weights
        covariance = residuals.T @ residuals / len(residuals) + 1e-8 * torch.eye(z_t.shape[1]).to(residuals)
        self.weights = weights.to(z_t)
        self.noise = MultivariateNormal(torch.zeros_like(outputs[0]), covariance)  # double: few rows leave it singular

    def nll(self, z: Tensor, a_t: Tensor) -> Tensor:
        return -self.noise.log_prob((z[:, 1:] - self._mean(z[:, :-1], a_t)).double()).to(z)

    def imagine(self, context: Tensor, actions: Tensor) -> Tensor:
        z, dreamt = context[:, -1], []
        for t in range(context.shape[1] - 1, actions.shape[1]):
            z = self._mean(z, actions[:, t])
            dreamt.append(z)
        return torch.stack(dreamt, 1)

    def _mean(self, z_t: Tensor, a_t: Tensor) -> Tensor:
        return self._inputs(z_t, a_t) @ self.weights

    @staticmethod
    def _inputs(z_t: Tensor, a_t: Tensor) -> Tensor:
        return torch.cat([z_t, a_t, torch.ones_like(z_t[..., :1])], -1)


class Learned:
    """The world model, asked as the baselines are: its forecast is the mean of a few dreams.

    Feeding back expectations instead is worse far ahead: they are no codes that it has ever seen.
    """

    DREAMS = 16

    def __init__(self, model: WorldModel):
        self.model = model

    @torch.no_grad()
    def nll(self, z: Tensor, a_t: Tensor) -> Tensor:
        return -self.model(z[:, :-1], a_t)[0].z_tp1.log_prob(z[:, 1:]).sum(-1)

    def imagine(self, context: Tensor, actions: Tensor) -> Tensor:
        generator = torch.Generator(context.device).manual_seed(0)
        return torch.stack([self.model.imagine(context, actions, generator) for _ in range(self.DREAMS)]).mean(0)


@dataclass(frozen=True)
class ForecastScores:
    """What a forecaster reached on held-out episodes.

    Attributes:
        nll: nats per step, on codes drawn from the posteriors.
        open_loop: steps ahead -> squared error over the codes' variance (1: knowing nothing).
    """

    nll: float
    open_loop: dict[int, float]


def compare(model: WorldModel, train: Trajectories, held_out: Trajectories, seed: int = 0) -> dict[str, ForecastScores]:
    """The model and both baselines on the same draws of the held-out codes.

    The baselines are fitted on ``train``. Horizons for which no held-out episode is long enough are
    left out.
    """
    known = _transitions(train, seed)
    forecasters: dict[str, Forecaster] = {
        "world model": Learned(model),
        "same as now": SameAsNow(*known),
        "linear-Gaussian": LinearGaussian(*known),
    }
    return {
        name: ForecastScores(nll_per_step(f, held_out, seed), open_loop(f, held_out)) for name, f in forecasters.items()
    }


def nll_per_step(forecaster: Forecaster, data: Trajectories, seed: int = 0) -> float:
    """Mean over all steps whose next frame was seen, in nats; the same seed draws the same codes."""
    generator = torch.Generator(data.device).manual_seed(seed)
    total, count = 0.0, 0
    for sequences in data.whole():
        nll = forecaster.nll(draw(sequences.codes, generator), sequences.a_t)
        total += nll[sequences.seen_tp1].sum().item()
        count += int(sequences.seen_tp1.sum())
    return total / max(count, 1)


def open_loop(forecaster: Forecaster, data: Trajectories, most: int = 512) -> dict[int, float]:
    """Squared error of k-step forecasts over the codes' variance, by k, from posterior means."""
    rows = forecast_rows(data, most)
    if rows is None:
        return {}
    ahead = rows.shape[1] - CONTEXT
    means = data.codes.mean[rows]
    dreamt = forecaster.imagine(means[:, :CONTEXT], data.actions[rows[:, :-1]])
    error = (dreamt - means[:, CONTEXT:]).square().sum(-1).mean(0)
    variance = data.codes.mean[data.visible].var(0, correction=0).sum()
    return {k: (error[k - 1] / variance).item() for k in HORIZONS if k <= ahead}


def forecast_rows(data: Trajectories, most: int) -> Tensor | None:
    """int64 [W, CONTEXT + k]: at most so many windows, evenly, of the longest horizon k there is; None: of none."""
    longest_first = (data.windows(CONTEXT + k) for k in reversed(HORIZONS))
    rows = next((rows for rows in longest_first if len(rows)), None)
    return None if rows is None else rows[:: -(-len(rows) // most)]


def _transitions(data: Trajectories, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Every transition between seen frames, codes drawn: z_t [N, Z], a_t [N, A], z_tp1 [N, Z]."""
    generator = torch.Generator(data.device).manual_seed(seed)
    parts = []
    for sequences in data.whole():
        z, seen = draw(sequences.codes, generator), sequences.seen_tp1
        parts.append((z[:, :-1][seen], sequences.a_t[seen], z[:, 1:][seen]))
    z_t, a_t, z_tp1 = (torch.cat(column) for column in zip(*parts, strict=True))
    return z_t, a_t, z_tp1
