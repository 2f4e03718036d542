"""When does an episode end? Rare ends learned in balance, their probabilities calibrated and then judged.

Knows nothing of models: logits in, and whether an episode ended there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional


def imbalance(ends: int, steps: int) -> float:
    """Steps that go on for each that ends an episode; 1 where none does or all do."""
    return (steps - ends) / ends if 0 < ends < steps else 1.0


def calibrate(logits: Tensor, ends: Tensor, weight: float) -> Tensor:
    """(shift, gain) float32 [2]: the calibrated logit is shift + gain * logit (Platt 1999).

    They maximise the posterior under unit Gaussians around what undoes the weight exactly: -log(weight) and 1.

    Args:
        logits: float32 [R], of a model whose loss counted ends ``weight`` times.
        ends: float32 [R], 1 where an episode ended.
    """
    expected = torch.tensor([-math.log(weight), 1.0], dtype=torch.float64)
    logits, ends = logits.double().cpu(), ends.double().cpu()
    scale = expected.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([scale], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        nll = functional.binary_cross_entropy_with_logits(scale[0] + scale[1] * logits, ends, reduction="sum")
        value = nll + 0.5 * (scale - expected).square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return scale.detach().float()


@dataclass(frozen=True)
class Reliability:
    """Foretold beside observed ends, bin by bin (a reliability curve).

    Attributes:
        foretold: float64 [B], mean probability in each bin.
        observed: float64 [B], share of its steps that ended an episode.
        steps: int64 [B]
        ratio: ends foretold over ends observed: above 1 the dream is deadlier than reality; nan without an end.
        auroc: that a step which ends has the higher logit; nan where there are not both kinds.
    """

    foretold: NDArray[np.float64]
    observed: NDArray[np.float64]
    steps: NDArray[np.int64]
    ratio: float
    auroc: float


def reliability(logits: Tensor, ends: Tensor, bins: int = 8) -> Reliability:
    """Of logits float32 [R] and ends float32 [R]; bins hold equally many expected ends, as ends are rare."""
    probability = logits.double().sigmoid().cpu().numpy()
    ended = ends.double().cpu().numpy()
    order = np.argsort(probability)
    mass = np.cumsum(probability[order])
    cuts = np.searchsorted(mass, mass[-1] * np.arange(1, bins) / bins)
    parts = [part for part in np.split(order, cuts) if len(part)]
    deaths, steps = ended.sum(), len(ended)
    _, tied, counts = np.unique(probability, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[tied]  # equals share the middle of their ranks
    pairs = deaths * (steps - deaths)
    return Reliability(
        foretold=np.array([probability[part].mean() for part in parts]),
        observed=np.array([ended[part].mean() for part in parts]),
        steps=np.array([len(part) for part in parts]),
        ratio=float(probability.sum() / deaths) if deaths else float("nan"),
        auroc=float((ranks[ended > 0].sum() - deaths * (deaths + 1) / 2) / pairs) if pairs else float("nan"),
    )
