"""Transitions to learn from, again and again: a ring of tensors on the learner's device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class TransitionBatch:
    """B transitions to learn from.

    Attributes:
        observations_t, observations_tp1: float32 [B, O]
        actions_t: float32 [B, A] in [-1, 1], or one-hot.
        rewards_tp1: float32 [B]
        continues: float32 [B]; 0 where the task terminated (a time limit continues).
    """

    observations_t: Tensor
    actions_t: Tensor
    rewards_tp1: Tensor
    continues: Tensor
    observations_tp1: Tensor


class Replay:
    """The last ``capacity`` transitions, sampled uniformly with replacement."""

    def __init__(self, capacity: int, observation_size: int, action_size: int, device: torch.device):
        self._capacity = capacity
        self._device = device
        widths = {"observations_t": observation_size, "actions_t": action_size, "observations_tp1": observation_size}
        self._columns = {name: torch.zeros(capacity, width, device=device) for name, width in widths.items()}
        self._columns |= {name: torch.zeros(capacity, device=device) for name in ("rewards_tp1", "continues")}
        self._added = 0

    def __len__(self) -> int:
        return min(self._added, self._capacity)

    def add(
        self,
        observations_t: NDArray[np.float32],
        actions_t: NDArray[np.float32],
        rewards_tp1: NDArray[Any],
        terminated: NDArray[np.bool_],
        observations_tp1: NDArray[np.float32],
    ) -> None:
        """Adds M transitions (arrays with M rows); the oldest give way."""
        rows = {
            "observations_t": observations_t,
            "actions_t": actions_t,
            "rewards_tp1": rewards_tp1,
            "continues": ~terminated,
            "observations_tp1": observations_tp1,
        }
        at = (torch.arange(self._added, self._added + len(rewards_tp1)) % self._capacity).to(self._device)
        for name, values in rows.items():
            self._columns[name][at] = torch.as_tensor(values, dtype=torch.float32, device=self._device)
        self._added += len(rewards_tp1)

    def sample(self, batch_size: int, generator: torch.Generator) -> TransitionBatch:
        """B transitions. Raises ValueError from an empty replay."""
        if len(self) == 0:
            raise ValueError("the replay is empty: add transitions before sampling")
        rows = torch.randint(len(self), (batch_size,), generator=generator, device=self._device)
        return TransitionBatch(**{name: column[rows] for name, column in self._columns.items()})

    def state_dict(self) -> dict[str, Any]:
        return {"added": self._added, "columns": {n: c[: len(self)] for n, c in self._columns.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._added = state["added"]
        for name, rows in state["columns"].items():
            self._columns[name][: len(rows)] = rows.to(self._device)
