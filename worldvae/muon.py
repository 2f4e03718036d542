"""Muon: steps along orthogonal matrices, so that rare directions of a weight learn as fast as common ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Jordan 2024: five rounds bring singular values from 0.001..1 to about 0.7..1.2, in few multiplications."""


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal (Jordan 2024), for weights of two or more axes; the first is one side of the matrix.

    A step's root mean square is a fifth of the rate (Liu et al. 2025), about Adam's: both take the same rates.
    No float leaves the device, so a step can be captured in a CUDA graph.

    Args:
        rate: a float, or a tensor beside the parameters, which is copied: schedules write into it.
        momentum: Nesterov's.
        rounds: towards orthogonal matrices; after three the faintest directions still lag behind.
    """

    def __init__(self, parameters: ParamsT, rate: Tensor | float, momentum: float = 0.95, rounds: int = 5):
        own = rate.clone() if isinstance(rate, Tensor) else rate
        super().__init__(parameters, {"lr": own, "momentum": momentum, "rounds": rounds})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            gradients = [weight.grad for weight in weights]
            momenta = [self._momentum(weight) for weight in weights]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            directions = [x.flatten(1) for x in torch._foreach_lerp(gradients, momenta, group["momentum"])]
            for weight, step in zip(weights, orthogonal(directions, group["rounds"]), strict=True):
                weight.sub_(step.view(weight.shape) * (group["lr"] * 0.2 * max(step.shape) ** 0.5))

    def _momentum(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        return state["momentum"]


def matrices(module: torch.nn.Module, broadest: int = 256) -> list[torch.nn.Parameter]:
    """The weights of two or more axes, of rows enough to be orthogonal, whose shorter side is no longer than that
    (beyond it, orthogonal steps cost more than gradients)."""
    return [x for x in module.parameters() if x.ndim > 1 and 1 < min(x.flatten(1).shape) <= broadest]


def beside_adam(
    weights: Sequence[Tensor], parameters: Iterable[Tensor], rate: Tensor | float, rounds: int = 5, **adam: Any
) -> list[torch.optim.Optimizer]:
    """Adam for these parameters without the weights, Muon for the weights, if there are any; both of one rate.

    Args:
        adam: further arguments of Adam's.
    """
    others = [x for x in parameters if not any(x is weight for weight in weights)]
    both: list[torch.optim.Optimizer] = [torch.optim.Adam(others, rate, fused=True, **adam)]
    return [*both, Muon(weights, rate, rounds=rounds)] if weights else both


def orthogonal(matrices: Sequence[Tensor], rounds: int = 5) -> list[Tensor]:
    """Nearly the closest (semi-)orthogonal matrices to these [N, M]: the same singular vectors, values of about 1.

    The rounds work on the product of the shorter side with itself, all of one size at once, and meet the long side
    once.
    """
    wide = [x.mT if len(x) > x.shape[1] else x for x in matrices]
    wide = [x / (x.norm() + 1e-7) for x in wide]
    made = list(wide)
    for size in {len(x) for x in wide}:
        alike = [i for i, x in enumerate(wide) if len(x) == size]
        whole = _newton_schulz(torch.stack([wide[i] @ wide[i].mT for i in alike]), rounds)
        for i, turn in zip(alike, whole, strict=True):
            made[i] = turn @ wide[i]
    return [x.mT if len(like) > like.shape[1] else x for x, like in zip(made, matrices, strict=True)]


def _newton_schulz(square: Tensor, rounds: int) -> Tensor:
    """What makes each x [S, M] orthogonal, from x x' [B, S, S]."""
    a, b, c = NEWTON_SCHULZ
    identity = torch.eye(square.shape[1], dtype=square.dtype, device=square.device)
    whole = turn = a * identity + torch.baddbmm(b * square, square, square, alpha=c)
    for _ in range(rounds - 1):
        square = turn @ square @ turn
        turn = a * identity + torch.baddbmm(b * square, square, square, alpha=c)
        whole = turn @ whole
    return whole
