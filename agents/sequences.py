"""Encoded episodes -> sequences on the device, for whoever learns or judges dynamics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.observations import as_vector
from worldvae.batches import padded_rows
from worldvae.latents import LatentEpisode
from worldvae.vae import DiagonalGaussian


@dataclass(frozen=True)
class Sequences:
    """Pieces of episodes, padded to the longest.

    Attributes:
        codes: posteriors of the frames, float32 [B, T+1, Z].
        a_t: float32 [B, T, A]
        rewards_tp1, terminated: float32 [B, T]
        valid: bool [B, T]; false where padded.
        valid_at: int64 [R], where it is true among the B T steps.
        seen_tp1: bool [B, T]; false, too, where the frame after the step was blanked.
    """

    codes: DiagonalGaussian
    a_t: Tensor
    rewards_tp1: Tensor
    terminated: Tensor
    valid: Tensor
    valid_at: Tensor
    seen_tp1: Tensor

    def real(self, x: Tensor) -> Tensor:
        """The R real steps of x [B, T, ..] end to end, [R, ..]: nothing need be done for the padding."""
        return x.flatten(0, 1).index_select(0, self.valid_at)


class Trajectories:
    """Episodes laid end to end on the device, T + 1 rows each (a million frames: about 0.3 GB)."""

    def __init__(self, episodes: Sequence[LatentEpisode], space: gymnasium.Space, device: torch.device):
        def table(parts: list[Any], dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.from_numpy(np.concatenate(parts)).to(device, dtype)

        def to_t_plus_1(x: Any) -> Any:
            return np.pad(x, [(0, 1), *[(0, 0)] * (x.ndim - 1)])

        self.device = device
        self.lengths = np.array([len(e.rewards) for e in episodes])
        self.first_rows = np.cumsum([0, *(self.lengths[:-1] + 1)])
        self.codes = DiagonalGaussian(table([e.mean for e in episodes]), table([e.logvar for e in episodes]))
        self.actions = table([to_t_plus_1(as_vector(e.actions, space)) for e in episodes])
        self.rewards = table([to_t_plus_1(e.rewards) for e in episodes])
        ends = [np.arange(len(e.rewards) + 1) == len(e.rewards) - 1 for e in episodes]
        self.terminated = table([end * e.terminated for end, e in zip(ends, episodes, strict=True)])
        self.visible = table([e.visible for e in episodes], torch.bool)

    def sequences(self, rows: NDArray[np.int64], valid: NDArray[np.bool_]) -> Sequences:
        """The pieces that ``sequence_batches`` names: rows [B, T+1], valid [B, T]."""
        at, there = torch.from_numpy(rows).to(self.device), torch.from_numpy(valid).to(self.device)
        return Sequences(
            codes=DiagonalGaussian(self.codes.mean[at], self.codes.logvar[at]),
            a_t=self.actions[at[:, :-1]],
            rewards_tp1=self.rewards[at[:, :-1]],
            terminated=self.terminated[at[:, :-1]],
            valid=there,
            valid_at=torch.from_numpy(np.flatnonzero(valid)).to(self.device),  # found here, a GPU is not waited for
            seen_tp1=there & self.visible[at[:, 1:]],
        )

    def whole(self, most: int = 32) -> Iterator[Sequences]:
        """Every transition once, in whole episodes, ``most`` at a time, shortest first: little is padded."""
        by_length = np.argsort(self.lengths, kind="stable")
        for i in range(0, len(by_length), most):
            chosen = by_length[i : i + most]
            yield self.sequences(*padded_rows(self.first_rows[chosen], self.lengths[chosen]))

    def reward_moments(self) -> Tensor:
        """Mean and sd of all rewards, float32 [2]; an sd of 1 where they never differ."""
        last = torch.from_numpy(self.first_rows + self.lengths).to(self.device)
        there = torch.ones_like(self.visible).index_fill(0, last, False)
        sd, mean = torch.std_mean(self.rewards[there], correction=0)
        return torch.stack([mean, torch.where(sd > 0, sd, 1)])

    def windows(self, frames: int) -> Tensor:
        """int64 [W, frames]: the rows of every run of so many seen frames within an episode."""
        starts = [f + np.arange(max(0, n + 2 - frames)) for f, n in zip(self.first_rows, self.lengths, strict=True)]
        rows = torch.from_numpy(np.concatenate(starts)[:, None] + np.arange(frames)).to(self.device)
        return rows[self.visible[rows].all(1)]


def draw(codes: DiagonalGaussian, generator: torch.Generator) -> Tensor:
    """A sample of each posterior, on its device."""
    return codes.rsample(torch.randn(codes.mean.shape, generator=generator, device=codes.mean.device))
