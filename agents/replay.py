"""Transitions to learn from, again and again: a ring of rows on the learner's device."""

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

    def with_more(self, other: TransitionBatch) -> TransitionBatch:
        """These transitions, and after them the other's."""
        return TransitionBatch(
            *(torch.cat(pair) for pair in zip(vars(self).values(), vars(other).values(), strict=True))
        )


class Replay:
    """The last ``capacity`` transitions, sampled uniformly with replacement.

    A transition is one row, in the order of ``TransitionBatch``: one gather instead of five.
    """

    def __init__(self, capacity: int, observation_size: int, action_size: int, device: torch.device):
        self._widths = (observation_size, action_size, 1, 1, observation_size)
        self._rows = torch.zeros(capacity, sum(self._widths), device=device)
        self._added = 0

    def __len__(self) -> int:
        return min(self._added, len(self._rows))

    def add(
        self,
        observations_t: NDArray[np.float32],
        actions_t: NDArray[np.float32],
        rewards_tp1: NDArray[Any],
        terminated: NDArray[np.bool_],
        observations_tp1: NDArray[np.float32],
    ) -> None:
        """Adds M transitions (arrays with M rows); the oldest give way."""
        columns = (observations_t, actions_t, rewards_tp1[:, None], ~terminated[:, None], observations_tp1)
        rows = torch.from_numpy(np.concatenate(columns, axis=1, dtype=np.float32))
        at = torch.arange(self._added, self._added + len(rows)) % len(self._rows)
        self._rows[at.to(self._rows.device)] = rows.to(self._rows.device)
        self._added += len(rows)

    def sample(self, batch_size: int, generator: torch.Generator) -> TransitionBatch:
        """B transitions. Raises ValueError from an empty replay."""
        if len(self) == 0:
            raise ValueError("the replay is empty: add transitions before sampling")
        at = torch.randint(len(self), (batch_size,), generator=generator, device=self._rows.device)
        return self._batch(self._rows.index_select(0, at))

    def _batch(self, rows: Tensor) -> TransitionBatch:
        """Rows [B, 2 O + A + 2] as what they hold; a view."""
        observations_t, actions_t, rewards_tp1, continues, observations_tp1 = rows.split(self._widths, dim=1)
        return TransitionBatch(observations_t, actions_t, rewards_tp1[:, 0], continues[:, 0], observations_tp1)

    def state_dict(self) -> dict[str, Any]:
        return {"added": self._added, "columns": vars(self._batch(self._rows[: len(self)]))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._added = state["added"]
        for name, column in vars(self._batch(self._rows[: len(self)])).items():
            column.copy_(state["columns"][name])
