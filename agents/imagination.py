"""Short dreams as extra samples for an off-policy learner.

Dyna (Sutton 1991); short, and from moments that were lived through, so that M's errors have no time to add up (Janner
et al. 2019, MBPO). Knows nothing of how the learner learns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from agents.dream import Dream, DreamConfig, Starts
from agents.observations import Z_ALONE, ObservationConfig
from agents.replay import Replay, TransitionBatch
from agents.world_model import State, WorldModel


@dataclass(frozen=True)
class ImaginationConfig:
    """How much of what is learned from is dreamt.

    Attributes:
        share: of each batch; 0: nothing.
        dreams: that begin after each step of the environments.
        steps: that each lasts.
        moments: last ones lived through at which dreams begin.
        capacity: dreamt transitions kept.
    """

    share: float = 0.0
    dreams: int = 128
    steps: int = 4
    moments: int = 10_000
    capacity: int = 50_000

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1 or min(self.dreams, self.steps, self.moments, self.capacity) < 1:
            raise ValueError(f"share must be in [0, 1), the other numbers >= 1: {self}")


class Imagination:
    """Dreams of the memory that the agent has, from moments that it had.

    Attributes:
        dreamt: the transitions to learn from; the learner fills it, with rewards as it learns from them.

    Raises ValueError where its observations are not z + h of a world model that foretells rewards.
    """

    def __init__(
        self, memory: WorldModel | None, observation: ObservationConfig, config: ImaginationConfig, seed: int = 0
    ):
        if memory is None or memory.reward is None:
            raise ValueError("to learn from short dreams the agent needs --memory trained, of an M with a reward head")
        if observation != Z_ALONE:
            raise ValueError(
                "dreams know z and h alone: set observation.stack to 1, last_action to false and no traces, not "
                f"{observation}"
            )
        self.config, hidden, size = config, memory.config.hidden, config.moments
        at = memory.device
        self._z = torch.zeros(size, memory.config.latent_size, device=at)
        self._h, self._c = torch.zeros(2, size, hidden, device=at)
        self._lived = 0
        sizes = memory.config.latent_size + hidden, memory.config.action_size
        self.dreamt = Replay(config.capacity, *sizes, at)
        self._dream = Dream(memory, self._starts(1), 1, DreamConfig(most_steps=config.steps), seed)

    def live(self, z_t: Tensor, state: State) -> None:
        """Remembers N moments: codes [N, Z], and what M remembered there of those before."""
        rows = (torch.arange(self._lived, self._lived + len(z_t)) % len(self._z)).to(self._z.device)
        for kept, now in ((self._z, z_t), (self._h, state[0]), (self._c, state[1])):
            kept[rows] = now.to(kept.device)
        self._lived += len(z_t)

    def dream(self, act: Callable[[Tensor], Tensor]) -> Iterator[TransitionBatch]:
        """Short dreams from moments lived through, each step [N, ..] of those that are not over yet.

        Args:
            act: observations z + h [N, Z + H] -> action vectors [N, A].
        """
        if not self._lived:
            return
        dream = self._dream
        dream.starts = self._starts(self._lived)
        dream.begin(dream.draw_starts(self.config.dreams))
        for _ in range(self.config.steps):
            observations_t = dream.seen(remembers=True)
            actions_t = act(observations_t)
            rewards_tp1, terminated, _ = dream.step(actions_t)
            continues = (~terminated).float()
            yield TransitionBatch(observations_t, actions_t, rewards_tp1, continues, dream.seen(remembers=True))
            dream.keep(continues.nonzero()[:, 0])
            if not len(dream):
                return

    def _starts(self, count: int) -> Starts:
        return Starts(self._z[:count], (self._h[:count], self._c[:count]))
