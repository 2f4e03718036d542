"""Optimisers that step as one, their rates' schedules, and their state in a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class Optimisers:
    """Several that step as one, each at a rate of the same schedule."""

    def __init__(self, each: Sequence[Optimizer], schedule: Callable[[Optimizer], LRScheduler]):
        self.each = each
        self.schedules = [schedule(optimiser) for optimiser in each]

    @property
    def steps(self) -> int:
        """How often the rates have moved on."""
        return self.schedules[0].last_epoch

    def zero_grad(self) -> None:
        for optimiser in self.each:
            optimiser.zero_grad()

    def step(self) -> None:
        """Moves the weights; a CUDA graph may hold it."""
        for optimiser in self.each:
            optimiser.step()

    def next_rate(self) -> None:
        """Moves the rates on, once a step; no graph may hold it."""
        for schedule in self.schedules:
            schedule.step()

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimisers": [optimiser.state_dict() for optimiser in self.each],
            "schedules": [schedule.state_dict() for schedule in self.schedules],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for optimiser, saved in zip(self.each, state["optimisers"], strict=True):
            load_optimiser(optimiser, saved)
        for schedule, saved in zip(self.schedules, state["schedules"], strict=True):
            schedule.load_state_dict(saved)


def load_optimiser(optimiser: Optimizer, state: dict[str, Any]) -> None:
    """Restores an optimiser; its moments get their parameter's memory layout back.

    Files keep tensors contiguous, but fused optimisers walk parameter and moments in memory order:
    beside channels-last weights a contiguous moment would silently belong to another weight.
    """
    optimiser.load_state_dict(state)
    for parameter, moments in optimiser.state.items():
        for name, value in moments.items():
            if value.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter).copy_(value)
    for group in optimiser.param_groups:
        for name, value in group.items():
            if isinstance(value, Tensor):  # a rate that lies beside the parameters
                group[name] = value.to(group["params"][0].device)
