"""Several actors that act as one.

Each learned on its own, and each goes astray elsewhere: together they play about as well as the best of them, without
reality having been asked which that is (benchmarks/LOG.md). Their distributions are multiplied, as a product of experts
(Hinton 2002): whoever is surer has more say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from agents.sac import CategoricalActor, GaussianActor

Actor = TypeVar("Actor", bound=nn.Module)


class Committee(nn.Module):
    """Acts by the product of its members' distributions; all of one class and shape.

    Raises ValueError where members cannot be multiplied.
    """

    def __init__(self, members: Sequence[nn.Module]):
        super().__init__()
        if not all(isinstance(member, GaussianActor | CategoricalActor) for member in members):
            raise ValueError(f"only soft actor-critic's actors act together, not a {type(members[0]).__name__}")
        self.members = nn.ModuleList(members)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        """As a member's ``forward``."""
        first: Any = self.members[0]
        return first.product([member(observations) for member in self.members])

    def act(self, observations: Tensor, generator: torch.Generator | None) -> Tensor:
        """As a member's ``act``."""
        first: Any = self.members[0]
        return first.draw(self(observations), generator)


def as_one(members: Sequence[Actor]) -> Actor | Committee:
    """One actor plays alone, several as a ``Committee``."""
    return members[0] if len(members) == 1 else Committee(members)


def members_of(actor: nn.Module) -> list[Any]:
    """What ``as_one`` was given."""
    return list(actor.members) if isinstance(actor, Committee) else [actor]
