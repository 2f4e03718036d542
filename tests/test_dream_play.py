"""Populations in the dream: against one dream after another, and a controller that learns to live longer there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from agents.agent import Agent, AgentSpec
from agents.dream import DreamConfig, DreamVectorEnv
from agents.dream_play import DreamPlayer
from agents.evolution import EvolutionConfig, evolve
from agents.observations import ObservationConfig
from agents.play import Play
from agents.world_model import WorldModel
from tests.deadly import CERTAIN, FIRST_SEEN, SPACE, deadly, starts
from worldvae.fit import read_log


def agent_of(model: WorldModel, remembers: bool = True, **changes: object) -> Agent:
    spec = AgentSpec(FIRST_SEEN, 3, "", SPACE, 1, 0, "controller", model.config if remembers else None, sampled=True)
    return Agent(replace(spec, **changes), model if remembers else None)


def alone(agent: Agent, model: WorldModel, weights: np.ndarray, start: int, most_steps: int, remembers: bool) -> int:
    """Steps that one controller lives in one dream, by the model's own slow forward."""
    agent.actor.weights.data = torch.from_numpy(weights).float()
    begin = starts()
    z, state = begin.z[start : start + 1], tuple(part[start : start + 1] for part in begin.state)
    for t in range(1, most_steps + 1):
        action = agent.actor.act(torch.cat([z, state[0]], 1) if remembers else z)
        prediction, state = model(z[:, None], action[:, None], state)
        z = prediction.z_tp1.sample(torch.Generator().manual_seed(0), CERTAIN)[:, 0]
        if prediction.termination.item() > 0:
            return t
    return most_steps


@pytest.mark.parametrize("remembers", [True, False])
def test_each_candidate_earns_what_it_would_alone(remembers):
    model = deadly(-0.7)
    agent = agent_of(model, remembers)
    weights = np.random.default_rng(0).normal(size=(6, len(agent.actor.weights)))
    weights[:, -1] += np.linspace(0, 2, 6)
    player = DreamPlayer(agent, model, starts(), DreamConfig(CERTAIN, most_steps=60))
    told = player.play(Play(weights, tuple(range(7, 15)), None))
    player.dream.generator.manual_seed(7)
    chosen = player.dream.draw_starts(8).tolist()
    expected = np.array([[alone(agent, model, w, s, 60, remembers) for s in chosen] for w in weights])
    np.testing.assert_array_equal(told.returns, expected)
    assert len(np.unique(expected)) > 3, "they live for different times"
    assert told.dream_steps == expected.sum()
    assert told.env_steps == 0


def test_the_same_task_gives_the_same_returns_and_other_seeds_other_ones():
    model = deadly()
    model.termination.weight /= 1e6  # now ends are drawn
    model.termination.bias[:] = -3
    agent = agent_of(model)
    player = DreamPlayer(agent, model, starts(), DreamConfig(most_steps=50))
    tasks = [Play(np.zeros((4, len(agent.actor.weights))), seeds, None) for seeds in ((1, 2, 3), (1, 2, 3), (4, 5, 6))]
    one, two, other = player.map(tasks)
    np.testing.assert_array_equal(one.returns, two.returns)
    assert not np.array_equal(one.returns, other.returns)


def test_what_a_dream_cannot_show_is_refused():
    model = deadly()
    with pytest.raises(ValueError, match="sees z and h: stack 1, and no last action"):
        DreamPlayer(agent_of(model, observation=ObservationConfig(stack=4)), model, starts(), DreamConfig())


def test_evolution_in_the_dream_learns_to_live_and_only_selection_takes_env_steps(tmp_path):
    model = deadly()
    agent = agent_of(model)
    player = DreamPlayer(agent, model, starts(), DreamConfig(most_steps=100))
    config = EvolutionConfig(
        population=8,
        rollouts=4,
        sigma=0.5,
        generations=25,
        select_every=10,
        select_episodes=2,
        workers=1,
        observation=FIRST_SEEN,
    )
    before = player.play(Play(np.zeros((1, len(agent.actor.weights))), (1,), None)).returns.item()
    evolved = evolve(agent, Reality(), config, tmp_path, player)
    log = read_log(tmp_path / "metrics.jsonl")
    assert before < 5
    assert log[-1]["mean"] > 50
    assert log[-1]["env_steps"] == 0 < log[-1]["select_env_steps"]
    assert log[-1]["dream_steps"] > 25 * 8 * 4
    assert log[-1]["best_ever"] >= log[-1]["selected"]
    assert evolved.spec.sampled


class Reality:
    """Another dream, of which evolution knows no more than of an environment."""

    def __call__(self, seeds: Sequence[int], patience: int | None) -> DreamVectorEnv:
        config = DreamConfig(most_steps=20)
        return DreamVectorEnv(deadly(0.3), starts(), len(seeds), SPACE, config, autoreset_mode=AutoresetMode.DISABLED)
