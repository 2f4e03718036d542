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
from statistics import fmean
from typing import Any

import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn

from agents.agent import Agent
from agents.committee import members_of
from agents.dream import Dream, DreamConfig, Starts
from agents.observations import Z_ALONE
from agents.sac import CategoricalActor, perceptron
from agents.world_model import WorldModel
from worldvae.fit import FitConfig, Metrics, fit, settled
from worldvae.optimisers import load_optimiser

Select = Callable[[Agent, int], tuple[float, int]]
"""(agent, how many times it was asked before) -> its mean return in reality, and the env steps that took."""


@dataclass(frozen=True)
class ActorCriticConfig:
    """How an actor-critic learns in the dream.

    Attributes:
        dreams: of each of the agent's actors; all step together.
        horizon: steps of each dream between two updates.
        iterations: updates, at most.
        minutes: stop earlier after so much wall time.
        epochs, minibatches: passes over an update's steps, and parts of each pass.
        hidden: width of both hidden layers of actor and critic.
        discount: per step.
        trace: lambda of the advantages.
        clip: how far an action's probability may move in an update.
        entropy: a nat is worth so many standard deviations of the advantages.
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

    Several actors learn side by side, each of dreams of its own.

    Args:
        agent: of soft actor-critic's architecture; it sees z, and h where it remembers.
        select: scores an agent in reality.

    Raises:
        ValueError: the agent sees anything else, or plays another space than Box or Discrete.
    """
    folder = Path(folder)
    dreams = Dream(model, starts, agent.spec.actors * config.dreams, dream, config.seed)
    learner = ActorCritic(agent, dreams, config, select)
    log = fit(
        learner.step,
        count,
        learner,
        FitConfig(
            config.iterations,
            log_every=max(1, config.iterations // 40),
            checkpoint_every=max(1, config.iterations // 10),
            seconds=None if config.minutes is None else 60 * config.minutes,
        ),
        folder,
        name="actor-critic",
        settings=settled(config, but=("iterations", "minutes", "selections")) | settled(dream, but=()),
        observe=learner.observe,
    )
    learner.finish()
    settings = {"actors": agent.spec.actors, **asdict(config), **asdict(dream)}
    kept = {**log[-1], **learner.observe(), **settings}  # entropy: what it is worth, not the last one logged
    agent.cpu().save(folder, kept)
    return Agent.load(folder)


@dataclass(frozen=True)
class Experience:
    """T steps of N dreams of each of D actors.

    Attributes:
        seen: float32 [T, D, N, O]
        drawn: float32 [T, D, N, A], what was drawn: before tanh for a Box, one-hot for a Discrete space.
        log_p: float32 [T, D, N] of that.
        value, advantage: float32 [T, D, N]
    """

    seen: Tensor
    drawn: Tensor
    log_p: Tensor
    value: Tensor
    advantage: Tensor

    def by_actor(self) -> list[Tensor]:
        """All five, each actor's steps in a row: [D, T N, ...]."""
        parts = (self.seen, self.drawn, self.log_p, self.value, self.advantage)
        return [x.transpose(0, 1).flatten(1, 2) for x in parts]


class ActorCritic:
    """Actors and critics, their optimiser and the dreams they are in: all that training changes.

    All actors learn at once, each of its own share of the dreams: to the world model they are one batch.
    """

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
        groups = [
            {"params": [*a.parameters(), *c.parameters()]} for a, c in zip(self.actors, self.critics, strict=True)
        ]
        self.optimiser = torch.optim.Adam(groups, config.learning_rate, eps=1e-5)
        self.updates = self.dream_steps = self.select_env_steps = self.selections = 0
        self.returns, self.last_return = torch.zeros(len(dream), device=dream.device), torch.zeros(())
        self.best: list[dict[str, Tensor]] = [{} for _ in self.actors]
        self.best_ever, self.selected = ([-math.inf] * len(self.actors) for _ in range(2))

    def step(self, iteration: int) -> dict[str, Tensor]:
        """Dreams on for ``horizon`` steps, then learns from them."""
        config = self.config
        for group in self.optimiser.param_groups:
            group["lr"] = config.learning_rate * (1 - iteration / config.iterations)
        experience, told = self._dreamt()
        self.dream_steps += config.horizon * len(self.dream)
        flat = experience.by_actor()
        losses: dict[str, Tensor] = {}
        for _ in range(config.epochs):
            order = torch.randperm(flat[0].shape[1], generator=self.dream.generator, device=self.dream.device)
            for rows in order.chunk(config.minibatches):
                losses = self._update(*(x[:, rows] for x in flat))
        self.updates = iteration + 1
        if self._is_due():
            self._select()
        return {**told, **losses}

    @torch.no_grad()
    def _dreamt(self) -> tuple[Experience, dict[str, Tensor]]:
        dream, discount, rows, ended = self.dream, self.config.discount, [], []
        seen = self._seen()
        for _ in range(self.config.horizon):
            drawn, log_p = self._draw(seen)
            value = self._value(seen)
            actions = drawn if self.discrete else drawn.tanh()
            reward, terminated, truncated = dream.step(actions.flatten(0, 1))
            following = self._value(self._seen()) * ~self._apart(terminated)
            over = terminated | truncated
            surprise = (1 - discount) * self._apart(reward) + discount * following - value  # values: means of rewards
            rows.append((seen, drawn, log_p, value, surprise, self._apart(over)))
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
        log_p, entropy = self._log_p(self._told(seen), drawn)
        ratio = (log_p - log_p_before).exp()
        scaled = (advantage - advantage.mean(1, keepdim=True)) / (advantage.std(1, keepdim=True) + 1e-6)
        clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
        gain = torch.minimum(ratio * scaled, clipped * scaled)
        miss = nn.functional.huber_loss(self._value(seen), value_before + advantage, reduction="none")
        loss = (miss - gain - config.entropy * entropy).mean(1).sum()  # no actor's gradient depends on another's
        self.optimiser.zero_grad()
        loss.backward()
        for group in self.optimiser.param_groups:
            nn.utils.clip_grad_norm_(group["params"], 0.5)
        self.optimiser.step()
        return {"critic": miss.detach().mean(), "entropy": entropy.detach().mean()}

    def _apart(self, x: Tensor) -> Tensor:
        """[D N, ...] -> [D, N, ...]: each actor's own."""
        return x.unflatten(0, (len(self.actors), -1))

    def _seen(self) -> Tensor:
        return self._apart(self.dream.seen(self.remembers))

    def _value(self, seen: Tensor) -> Tensor:
        """[D, N, O] -> [D, N]"""
        return torch.stack([critic(x)[:, 0] for critic, x in zip(self.critics, seen, strict=True)])

    def _told(self, seen: Tensor) -> Any:
        """What each actor tells of what it sees (as its ``forward``), stacked."""
        told = [actor(x) for actor, x in zip(self.actors, seen, strict=True)]
        return torch.stack(told) if self.discrete else tuple(torch.stack(part) for part in zip(*told, strict=True))

    def _draw(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        told = self._told(seen)
        if self.discrete:
            drawn = self._apart(CategoricalActor.draw(told.flatten(0, 1), self.dream.generator))
        else:
            mean, log_sd = told
            noise = torch.randn(mean.shape, generator=self.dream.generator, device=mean.device)
            drawn = mean + log_sd.exp() * noise
        return drawn, self._log_p(told, drawn)[0]

    def _log_p(self, told: Any, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of what was drawn under what the actors told, and the entropy, each [D, N]."""
        if self.discrete:
            return (told * drawn).sum(-1), -(told.exp() * told).sum(-1)
        mean, log_sd = told
        standard = (drawn - mean) * (-log_sd).exp()
        constant = 0.5 * math.log(2 * math.pi)
        return (-0.5 * standard.square() - log_sd - constant).sum(-1), (log_sd + constant + 0.5).sum(-1)

    def _select(self) -> None:
        """Scores each actor in reality, on its own; remembers its best so far."""
        if self.select is None:
            return
        for number, actor in enumerate(self.actors):
            alone = deepcopy(self.agent)
            alone.spec, alone.actor = replace(alone.spec, actors=1), deepcopy(actor)
            self.selected[number], env_steps = self.select(alone.cpu(), self.selections)
            self.select_env_steps += env_steps
            self.selections += 1
            if self.selected[number] > self.best_ever[number]:
                self.best_ever[number] = self.selected[number]
                self.best[number] = {name: x.detach().clone() for name, x in actor.state_dict().items()}

    def finish(self) -> None:
        """Has actors scored that time left no turn, and brings back each as it was when it scored best."""
        if self.config.selections and not self._is_due():
            self._select()
        for actor, best in zip(self.actors, self.best, strict=True):
            if best:
                actor.load_state_dict(best)

    def _is_due(self) -> bool:
        config, update = self.config, self.updates
        return update * config.selections // config.iterations > (update - 1) * config.selections // config.iterations

    def observe(self) -> Metrics:
        """Dream steps, env steps of selection, and actors' last and best mean return there."""
        told: Metrics = {
            "env_steps": 0,
            "dream_steps": self.dream_steps,
            "select_env_steps": self.select_env_steps,
            "selections": self.selections,
        }
        return {**told, "selected": fmean(self.selected), "best_ever": fmean(self.best_ever)} if self.best[0] else told

    def state_dict(self) -> dict[str, Any]:
        dream = self.dream
        return {
            "actors": [actor.state_dict() for actor in self.actors],
            "critics": [critic.state_dict() for critic in self.critics],
            "optimiser": self.optimiser.state_dict(),
            "dream": {"z": dream.z, "h": dream.state[0], "c": dream.state[1], "steps": dream.steps},
            "generator": dream.generator.get_state(),
            **{name: getattr(self, name) for name in _KEPT},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("actors", "critics"):
            for module, weights in zip(getattr(self, name), state[name], strict=True):
                module.load_state_dict(weights)
        for name in _KEPT:
            setattr(self, name, state[name])
        self.returns = self.returns.to(self.dream.device)
        load_optimiser(self.optimiser, state["optimiser"])
        dream, saved = self.dream, {name: x.to(self.dream.device) for name, x in state["dream"].items()}
        dream.z, dream.state, dream.steps = saved["z"], (saved["h"], saved["c"]), saved["steps"]
        dream.generator.set_state(state["generator"])


_KEPT = (
    "updates",
    "dream_steps",
    "select_env_steps",
    "selections",
    "returns",
    "last_return",
    "best",
    "best_ever",
    "selected",
)
