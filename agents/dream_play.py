"""A population of controllers plays in the dream: all rollouts of all candidates as one batch.

It answers what an evolution's workers answer (``agents.play``), at no env step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from agents.agent import Agent
from agents.controller import Controller
from agents.dream import Dream, DreamConfig, Starts
from agents.observations import Z_ALONE
from agents.play import Play, Played, controller_of
from agents.world_model import WorldModel


class DreamPlayer:
    """Plays tasks in dreams of ``model``; candidates see z, and h where the agent remembers.

    Raises ValueError where the agent sees anything else.
    """

    CHECK_EVERY = 16

    def __init__(self, agent: Agent, model: WorldModel, starts: Starts, config: DreamConfig):
        if agent.spec.observation != Z_ALONE:
            raise ValueError("in the dream a controller sees z and h: stack 1, and no last action")
        self.controller: Controller = controller_of(agent)
        self.remembers = agent.spec.memory is not None
        self.dream = Dream(model, starts, 1, config)

    def map(self, tasks: Sequence[Play]) -> list[Played]:
        return [self.play(task) for task in tasks]

    @torch.no_grad()
    def play(self, task: Play) -> Played:
        """All candidates' dreams to their ends; candidates share their starts, and seeds tell which.

        Half of the batch is dropped as soon as more than half of it is over.
        """
        dream, rollouts = self.dream, len(task.seeds)
        dream.generator.manual_seed(task.seeds[0])
        dream.begin(dream.draw_starts(rollouts).repeat(len(task.weights)))
        weights = torch.from_numpy(task.weights).float().repeat_interleave(rollouts, 0).to(dream.device)
        returns = torch.zeros(len(weights), device=dream.device)
        lengths, row, alive = torch.zeros_like(returns), torch.arange(len(returns), device=dream.device), returns == 0
        for t in range(1, dream.config.most_steps + 1):
            reward, terminated = self.step(weights)
            returns[row] += reward * alive
            lengths[row] += alive
            alive = alive & ~terminated
            if t % self.CHECK_EVERY == 0:
                going = int(alive.sum())
                if going == 0:
                    break
                while 2 * going <= len(row):
                    kept = alive.int().argsort(descending=True, stable=True)[: len(row) // 2]
                    dream.keep(kept)
                    weights, row, alive = weights[kept], row[kept], alive[kept]
        returns, lengths = returns.cpu(), lengths.cpu()
        return Played(returns.double().numpy().reshape(len(task.weights), -1), 0, int(lengths.sum()))

    def step(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """One step of each dream by the controller of its weights [N, P] -> rewards, terminated [N]."""
        seen = self.dream.seen(self.remembers)
        reward, terminated, _ = self.dream.step(self.controller.act_all(weights, seen[:, None])[:, 0])
        return reward, terminated
