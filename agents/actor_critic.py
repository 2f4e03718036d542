"""An actor-critic learns in the dream: thousands of dreams step together, and nothing leaves the device.

Proximal policy optimisation (Schulman et al. 2017) with generalised advantages (Schulman et al. 2016). The actor is
soft actor-critic's, and sees z and M's h. Knows nothing of pixels, codecs or real environments, but for a function
that scores agents there now and then.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn

from agents.agent import Agent
from agents.committee import as_one, members_of
from agents.dream import Dream, DreamConfig, Starts
from agents.observations import Z_ALONE
from agents.sac import perceptron
from agents.world_model import WorldModel
from worldvae.fit import FitConfig, Metrics, fit, load_optimiser

Select = Callable[[Agent, int], tuple[float, int]]
"""(agent, how many times it was asked before) -> its mean return in reality, and the env steps that took."""


@dataclass(frozen=True)
class ActorCriticConfig:
    """How an actor-critic learns in the dream.

    Attributes:
        dreams: that step together.
        horizon: steps of each dream between two updates.
        iterations: updates of each of the agent's actors, at most.
        minutes: stop earlier after so much wall time.
        epochs, minibatches: passes over an update's steps, and parts of each pass.
        hidden: width of both hidden layers of actor and critic.
        discount: per step.
        trace: lambda of the advantages.
        clip: how far an action's probability may move in an update.
        entropy: nats are worth so much return.
        learning_rate: Adam's at the start; it falls to nothing in a line.
        selections: times that each actor is scored in reality, evenly; the best is kept. 0: the last is.
        seed: of weights, noise and dreams.
    """

    dreams: int = 1024
    horizon: int = 32
    iterations: int = 200
    minutes: float | None = None
    epochs: int = 2
    minibatches: int = 8
    hidden: int = 64
    discount: float = 0.99
    trace: float = 0.95
    clip: float = 0.2
    entropy: float = 0.0003
    learning_rate: float = 1e-3
    selections: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("dreams", "horizon", "iterations", "epochs", "minibatches", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not 0 <= self.selections <= self.iterations:
            raise ValueError(f"selections must be in 0..iterations ({self.iterations}), got {self.selections}")


def learn_in_dream(
    agent: Agent,
    model: WorldModel,
    starts: Starts,
    dream: DreamConfig,
    config: ActorCriticConfig,
    folder: str | Path,
    select: Select | None = None,
) -> Agent:
    """Trains ``agent``'s actors in dreams of ``model`` and saves it into ``folder``; resumes what it began.

    Several actors learn one after the other, each of dreams of its own; where time runs out, those that have begun
    play.

    Args:
        agent: of soft actor-critic's architecture; it sees z, and h where it remembers.
        select: scores an agent in reality.

    Raises:
        ValueError: the agent sees anything else, or plays another space than Box or Discrete.
    """
    folder = Path(folder)
    learner = ActorCritic(agent, Dream(model, starts, config.dreams, dream, config.seed), config, select)
    log = fit(
        learner.step,
        count,
        learner,
        FitConfig(
            agent.spec.actors * config.iterations,
            log_every=max(1, config.iterations // 40),
            checkpoint_every=max(1, config.iterations // 10),
            seconds=None if config.minutes is None else 60 * config.minutes,
        ),
        folder,
        name="actor-critic",
        observe=learner.observe,
    )
    actors = learner.finish()
    kept = {"actors": len(actors), **asdict(config), **asdict(dream), **log[-1], **learner.observe()}
    agent.spec, agent.actor = replace(agent.spec, actors=len(actors)), as_one(actors)
    agent.cpu().save(folder, kept)
    return Agent.load(folder)


@dataclass(frozen=True)
class Experience:
    """T steps of N dreams.

    Attributes:
        seen: float32 [T, N, O]
        drawn: float32 [T, N, A], what was drawn: before tanh for a Box, one-hot for a Discrete space.
        log_p: float32 [T, N] of that.
        value, advantage: float32 [T, N]
    """

    seen: Tensor
    drawn: Tensor
    log_p: Tensor
    value: Tensor
    advantage: Tensor


class ActorCritic:
    """Actors, the critic of the one that learns, their optimiser and the dreams they are in: all that training
    changes."""

    def __init__(self, agent: Agent, dream: Dream, config: ActorCriticConfig, select: Select | None = None):
        space = agent.spec.action_space
        if agent.spec.observation != Z_ALONE:
            raise ValueError("in the dream an actor sees z and h: stack 1, and no last action")
        if not isinstance(space, Box | Discrete):
            raise ValueError(f"an actor-critic plays Box and Discrete action spaces, not {space}")
        torch.manual_seed(config.seed)
        self.agent, self.dream, self.config, self.select = agent, dream, config, select
        self.discrete, self.remembers = isinstance(space, Discrete), agent.spec.memory is not None
        self.actors = members_of(agent.actor.to(dream.device))
        size = dream.z.shape[1] + (dream.state[0].shape[1] if self.remembers else 0)
        self.critics = [perceptron(size, config.hidden, 1).to(dream.device) for _ in self.actors]
        self.updates = self.dream_steps = self.select_env_steps = self.selections = 0
        self.returns, self.last_return = torch.zeros(len(dream), device=dream.device), torch.zeros(())
        self._turn_to(0)

    def _turn_to(self, number: int) -> None:
        """From now on this actor learns."""
        self.actor, self.critic = self.actors[number], self.critics[number]
        parameters = [*self.actor.parameters(), *self.critic.parameters()]
        self.optimiser = torch.optim.Adam(parameters, self.config.learning_rate, eps=1e-5)
        self.best: dict[str, Tensor] = {}
        self.best_ever, self.selected = -math.inf, -math.inf

    def step(self, iteration: int) -> dict[str, Tensor]:
        """Dreams on for ``horizon`` steps, then learns from them."""
        config = self.config
        number, update = divmod(iteration, config.iterations)
        if iteration and not update:
            self._begin(number)
        for group in self.optimiser.param_groups:
            group["lr"] = config.learning_rate * (1 - update / config.iterations)
        experience, told = self._dreamt()
        self.dream_steps += experience.value.numel()
        flat = [getattr(experience, name).flatten(0, 1) for name in Experience.__dataclass_fields__]
        parts: dict[str, Tensor] = {}
        for _ in range(config.epochs):
            order = torch.randperm(len(flat[0]), generator=self.dream.generator, device=self.dream.device)
            for rows in order.chunk(config.minibatches):
                parts = self._update(*(x[rows] for x in flat))
        self.updates = iteration + 1
        if self._is_due():
            self._select()
        return {**told, **parts}

    def _begin(self, number: int) -> None:
        """The next actor, in other dreams."""
        self._keep_best()
        self._turn_to(number)
        self.dream.begin(self.dream.draw_starts(len(self.dream)))
        self.returns = torch.zeros_like(self.returns)

    def _keep_best(self) -> None:
        """Of the actor that learns, as it was when it was scored."""
        if self.best:
            self.actor.load_state_dict(self.best)

    @torch.no_grad()
    def _dreamt(self) -> tuple[Experience, dict[str, Tensor]]:
        dream, discount, rows, ended = self.dream, self.config.discount, [], []
        seen = self._seen()
        for _ in range(self.config.horizon):
            drawn, log_p = self._draw(seen)
            value = self.critic(seen)[:, 0]
            reward, terminated, truncated = dream.step(drawn if self.discrete else drawn.tanh())
            following = self.critic(self._seen())[:, 0] * ~terminated
            over = terminated | truncated
            surprise = (1 - discount) * reward + discount * following - value  # so values are means of rewards
            rows.append((seen, drawn, log_p, value, surprise, over))
            self.returns += reward
            ended.append(self.returns[over])
            self.returns = self.returns * ~over
            dream.reset(over)
            seen = self._seen()
        seen, drawn, log_p, value, surprise, over = (torch.stack(column) for column in zip(*rows, strict=True))
        advantage, ahead = torch.empty_like(surprise), torch.zeros_like(surprise[0])
        for t in reversed(range(len(rows))):
            ahead = surprise[t] + discount * self.config.trace * ahead * ~over[t]
            advantage[t] = ahead
        finished = torch.cat(ended)
        self.last_return = finished.mean() if len(finished) else self.last_return
        return Experience(seen, drawn, log_p, value, advantage), {"return": self.last_return}

    def _update(
        self, seen: Tensor, drawn: Tensor, log_p_before: Tensor, value_before: Tensor, advantage: Tensor
    ) -> dict[str, Tensor]:
        config = self.config
        log_p, entropy = self._log_p(self.actor(seen), drawn)
        ratio = (log_p - log_p_before).exp()
        scaled = (advantage - advantage.mean()) / (advantage.std() + 1e-6)
        clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
        gain = torch.minimum(ratio * scaled, clipped * scaled).mean()
        miss = nn.functional.huber_loss(self.critic(seen)[:, 0], value_before + advantage)
        loss = miss - gain - config.entropy * entropy.mean()
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.optimiser.param_groups[0]["params"], 0.5)
        self.optimiser.step()
        return {"critic": miss.detach(), "entropy": entropy.detach().mean()}

    def _seen(self) -> Tensor:
        return self.dream.seen(self.remembers)

    def _draw(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        told = self.actor(seen)
        if self.discrete:
            drawn = self.actor.act(seen, self.dream.generator)
        else:
            mean, log_sd = told
            noise = torch.randn(mean.shape, generator=self.dream.generator, device=mean.device)
            drawn = mean + log_sd.exp() * noise
        return drawn, self._log_p(told, drawn)[0]

    def _log_p(self, told: Any, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of what was drawn under what the actor told, and the entropy, each [B]."""
        if self.discrete:
            return (told * drawn).sum(-1), -(told.exp() * told).sum(-1)
        mean, log_sd = told
        standard = (drawn - mean) * (-log_sd).exp()
        constant = 0.5 * math.log(2 * math.pi)
        return (-0.5 * standard.square() - log_sd - constant).sum(-1), (log_sd + constant + 0.5).sum(-1)

    def _select(self) -> None:
        """Scores the actor in reality, on its own; remembers its best so far."""
        if self.select is None:
            return
        alone = deepcopy(self.agent)
        alone.spec, alone.actor = replace(alone.spec, actors=1), deepcopy(self.actor)
        self.selected, env_steps = self.select(alone.cpu(), self.selections)
        self.select_env_steps += env_steps
        self.selections += 1
        if self.selected > self.best_ever:
            self.best_ever = self.selected
            self.best = {name: x.detach().clone() for name, x in self.actor.state_dict().items()}

    def finish(self) -> list[Any]:
        """The actors that have learned; has the last scored too, where time ran out before its turn."""
        if self.config.selections and not self._is_due():
            self._select()
        self._keep_best()
        return self.actors[: self._learning + 1]

    @property
    def _learning(self) -> int:
        """Which actor learned last."""
        return max(0, self.updates - 1) // self.config.iterations

    def _is_due(self) -> bool:
        config = self.config
        update = (self.updates - 1) % config.iterations + 1
        return update * config.selections // config.iterations > (update - 1) * config.selections // config.iterations

    def observe(self) -> Metrics:
        """Dream steps, env steps of selection, and this actor's last and best mean return there."""
        told: Metrics = {
            "env_steps": 0,
            "dream_steps": self.dream_steps,
            "select_env_steps": self.select_env_steps,
            "selections": self.selections,
        }
        return {**told, "selected": self.selected, "best_ever": self.best_ever} if self.best else told

    def state_dict(self) -> dict[str, Any]:
        dream = self.dream
        return {
            "actors": [actor.state_dict() for actor in self.actors],
            "critic": self.critic.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "best": self.best,
            "dream": {"z": dream.z, "h": dream.state[0], "c": dream.state[1], "steps": dream.steps},
            "returns": self.returns,
            "last_return": self.last_return,
            "generator": dream.generator.get_state(),
            **{name: getattr(self, name) for name in _COUNTED},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for actor, weights in zip(self.actors, state["actors"], strict=True):
            actor.load_state_dict(weights)
        for name in _COUNTED:
            setattr(self, name, state[name])
        self._turn_to(self._learning)
        self.critic.load_state_dict(state["critic"])
        load_optimiser(self.optimiser, state["optimiser"])
        dream, saved = self.dream, {name: x.to(self.dream.device) for name, x in state["dream"].items()}
        dream.z, dream.state, dream.steps = saved["z"], (saved["h"], saved["c"]), saved["steps"]
        dream.generator.set_state(state["generator"])
        self.best, self.returns, self.last_return = (
            state["best"],
            state["returns"].to(dream.device),
            state["last_return"],
        )
        self.best_ever, self.selected = state["best_ever"], state["selected"]


_COUNTED = ("updates", "dream_steps", "select_env_steps", "selections", "best_ever", "selected")
