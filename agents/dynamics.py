"""Encoded episodes -> a trained world model: what one training step of M is, and how it is judged."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gymnasium
import torch
from torch import Tensor
from torch.nn import functional

from agents.dream import Stepper
from agents.forecasts import Learned, nll_per_step
from agents.observations import action_size
from agents.sequences import Sequences, Trajectories, draw
from agents.termination import calibrate, imbalance
from agents.world_model import Prediction, WorldModel, WorldModelConfig
from worldvae.batches import sequence_batches
from worldvae.devices import autocast, pick_device
from worldvae.fit import FitConfig, Metrics, fit, settled
from worldvae.latents import LatentStore
from worldvae.muon import beside_adam, matrices
from worldvae.optimisers import Optimisers
from worldvae.rollouts import split_episodes

SPAN = 16
"""Steps of which the last are M's own draws (``fed_back``): as long as short dreams."""


@dataclass(frozen=True)
class DynamicsConfig:
    """How a world model is built and trained.

    Attributes:
        hidden, mixtures: the LSTM's width, and Gaussians per latent.
        reward, termination: whether to predict them too; an end's probability is calibrated on the held-out
            episodes afterwards.
        balance: of ends, which are rare, and steps that go on: at 1 both kinds count as much, at 0 all steps do.
        termination_weight: of the ends' loss beside the codes', whose nats are many more.
        restart: whether an input says that nothing is remembered yet.
        passes: how often each transition is seen, its codes drawn anew each time. At 0 there is one step alone:
            a world model all but untrained, whose dreams others can be compared with.
        batch_size: sequences a step.
        most_steps: longest sequence; longer episodes are cut.
        optimiser: adam, or muon for matrices and Adam for the rest: a third of the passes to the same likelihood on
            hundreds of episodes, and quicker to know few by heart (benchmarks/LOG.md).
        learning_rate: at the start; it falls to nothing along half a cosine.
        clip: the gradient's largest norm.
        dropout: share of h hidden from the heads while training: few rollouts are soon known by heart.
        fed_back: share of the steps, the last of every ``SPAN``, at which M is given its own draws instead of the real
            codes, as in a dream, and learns to know what comes nonetheless; rounded down to whole steps.
        held_out: share of the episodes kept for measuring.
        seed: of weights, order, noise and split.
        device: cpu, cuda, or auto.
    """

    hidden: int = 256
    mixtures: int = 5
    reward: bool = True
    termination: bool = True
    balance: float = 0.5
    termination_weight: float = 1.0
    restart: bool = False
    passes: float = 100.0
    batch_size: int = 16
    most_steps: int = 128
    optimiser: Literal["adam", "muon"] = "adam"
    learning_rate: float = 3e-3
    clip: float = 1.0
    dropout: float = 0.2
    fed_back: float = 0.0
    held_out: float = 0.1
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if not (0 <= self.fed_back <= 1 and 0 <= self.balance <= 1 and 0 <= self.dropout < 1):
            raise ValueError(f"fed_back and balance must be in [0, 1], dropout in [0, 1): {self}")
        if self.termination_weight < 0:
            raise ValueError(f"termination_weight must be >= 0, got {self.termination_weight}")
        if min(self.hidden, self.mixtures, self.batch_size, self.most_steps) < 1:
            raise ValueError(f"hidden, mixtures, batch_size and most_steps must be >= 1: {self}")


def train_dynamics(
    latents: LatentStore,
    space: gymnasium.Space,
    config: DynamicsConfig,
    folder: str | Path,
    start: WorldModel | None = None,
) -> WorldModel:
    """Trains M on encoded episodes and saves it into ``folder``; resumes what it began, exactly.

    Args:
        space: the actions' space.
        start: a world model of the same kind, from whose weights training sets out instead of new ones.

    Raises:
        ValueError: ``start`` is of another kind, fewer than two episodes (one is held out), actions that agents
            cannot play, or no CUDA where asked for.
    """
    folder = Path(folder)
    train, held_out = load_trajectories(latents, space, config)
    torch.manual_seed(config.seed)
    model = WorldModel(world_model_config(latents.manifest["latent_size"], space, config))
    if start is not None and start.config != model.config:
        raise ValueError(f"a world model of {start.config} is no start for one of {model.config}")
    if start is not None:
        model.load_state_dict(start.state_dict())
        model.termination_scale.copy_(torch.tensor([0.0, 1.0]))  # found anew in the end
    model.reward_moments.copy_(train.reward_moments())
    per_pass = max(1, -(-int((-(-train.lengths // config.most_steps)).sum()) // config.batch_size))
    steps = max(1, round(config.passes * per_pass))
    learner = DynamicsLearner(config, model, train, steps)

    def observe() -> Metrics:
        return {"held_out_nll": nll_per_step(Learned(model), held_out)}

    log = fit(
        learner.step,
        partial(sequence_batches, train.lengths.tolist(), config.batch_size, config.most_steps, config.seed),
        learner,
        FitConfig(steps, log_every=max(1, steps // 20), checkpoint_every=max(1, steps // 10)),
        folder,
        name="world model",
        settings=settled(config, but=("passes", "device")),
        observe=observe,
    )
    if config.termination:
        model.termination_scale.copy_(calibrate(*ends(model, held_out), learner.end_weight.item()))
    codec = latents.manifest["codec_sha256"]
    model.save(folder, codec, {"steps": steps, **asdict(config), **log[-1]})
    return WorldModel.load(folder, codec, learner.device)


def load_trajectories(
    latents: LatentStore, space: gymnasium.Space, config: DynamicsConfig
) -> tuple[Trajectories, Trajectories]:
    """Training and held-out episodes, whole ones, on the device."""
    device = pick_device(config.device)
    split = split_episodes(len(latents), config.held_out, config.seed)
    train, held_out = (Trajectories([latents[i] for i in chosen], space, device) for chosen in split)
    return train, held_out


def world_model_config(latent_size: int, space: gymnasium.Space, config: DynamicsConfig) -> WorldModelConfig:
    """What M is built of for these latents and actions."""
    heads = {name: getattr(config, name) for name in ("hidden", "mixtures", "reward", "termination", "restart")}
    return WorldModelConfig(latent_size, action_size(space), **heads)


@torch.no_grad()
def ends(model: WorldModel, episodes: Trajectories) -> tuple[Tensor, Tensor]:
    """The model's logit of an end at every step, and whether there was one, each float32 [R]."""
    generator = torch.Generator(episodes.device).manual_seed(0)
    told = []
    for sequences in episodes.whole():
        h_tp1, _ = model.remember(draw(sequences.codes, generator)[:, :-1], sequences.a_t)
        termination = model.predict(sequences.real(h_tp1)).termination
        assert termination is not None
        told.append((termination, sequences.real(sequences.terminated)))
    logits, ended = (torch.cat(column) for column in zip(*told, strict=True))
    return logits, ended


def negative_log_likelihood(
    prediction: Prediction,
    z: Tensor,
    sequences: Sequences,
    reward_sd: Tensor,
    end_weight: Tensor | None = None,
    termination_weight: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss in nats per step, and its parts: codes, reward (a Gaussian of the rewards' own sd), end.

    Args:
        prediction: of the R real steps (``Sequences.real``).
        z: codes of all frames, float32 [B, T+1, Z].
        end_weight: how many times steps count that end an episode, float32 [].
        termination_weight: how many times the end's part counts.
    """
    real = sequences.real
    nll_z = -prediction.z_tp1.log_prob(real(z[:, 1:])).sum(-1)
    parts = {"nll": _mean(nll_z, real(sequences.seen_tp1))}
    if prediction.reward_tp1 is not None:
        parts["reward"] = 0.5 * ((prediction.reward_tp1 - real(sequences.rewards_tp1)) / reward_sd).square().mean()
    if prediction.termination is not None:
        parts["termination"] = functional.binary_cross_entropy_with_logits(
            prediction.termination, real(sequences.terminated), pos_weight=end_weight
        )
    weights = {"termination": termination_weight}
    loss = torch.stack([weights.get(name, 1.0) * part for name, part in parts.items()]).sum()
    return loss, {"loss": loss.detach(), **{name: part.detach() for name, part in parts.items()}}


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Mean of the values where asked for; 0 where nowhere."""
    return (values * where).sum() / where.sum().clamp(min=1)


@torch.no_grad()
def fed_back(model: WorldModel, z_t: Tensor, a_t: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Codes float32 [B, T, Z] of which a share are M's own draws, each made from those before, as in a dream: the last
    of every ``SPAN`` steps, counted from anywhere (scheduled sampling, Bengio et al. 2015). An episode's first stays.
    """
    if not share:
        return z_t
    count, length, latents = z_t.shape
    begun = torch.randint(SPAN, (count, 1), generator=generator, device=z_t.device)
    dreams = (torch.arange(length, device=z_t.device) + begun) % SPAN >= (1 - share) * SPAN
    step, state, given = Stepper(model, temperature=1.0), model.start(count), [z_t[:, 0]]
    for t in range(length - 1):
        uniform = torch.rand(count, latents + 1, generator=generator, device=z_t.device)
        normal = torch.randn(count, latents, generator=generator, device=z_t.device)
        told = step(given[-1], a_t[:, t], *state, uniform, normal)
        state = told["h"], told["c"]
        given.append(torch.where(dreams[:, t + 1, None], told["z"], z_t[:, t + 1]))
    return torch.stack(given, 1)


class DynamicsLearner:
    """M, its optimiser and its noise: all that training changes."""

    def __init__(self, config: DynamicsConfig, model: WorldModel, train: Trajectories, steps: int):
        self.config, self.train = config, train
        self.device = train.device
        weight = imbalance(int(train.terminated.sum()), int(train.lengths.sum()))
        self.end_weight = torch.tensor(weight**config.balance, device=self.device)
        self.model = model.to(self.device)
        weights = matrices(self.model, broadest=1024) if config.optimiser == "muon" else []
        both = beside_adam(weights, self.model.parameters(), config.learning_rate, rounds=3)
        self.optimisers = Optimisers(both, partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=steps))
        self.generator = torch.Generator(self.device).manual_seed(config.seed)

    def step(self, batch: tuple[Any, Any]) -> dict[str, Tensor]:
        """One gradient step on sequences whose codes are drawn anew; returns the loss's parts."""
        sequences = self.train.sequences(*batch)
        z = draw(sequences.codes, self.generator)
        z_t = fed_back(self.model, z[:, :-1], sequences.a_t, self.config.fed_back, self.generator)
        with autocast(self.device):
            h_tp1, _ = self.model.remember(z_t, sequences.a_t)
            prediction = self.model.predict(self._dropout(sequences.real(h_tp1)))
        loss, parts = negative_log_likelihood(
            prediction,
            z,
            sequences,
            self.model.reward_moments[1],
            self.end_weight,
            self.config.termination_weight,
        )
        self.optimisers.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimisers.step()
        self.optimisers.next_rate()
        return parts

    def _dropout(self, h: Tensor) -> Tensor:
        """Srivastava et al. 2014, from the learner's own generator so that resuming is exact."""
        uniform = torch.rand(h.shape, generator=self.generator, device=h.device)
        return h * uniform.ge_(self.config.dropout).div_(1 - self.config.dropout)

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimisers": self.optimisers.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimisers.load_state_dict(state["optimisers"])
        self.generator.set_state(state["generator"])
