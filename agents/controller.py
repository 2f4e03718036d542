"""Observation -> action by very few weights, held as one flat vector that evolution can mutate.

The controller of World Models (Ha & Schmidhuber 2018) is linear; one hidden layer is possible.
Many controllers act in one batched product. Knows nothing of environments or of how it is evolved.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


class Controller(nn.Module):
    """``tanh(W observation + b)``, or the same on one tanh hidden layer.

    Attributes:
        weights: float32 [P], layer by layer W [out, in] then b [out], as in ``nn.Linear``; all zero
            in the beginning. Or [C, P]: C controllers at once, see ``act``.
    """

    def __init__(self, observation_size: int, action_size: int, hidden: int = 0):
        super().__init__()
        widths = (observation_size, hidden, action_size) if hidden else (observation_size, action_size)
        self.layers = tuple(pairwise(widths))
        size = sum((n_in + 1) * n_out for n_in, n_out in self.layers)
        self.weights = nn.Parameter(torch.zeros(size), requires_grad=False)

    def act(self, observations: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Actions [N, A] in [-1, 1]; the same observation [N, O] always gives the same action.

        C controllers share the N observations in equal blocks: the first N / C are the first's.
        """
        weights = self.weights if self.weights.ndim == 2 else self.weights[None]
        return self.act_all(weights, observations.unflatten(0, (len(weights), -1))).flatten(0, 1)

    def act_all(self, weights: Tensor, observations: Tensor) -> Tensor:
        """C controllers' actions: weights [C, P], observations [C, R, O] -> [C, R, A] in [-1, 1]."""
        sizes = [size for n_in, n_out in self.layers for size in (n_in * n_out, n_out)]
        parts = weights.split(sizes, dim=1)
        x = observations
        for (n_in, n_out), matrix, bias in zip(self.layers, parts[::2], parts[1::2], strict=True):
            x = torch.tanh(torch.baddbmm(bias[:, None], x, matrix.unflatten(1, (n_out, n_in)).mT))
        return x
