"""Controller x environment x CMA-ES: evolves few weights by whole episodes' returns.

As in World Models (Ha & Schmidhuber 2018), with Hansen's CMA-ES (arXiv:1604.00772) or its separable
variant (Ros & Hansen 2008) from the package ``cmaes``. All candidates of a generation play the same
episode seeds; the best of all generations is chosen on selection seeds that nobody has played.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.agent import Agent
from agents.evaluation import SELECTION_SEEDS, TEST_SEEDS, first_seed, first_selection_seed
from agents.observations import Z_ALONE, ObservationConfig
from agents.play import MakeEnv, Play, Played, Player, controller_of
from agents.workers import Workers
from worldvae.checkpoint import load_tree, save_tree
from worldvae.fit import FitConfig, Metrics, fit


@dataclass(frozen=True)
class EvolutionConfig:
    """How controllers evolve.

    Attributes:
        population: candidates a generation.
        rollouts: episodes each candidate plays, the same for all.
        sigma: first standard deviation of the weights, around the ancestor's.
        hidden: width of the controller's hidden layer; 0: linear.
        covariance: ``full`` learns how weights go together, in memory and time of P^2 to P^3;
            ``diagonal`` only their scales.
        generations: how many, at most.
        minutes: stop earlier after so much wall time.
        select_every: generations; then the distribution's mean and the generation's best candidate
            play ``select_episodes`` whole episodes, and the best so far is kept.
        patience: a candidate's episode is cut after so many env steps without a positive reward.
        candidates_at_once: that a worker plays together; results do not depend on ``workers``.
        workers: processes.
        timeout: seconds without an answer after which a worker counts as hung.
        observation: what the controller sees, beside its memory.
        seed: of candidates and episodes.
    """

    population: int = 16
    rollouts: int = 1
    sigma: float = 0.1
    hidden: int = 0
    covariance: Literal["full", "diagonal"] = "full"
    generations: int = 300
    minutes: float | None = None
    select_every: int = 10
    select_episodes: int = 16
    patience: int | None = None
    candidates_at_once: int = 8
    workers: int = 2
    timeout: float = 900.0
    observation: ObservationConfig = Z_ALONE
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"rollouts": 1, "generations": 1, "select_every": 1, "select_episodes": 1, "candidates_at_once": 1}
        for name, lowest in {"population": 4, **least}.items():
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} must be >= {lowest}, got {getattr(self, name)}")
        if self.sigma <= 0:
            raise ValueError(f"sigma must be > 0, got {self.sigma}")
        selections = self.generations // self.select_every + 1
        last_training = first_seed(self.seed) + self.generations * self.rollouts
        last_selection = first_selection_seed(self.seed) + selections * self.select_episodes
        if last_training > SELECTION_SEEDS or last_selection > TEST_SEEDS:
            raise ValueError("so many episodes would need seeds that are kept for selection or test")


class CanPlay(Protocol):
    """Workers, or the dream."""

    def map(self, tasks: list[Play]) -> list[Played]: ...


def evolve(
    agent: Agent, make_env: MakeEnv, config: EvolutionConfig, folder: str | Path, dream: CanPlay | None = None
) -> Agent:
    """Evolves ``agent``'s controller, saves the best so far into ``folder``; resumes what it began.

    Args:
        agent: the ancestor, of architecture "controller"; its memory, if any, stays as it is.
        dream: where candidates play instead of the environment, whole populations at once; then only selection
            takes env steps.

    Raises:
        ValueError: no controller, or the folder holds another kind of evolution.
        RuntimeError: a generation's play failed again and again; says why.
    """
    folder = Path(folder)
    agent.save(folder / "ancestor")
    seconds = None if config.minutes is None else config.minutes * 60
    with Workers(Player(folder / "ancestor", make_env, config.workers), config.workers, config.timeout) as workers:
        evolution = Evolution(deepcopy(agent), workers, config, folder, dream)
        fit(
            evolution.step,
            count,
            evolution,
            FitConfig(config.generations, log_every=1, checkpoint_every=1, seconds=seconds),
            folder,
            name="evolution",
            observe=evolution.observe,
        )
        evolution.finish()
    return Agent.load(folder)


class Evolution:
    """CMA-ES, the best controller so far and what it cost: all that a generation changes."""

    def __init__(
        self,
        agent: Agent,
        workers: Workers[Play, Played],
        config: EvolutionConfig,
        folder: Path,
        dream: CanPlay | None = None,
    ):
        try:
            from cmaes import CMA, SepCMA
        except ImportError as error:
            raise ImportError("evolution needs: pip install 'worldvae[evolution]'") from error
        self.agent, self.workers, self.config, self.folder = agent, workers, config, folder
        self.player: CanPlay = workers if dream is None else dream
        self.at_once = config.candidates_at_once if dream is None else config.population
        mean = controller_of(agent).weights.double().numpy()
        self.cma = {"full": CMA, "diagonal": SepCMA}[config.covariance](
            mean.copy(), config.sigma, population_size=config.population, seed=config.seed
        )
        self.leader = mean  # the last generation's best candidate
        self.best, self.best_ever, self.selected = mean, -np.inf, -np.inf
        self.env_steps = self.select_env_steps = self.dream_steps = 0
        self.selections = self.selected_at = 0
        self._saved = self._snapshot()

    def step(self, generation: int) -> dict[str, Tensor]:
        """One generation; what it says of returns is over the candidates' means."""
        config = self.config
        self.cma.reseed_rng(int(np.random.SeedSequence((config.seed, generation)).generate_state(1)[0]))
        candidates = np.stack([self.cma.ask() for _ in range(config.population)])
        first = first_seed(config.seed) + generation * config.rollouts
        seeds = range(first, first + config.rollouts)
        returns, played = self._play(self.player, candidates, seeds, self.at_once, config.patience)
        self.cma.tell([(x, -value) for x, value in zip(candidates, returns, strict=True)])
        self.env_steps += sum(p.env_steps for p in played)
        self.dream_steps += sum(p.dream_steps for p in played)
        self.leader = candidates[returns.argmax()]
        if (generation + 1) % config.select_every == 0 or generation + 1 == config.generations:
            self._select()
        self._saved = self._snapshot()
        told = {"best": returns.max(), "mean": returns.mean(), "sd": returns.std(ddof=1), "sigma": self.cma._sigma}
        return {name: torch.tensor(float(value), dtype=torch.float64) for name, value in told.items()}

    def observe(self) -> Metrics:
        """Steps of play, of selection, in the dream; the last and the best mean return on selection seeds."""
        told: Metrics = {name: getattr(self, name) for name in ("env_steps", "select_env_steps", "dream_steps")}
        return {**told, "selected": self.selected, "best_ever": self.best_ever} if self.selections else told

    def finish(self) -> None:
        """The last generation has its selection too, also where time ran out before its turn."""
        if self.selected_at < self.cma.generation:
            self._select()
            self._saved = self._snapshot()
            checkpoint = self.folder / "training.safetensors"
            save_tree(checkpoint, {**load_tree(checkpoint), "state": self._saved})
        self._save_agent()

    def _select(self) -> None:
        """Plays the mean and the leader on episodes that nobody has played; keeps the best so far."""
        contenders, episodes = np.stack([self.cma.mean, self.leader]), self.config.select_episodes
        first = first_selection_seed(self.config.seed) + self.selections * episodes
        returns, played = self._play(self.workers, contenders, range(first, first + episodes), 1, None)
        self.select_env_steps += sum(p.env_steps for p in played)
        self.selections += 1
        self.selected_at, self.selected = self.cma.generation, float(returns.max())
        if returns.max() > self.best_ever:
            self.best, self.best_ever = contenders[returns.argmax()], float(returns.max())
            self._save_agent()

    def _play(
        self,
        player: CanPlay,
        candidates: NDArray[np.float64],
        seeds: Sequence[int],
        at_once: int,
        patience: int | None,
    ) -> tuple[NDArray[np.float64], list[Played]]:
        """Mean return of each candidate, and what was played."""
        shares = [candidates[i : i + at_once] for i in range(0, len(candidates), at_once)]
        played = player.map([Play(share, tuple(seeds), patience) for share in shares])
        return np.concatenate([p.returns for p in played]).mean(1), played

    def _save_agent(self) -> None:
        controller_of(self.agent).weights.data = torch.from_numpy(self.best).float()
        self.agent.save(self.folder, {**asdict(self.config), "generation": self.cma.generation, **self.observe()})

    def state_dict(self) -> dict[str, Any]:
        """As after the last whole generation: an interrupted one is played again."""
        return self._saved

    def _snapshot(self) -> dict[str, Any]:
        cma = {name: _to_tree(value) for name, value in vars(self.cma).items() if name not in _NOT_SAVED}
        return {"cma": cma} | {name: _to_tree(getattr(self, name)) for name in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError where the state is of other controllers, population or covariance."""
        cma = {name: _from_tree(value) for name, value in state["cma"].items()}
        if cma["_C"].shape != self.cma._C.shape or cma["_popsize"] != self.cma.population_size:
            raise ValueError(f"{self.folder} has another population, covariance or controller: evolve in a new folder")
        vars(self.cma).update(cma)
        for name in _STATE:
            setattr(self, name, _from_tree(state[name]))
        self._saved = state


_STATE = (
    "leader",
    "best",
    "best_ever",
    "selected",
    "env_steps",
    "select_env_steps",
    "dream_steps",
    "selections",
    "selected_at",
)
"""``Evolution``'s own part of its state."""
_NOT_SAVED = ("_rng", "_funhist_values", "_ESigma")
"""Of CMA-ES: its generator is seeded anew in each generation, the others are never read here."""


def _to_tree(value: Any) -> Any:
    """numpy -> what ``save_tree`` takes; arrays are copied, for CMA-ES changes its own in place."""
    if isinstance(value, np.ndarray):
        return torch.tensor(value)
    return value.item() if isinstance(value, np.generic) else value


def _from_tree(value: Any) -> Any:
    return value.numpy().copy() if isinstance(value, Tensor) else value
