"""An actor-critic in the dream: it learns to live, reality selects, and what is interrupted goes on as it was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium.spaces import Discrete, MultiBinary
from gymnasium.vector import VectorEnv

from agents.actor_critic import ActorCritic, ActorCriticConfig, learn_in_dream
from agents.agent import Agent, AgentSpec, LatentAgent
from agents.committee import Committee
from agents.dream import Dream, DreamConfig, Starts
from agents.observations import ObservationConfig
from agents.trust import dream_returns
from agents.world_model import WorldModel
from tests.deadly import FIRST_SEEN, SPACE, deadly, starts
from worldvae.fit import read_log

CONFIG = ActorCriticConfig(
    dreams=64, horizon=8, iterations=60, minibatches=2, hidden=16, learning_rate=1e-2, selections=0
)
DREAM = DreamConfig(most_steps=60)


def agent_of(model: WorldModel, **changes: object) -> Agent:
    torch.manual_seed(0)
    return Agent(replace(AgentSpec(FIRST_SEEN, 3, "", SPACE, 1, 16, memory=model.config), **changes), model)


def lived(agent: Agent, model: WorldModel, begin: Starts) -> float:
    def make(env: VectorEnv) -> LatentAgent:
        return LatentAgent(agent, env.num_envs)

    return dream_returns(make, model, begin, agent.spec.action_space, DREAM, 50).mean()


def test_it_learns_to_live(tmp_path):
    model = deadly()
    agent = agent_of(model)
    begin = replace(starts(), state=model.start(5))  # where a player of whole episodes begins
    before = lived(agent, model, begin)
    learned = learn_in_dream(agent, model, begin, DREAM, CONFIG, tmp_path)
    assert before < 20
    assert lived(learned, model, begin) > 55
    log = read_log(tmp_path / "metrics.jsonl")
    assert log[-1]["return"] > 2 * log[0]["return"]
    assert log[-1]["dream_steps"] == 60 * 8 * 64
    assert log[-1]["env_steps"] == log[-1]["select_env_steps"] == 0


def test_it_learns_to_choose_among_discrete_actions(tmp_path):
    """Of three choices one is deadly: the model sees the last of them as its only number."""
    model = deadly(-0.5)
    wide = WorldModel(replace(model.config, action_size=3)).eval().requires_grad_(False)
    wide.load_state_dict({k: v for k, v in model.state_dict().items() if k != "lstm.weight_ih_l0"}, strict=False)
    seen = model.lstm.weight_ih_l0
    wide.lstm.weight_ih_l0[:] = torch.cat([seen[:, :3], seen[:, 3:] * torch.tensor([[-1.0, 0.0, 1.0]])], 1)
    agent = agent_of(wide, action_space=Discrete(3))
    begin = replace(starts(), state=wide.start(5))
    learned = learn_in_dream(agent, wide, begin, DREAM, CONFIG, tmp_path)
    assert read_log(tmp_path / "metrics.jsonl")[0]["return"] < 10
    assert lived(learned, wide, begin) > 55


def test_advantages_are_discounted_sums_of_surprises_until_each_dreams_end(monkeypatch):
    """Against the definition, one dream and one step at a time."""
    model, config = deadly(-0.7), replace(CONFIG, trace=0.8, discount=0.9, horizon=12)
    learner = ActorCritic(agent_of(model), Dream(model, starts(), 16, DreamConfig(most_steps=5)), config)
    step, seen = learner.dream.step, []

    def watched(a_t):
        told = step(a_t)
        seen.append((*told, learner._value(learner._seen())[0].detach()))
        return told

    monkeypatch.setattr(learner.dream, "step", watched)
    experience, _ = learner._dreamt()
    ends = set()
    for n in range(16):
        for t in range(12):
            expected, weight = 0.0, 1.0
            for k in range(t, 12):
                reward, terminated, truncated, following = (x[n].item() for x in seen[k])
                ahead = 0.0 if terminated else 0.9 * following
                expected += weight * (0.1 * reward + ahead - experience.value[k, 0, n].item())
                weight *= 0.9 * 0.8
                if terminated or truncated:
                    ends.add((terminated, truncated))
                    break
            assert experience.advantage[t, 0, n].item() == pytest.approx(expected, abs=1e-5)
    assert len(ends) >= 2, "some terminated and some were truncated"


def test_reality_selects_the_best_and_that_is_counted(tmp_path):
    model, scores = deadly(), iter([5.0, 9.0, 3.0, 1.0])
    kept: list[torch.Tensor] = []

    def select(agent: Agent, asked: int) -> tuple[float, int]:
        assert asked == len(kept)
        kept.append(next(iter(agent.actor.parameters())).detach().clone())
        return next(scores), 100

    learned = learn_in_dream(
        agent_of(model), model, starts(), DREAM, replace(CONFIG, selections=4, iterations=8), tmp_path, select
    )
    assert torch.equal(next(iter(learned.actor.parameters())), kept[1])
    told = read_log(tmp_path / "metrics.jsonl")[-1]
    assert (told["best_ever"], told["selected"], told["select_env_steps"]) == (9, 1, 400)


def test_several_actors_learn_apart_and_act_as_one(tmp_path):
    """Each is scored by itself, and its best says its word: here the first's first, and the others' last."""
    model = deadly()
    begin = replace(starts(), state=model.start(5))
    weights: list[torch.Tensor] = []

    def select(agent: Agent, asked: int) -> tuple[float, int]:
        weights.append(next(iter(agent.actor.parameters())).detach().clone())
        return float(asked) if asked != 3 else -1.0, 100

    config = replace(CONFIG, selections=2)
    learned = learn_in_dream(agent_of(model, actors=3), model, begin, DREAM, config, tmp_path, select)
    assert isinstance(learned.actor, Committee)
    for member, chosen in zip(learned.actor.members, (0, 4, 5), strict=True):
        assert torch.equal(next(iter(member.parameters())), weights[chosen])
    assert lived(learned, model, begin) > 55
    told = read_log(tmp_path / "metrics.jsonl")[-1]
    assert (told["dream_steps"], told["select_env_steps"]) == (3 * 60 * 8 * 64, 600)


def test_where_time_runs_out_all_actors_have_learned_as_much(tmp_path):
    model, config = deadly(), replace(CONFIG, minutes=1e-6)
    learned = learn_in_dream(agent_of(model, actors=3), model, starts(), DREAM, config, tmp_path)
    assert learned.spec.actors == 3
    for member, new in zip(learned.actor.members, agent_of(model, actors=3).actor.members, strict=True):
        assert not torch.equal(next(iter(member.parameters())), next(iter(new.parameters())))
    assert read_log(tmp_path / "metrics.jsonl")[-1]["dream_steps"] == 3 * 8 * 64


def test_actors_learn_as_if_each_were_alone(tmp_path):
    """What one is told of its dreams makes no difference to the other."""
    model = deadly()
    learner = ActorCritic(agent_of(model, actors=2), Dream(model, starts(), 128, DREAM), CONFIG)
    experience, _ = learner._dreamt()
    parts = experience.by_actor()
    *others, advantage = parts
    changed = [*others, advantage * torch.tensor([[1.0], [-1.0]])]
    ends = []
    for given in (parts, changed):
        fresh = ActorCritic(agent_of(model, actors=2), Dream(model, starts(), 128, DREAM), CONFIG)
        fresh._update(*given)
        ends.append([next(iter(actor.parameters())).detach().clone() for actor in fresh.actors])
    assert torch.equal(ends[0][0], ends[1][0])
    assert not torch.equal(ends[0][1], ends[1][1])


@pytest.mark.parametrize(
    ("selections", "updates"), [(1, [8]), (2, [4, 8]), (3, [3, 6, 8]), (8, [1, 2, 3, 4, 5, 6, 7, 8])]
)
def test_selections_are_spread_evenly_and_the_last_actor_is_scored(tmp_path, selections, updates):
    model, at = deadly(), []
    config = replace(CONFIG, dreams=4, iterations=8, selections=selections)

    def select(agent: Agent, asked: int) -> tuple[float, int]:
        at.append(learner.updates)
        return 0.0, 1

    learner = ActorCritic(agent_of(model), Dream(model, starts(), 4, DREAM), config, select)
    for iteration in range(8):
        learner.step(iteration)
    learner.finish()
    assert at == updates


@pytest.mark.parametrize("actors", [1, 3])
def test_an_interrupted_learner_ends_with_the_same_weights(tmp_path, monkeypatch, actors):
    def select(agent: Agent, asked: int) -> tuple[float, int]:
        return float(asked), 1  # the last

    model, config = deadly(), replace(CONFIG, iterations=6, selections=1)
    whole = learn_in_dream(agent_of(model, actors=actors), model, starts(), DREAM, config, tmp_path / "whole", select)
    step = ActorCritic.step

    def interrupted(self, iteration):
        if iteration == 3:
            raise KeyboardInterrupt
        return step(self, iteration)

    monkeypatch.setattr(ActorCritic, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        learn_in_dream(agent_of(model, actors=actors), model, starts(), DREAM, config, tmp_path / "cut", select)
    monkeypatch.undo()
    resumed = learn_in_dream(agent_of(model, actors=actors), model, starts(), DREAM, config, tmp_path / "cut", select)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("wrong", [{"dreams": 0}, {"horizon": 0}, {"selections": -1}, {"selections": 100}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        replace(CONFIG, **wrong)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"observation": ObservationConfig(stack=4)}, "stack 1, and no last action"),
        ({"action_space": MultiBinary(2)}, "plays"),
    ],
)
def test_what_it_cannot_learn_is_refused(changes, words):
    model = deadly()
    agent = agent_of(model)
    agent.spec = replace(agent.spec, **changes)
    with pytest.raises(ValueError, match=words):
        ActorCritic(agent, Dream(model, starts(), 4, DREAM), CONFIG)
    assert np.isfinite(model.termination.bias.item())
