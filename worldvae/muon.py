"""Muon: steps along orthogonal matrices, so that rare directions of a weight learn as fast as common ones."""

from __future__ import annotations

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
    """

    def __init__(self, parameters: ParamsT, rate: Tensor | float, momentum: float = 0.95):
        own = rate.clone() if isinstance(rate, Tensor) else rate
        super().__init__(parameters, {"lr": own, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            momentum = group["momentum"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].lerp_(weight.grad, 1 - momentum)
                direction = weight.grad.lerp(state["momentum"], momentum).flatten(1)
                step = orthogonal(direction) * (0.2 * max(direction.shape) ** 0.5)
                weight.sub_(step.view(weight.shape) * group["lr"])


def orthogonal(matrix: Tensor, rounds: int = 5) -> Tensor:
    """Nearly the closest (semi-)orthogonal matrix [N, M]: the same singular vectors, values of about 1.

    The rounds work on the product of the shorter side with itself, and meet the long side once.
    """
    tall = len(matrix) > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x / (x.norm() + 1e-7)
    a, b, c = NEWTON_SCHULZ
    identity = torch.eye(len(x), dtype=x.dtype, device=x.device)
    square, whole = x @ x.mT, identity
    for _ in range(rounds):
        turn = a * identity + torch.addmm(b * square, square, square, alpha=c)
        whole = turn @ whole
        square = turn @ square @ turn
    x = whole @ x
    return x.mT if tall else x
