"""Soft actor-critic on vectors, for Box and Discrete actions.

Haarnoja et al. 2018 (clipped double Q, tuned temperature), Christodoulou 2019 for discrete
actions (exact expectations instead of samples), LayerNorm in every hidden layer. Knows nothing of
pixels, codecs or environments: it learns from ``TransitionBatch`` alone.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from agents.replay import TransitionBatch
from worldvae.devices import CapturedStep
from worldvae.optimisers import load_optimiser

QFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SACConfig:
    """How the learner learns.

    Attributes:
        hidden: width of both hidden layers.
        discount: per decision (an action repeat is one decision).
        progress: a reward r, gained or lost, discounts what follows by exp(-progress |r|) more. On a course that is
            run once, haste only brings forward what is gained anyway: discounted by gains instead of by time, it is
            worth no more than the time it saves (discounts of transitions: White 2017).
        learning_rate: Adam's, for actor, critics and temperature.
        target_entropy: nats per action; by default -1 per dimension (Box), or 0.3 of the
            maximum log(choices) (Discrete).
        initial_alpha: first entropy temperature; tuned from then on.
        tau: how far the target critics follow in a step.
        averaging: how far the average of the actor's weights follows in a step: it is what plays after learning,
            since a single moment's actor may be a bad one (Polyak & Juditsky 1992).
    """

    hidden: int = 256
    discount: float = 0.98
    progress: float = 0.0
    learning_rate: float = 3e-4
    target_entropy: float | None = None
    initial_alpha: float = math.exp(-4)
    tau: float = 0.005
    averaging: float = 0.001


class Ensemble(nn.Module):
    """E multilayer perceptrons as one batched one: [B, in] -> [E, B, out]."""

    def __init__(self, members: int, size_in: int, hidden: int, size_out: int):
        super().__init__()
        sizes = (size_in, hidden, hidden, size_out)
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for n_in, n_out in itertools.pairwise(sizes):
            bound = 1 / math.sqrt(n_in)  # torch.nn.Linear's own initialisation
            self.weights.append(torch.empty(members, n_in, n_out).uniform_(-bound, bound))
            self.biases.append(torch.empty(members, 1, n_out).uniform_(-bound, bound))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x.expand(len(self.weights[0]), *x.shape)
        for weight, bias, norm in zip(self.weights, self.biases, self.norms, strict=False):
            x = torch.relu_(norm(torch.baddbmm(bias, x, weight)))
        return torch.baddbmm(self.biases[-1], x, self.weights[-1])


class GaussianActor(nn.Module):
    """Tanh-squashed normal actions in [-1, 1]^A."""

    def __init__(self, observation_size: int, action_size: int, hidden: int):
        super().__init__()
        self.net = perceptron(observation_size, hidden, 2 * action_size)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log sd before squashing, each [B, A]."""
        mean, log_sd = self.net(observations).chunk(2, dim=-1)
        return mean, -5 + 3.5 * (torch.tanh(log_sd) + 1)  # log sd in [-5, 2]

    def act(self, observations: Tensor, generator: torch.Generator | None) -> Tensor:
        """Actions [B, A]: a sample, or the mode where there is no generator."""
        return self.draw(self(observations), generator)

    @staticmethod
    def draw(told: tuple[Tensor, Tensor], generator: torch.Generator | None) -> Tensor:
        """As ``act``, of what ``forward`` told."""
        mean, log_sd = told
        if generator is None:
            return torch.tanh(mean)
        return torch.tanh(mean + log_sd.exp() * _normal(mean, generator))

    @staticmethod
    def product(told: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """What the product of several actors' normal distributions tells."""
        means, log_sds = (torch.stack(column) for column in zip(*told, strict=True))
        precisions = (-2 * log_sds).exp()
        precision = precisions.sum(0)
        return (precisions * means).sum(0) / precision, -0.5 * precision.log()

    def soft_value(self, observations: Tensor, q: QFunction, alpha: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """E[q - alpha log pi] by one reparametrised sample of standard normal noise [B, A], and the entropy, each
        [B]."""
        mean, log_sd = self(observations)
        before = mean + log_sd.exp() * noise
        log_normal = -0.5 * noise.square() - log_sd - 0.5 * math.log(2 * math.pi)
        # log(1 - tanh(x)^2) without overflow
        log_slope = 2 * (math.log(2) - before - nn.functional.softplus(-2 * before))
        entropy = -(log_normal - log_slope).sum(-1)
        return q(observations, torch.tanh(before)).squeeze(-1) + alpha * entropy, entropy


class CategoricalActor(nn.Module):
    """One of A choices, as one-hot vectors."""

    def __init__(self, observation_size: int, action_size: int, hidden: int):
        super().__init__()
        self.net = perceptron(observation_size, hidden, action_size)

    def forward(self, observations: Tensor) -> Tensor:
        """Log-probabilities [B, A]."""
        return torch.log_softmax(self.net(observations), dim=-1)

    def act(self, observations: Tensor, generator: torch.Generator | None) -> Tensor:
        """Choices [B, A]: a sample, or the likeliest where there is no generator."""
        return self.draw(self(observations), generator)

    @staticmethod
    def draw(log_p: Tensor, generator: torch.Generator | None) -> Tensor:
        """As ``act``, of what ``forward`` told."""
        if generator is None:
            choice = log_p.argmax(-1)
        else:
            choice = torch.multinomial(log_p.exp(), 1, generator=generator).squeeze(-1)
        return nn.functional.one_hot(choice, log_p.shape[-1]).float()

    @staticmethod
    def product(told: list[Tensor]) -> Tensor:
        """What the normalised product of several actors' distributions tells."""
        return torch.log_softmax(torch.stack(told).sum(0), dim=-1)

    def soft_value(self, observations: Tensor, q: QFunction, alpha: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """As ``GaussianActor.soft_value``, but the exact expectation over the choices: it needs no noise."""
        log_p = self(observations)
        p = log_p.exp()
        entropy = -(p * log_p).sum(-1)
        choices = q(observations, torch.empty(0))
        return (p * choices).sum(-1) + alpha * entropy, entropy


class SAC:
    """Actor, critics, temperature and their optimisers: one ``step`` learns from one batch.

    ``actor`` explores; ``averaged`` is the one to keep.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        discrete: bool,
        config: SACConfig,
        seed: int,
        device: torch.device,
    ):
        self.config, self.discrete, self.device = config, discrete, device
        torch.manual_seed(seed)
        actor = CategoricalActor if discrete else GaussianActor
        self.actor = actor(observation_size, action_size, config.hidden).to(device)
        self.averaged, self.steps = copy.deepcopy(self.actor).requires_grad_(False), 0
        critic_in = observation_size if discrete else observation_size + action_size
        critic_out = action_size if discrete else 1
        self.critics = Ensemble(2, critic_in, config.hidden, critic_out).to(device)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self.log_alpha = torch.tensor(math.log(config.initial_alpha), device=device, requires_grad=True)
        default = 0.3 * math.log(action_size) if discrete else -float(action_size)
        self.target_entropy = default if config.target_entropy is None else config.target_entropy
        groups = ([*self.actor.parameters(), self.log_alpha], self.critics.parameters())
        on_gpu = device.type == "cuda"
        adam = partial(torch.optim.Adam, lr=config.learning_rate, fused=True, capturable=on_gpu)
        self.optimisers = [adam(group) for group in groups]
        self.generator = torch.Generator(device).manual_seed(seed)
        self._learn = CapturedStep(self._gradient_step, device)

    @torch.no_grad()
    def act(self, observations: Tensor, explore: bool) -> Tensor:
        """float32 [B, O] -> action vectors [B, A]; the most likely ones where not exploring."""
        return self.actor.act(observations.to(self.device), self.generator if explore else None)

    def step(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """Critics, then actor and temperature, then targets; returns what to watch."""
        noise = [_normal(batch.actions_t, self.generator) for _ in range(2)]
        told = self._learn(*vars(batch).values(), *noise)
        self.steps += 1
        averaging = max(self.config.averaging, 10 / (10 + self.steps))  # the first steps are soon forgotten
        _follow(self.averaged, self.actor, averaging)
        return told

    def _gradient_step(self, *parts: Tensor) -> dict[str, Tensor]:
        """On a batch's columns and the noise of both draws of actions, each [B, A]."""
        *columns, noise_tp1, noise_t = parts
        batch = TransitionBatch(*columns)
        actor_optimiser, critic_optimiser = self.optimisers
        alpha = self.log_alpha.detach().exp()
        with torch.no_grad():
            value_tp1, _ = self.actor.soft_value(
                batch.observations_tp1, self._smallest(self.target_critics), alpha, noise_tp1
            )
            discount = self.config.discount * torch.exp(-self.config.progress * batch.rewards_tp1.abs())
            target = batch.rewards_tp1 + discount * batch.continues * value_tp1
        q = self._q_taken(batch)
        critic_loss = (q - target).square().mean(1).sum()
        _descend(critic_optimiser, critic_loss)

        value, entropy = self.actor.soft_value(batch.observations_t, self._smallest(self.critics), alpha, noise_t)
        entropy = entropy.detach().mean()
        _descend(actor_optimiser, self.log_alpha * (entropy - self.target_entropy) - value.mean())

        _follow(self.target_critics, self.critics, self.config.tau)
        return {"critic_loss": critic_loss.detach(), "q": q.detach().mean(), "entropy": entropy, "alpha": alpha}

    def _smallest(self, critics: Ensemble) -> QFunction:
        if self.discrete:
            return lambda observations, _: critics(observations).amin(0)
        return lambda observations, actions: critics(torch.cat([observations, actions], -1)).amin(0)

    def _q_taken(self, batch: TransitionBatch) -> Tensor:
        """[E, B]"""
        if self.discrete:
            return (self.critics(batch.observations_t) * batch.actions_t).sum(-1)
        return self.critics(torch.cat([batch.observations_t, batch.actions_t], -1)).squeeze(-1)

    def state_dict(self) -> dict[str, Any]:
        return {
            "actor": self.actor.state_dict(),
            "averaged": self.averaged.state_dict(),
            "steps": self.steps,
            "critics": self.critics.state_dict(),
            "target_critics": self.target_critics.state_dict(),
            "log_alpha": self.log_alpha.detach(),
            "optimisers": [o.state_dict() for o in self.optimisers],
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for part in ("actor", "averaged", "critics", "target_critics"):
            getattr(self, part).load_state_dict(state[part])
        self.steps = state["steps"]
        with torch.no_grad():
            self.log_alpha.copy_(state["log_alpha"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            load_optimiser(optimiser, saved)
        self.generator.set_state(state["generator"])
        self._learn = CapturedStep(self._gradient_step, self.device)  # what was captured learns into the old moments


def perceptron(size_in: int, hidden: int, size_out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_in in (size_in, hidden):
        layers += [nn.Linear(n_in, hidden), nn.LayerNorm(hidden), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(hidden, size_out))


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device)


@torch.no_grad()
def _follow(follower: nn.Module, leader: nn.Module, share: float) -> None:
    """Moves the follower's parameters a share of the way to the leader's."""
    torch._foreach_lerp_(list(follower.parameters()), list(leader.parameters()), share)


def _descend(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step along the gradient of the optimiser's own parameters; no other is computed."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward(inputs=optimiser.param_groups[0]["params"])
    optimiser.step()
