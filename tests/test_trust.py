"""The dream's gap to reality: zero where the model is the process itself, and named where it is not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from sklearn.metrics import log_loss

from agents.agent import Agent, AgentSpec, LatentAgent
from agents.dream import DreamConfig, Starts
from agents.observations import ObservationConfig
from agents.sequences import Trajectories
from agents.trust import (
    AGES,
    LEADS,
    RANGES,
    RULES,
    Beside,
    as_json,
    beside,
    decoded_error,
    dream_returns,
    exploitation,
    foresight,
    gap,
    mortality,
    numbers,
    reward_optimism,
    verdicts,
)
from agents.world_model import WorldModel, WorldModelConfig
from worldvae import FrameVAE, FrameVAEConfig
from worldvae.frames import FrameSpec
from worldvae.latents import LatentEpisode

SPACE = Box(-1, 1, (1,), np.float32)
CPU = torch.device("cpu")
HAZARD = 0.01
"""Of an end in each step of the process."""


def process(episodes: int = 60, hazard: float = HAZARD, seed: int = 0) -> list[LatentEpisode]:
    """Codes that are white noise, rewards of 1 + noise, ends that strike at random."""
    random, made = np.random.default_rng(seed), []
    for _ in range(episodes):
        length = min(200, random.geometric(hazard))
        made.append(
            LatentEpisode(
                mean=random.normal(size=(length + 1, 3)).astype(np.float32),
                logvar=np.full((length + 1, 3), -9, np.float32),
                actions=random.uniform(-1, 1, (length, 1)).astype(np.float32),
                rewards=random.normal(1, 2, length).astype(np.float32),
                visible=np.ones(length + 1, bool),
                terminated=length < 200,
                truncated=length == 200,
            )
        )
    return made


def knowing(hazard: float = HAZARD, reward: float = 1.0) -> WorldModel:
    """The model that is the process: all its weights are zero, its biases what is true whatever one sees."""
    model = WorldModel(WorldModelConfig(3, 1, hidden=4, mixtures=1, reward=True, termination=True)).eval()
    model.requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    model.termination.bias[:] = math.log(hazard / (1 - hazard))
    model.reward.bias[:] = reward
    return model


def trajectories(**changes: object) -> Trajectories:
    return Trajectories(process(**changes), SPACE, CPU)


def test_a_model_that_is_the_process_is_calibrated_neither_optimistic_nor_deathless():
    told = gap(knowing(), trajectories(), trajectories(seed=1), codec(), frames_of(trajectories(seed=1)))
    known = numbers(told, exploited=10 / 9)
    assert known["ends"] == pytest.approx(1, abs=0.35)
    assert known["auroc"] == pytest.approx(0.5, abs=1e-9), "nobody can foresee them"
    assert all(0.3 < value < 3 for value in told.mortality.values())
    assert known["reward"] == pytest.approx(0, abs=0.1)
    assert {v.name for v in verdicts(known)} == {"blind", "ends unforeseen"}, "white noise cannot be foretold"
    told_as_json = as_json(told)
    assert set(told_as_json["forecasts"]) == {"world model", "same as now", "linear-Gaussian"}
    assert sum(told_as_json["ends"]["steps"]) == trajectories(seed=1).lengths.sum()


@pytest.mark.parametrize(("hazard", "expected"), [(0.03, (2, 4.5)), (0.003, (0.2, 0.45))])
def test_ends_that_are_foretold_too_often_or_too_seldom_are_named(hazard, expected):
    told = gap(knowing(hazard), trajectories(), trajectories(seed=1), codec(), frames_of(trajectories(seed=1)))
    low, high = expected
    assert low < numbers(told)["ends"] < high
    assert "wrongly calibrated ends" in {v.name for v in verdicts(numbers(told))}


def test_a_dream_that_forgets_what_kills_is_called_deathless():
    many = trajectories(episodes=400, hazard=0.02)
    assert list(mortality(beside(knowing(0.02), many, AGES[-1])).values()) == pytest.approx([1, 1, 1, 1], abs=0.25)
    assert list(mortality(beside(knowing(0.005), many, AGES[-1])).values()) == pytest.approx([0.25] * 4, abs=0.07)
    assert "deathless" in {v.name for v in verdicts({**dict.fromkeys(RANGES, math.nan), "mortality": 0.25})}
    assert beside(WorldModel(WorldModelConfig(3, 1, 4, 1)), many, 1) is None, "a model of a task without ends"


def test_ends_by_age_are_those_of_a_slow_count():
    """Step by step from every start, with nothing but the episodes' lengths."""
    hazard, data, dreamt, real = 0.02, trajectories(episodes=20, hazard=0.03), np.zeros(64), np.zeros(64)
    for length, first in zip(data.lengths, data.first_rows, strict=True):
        for start in range(8, length):
            for age, step in enumerate(range(start, min(length, start + 64))):
                lives = (1 - hazard) ** age
                dreamt[age] += lives * hazard
                real[age] += lives * data.terminated[first + step].item()
    spans = ((0, 8), (8, 16), (16, 32), (32, 64))
    expected = [dreamt[a:b].sum() / real[a:b].sum() for a, b in spans]
    assert list(mortality(beside(knowing(hazard), data, AGES[-1])).values()) == pytest.approx(expected, rel=1e-4)


def test_what_is_foreseen_is_the_cross_entropy_taken_away():
    """Beside scikit-learn's, of two dreams of each of 500 beginnings, whose episodes may end before."""
    chance = torch.Generator().manual_seed(0)
    alive, ends = torch.rand(2, LEADS[-1], 2, 500, generator=chance).unbind()
    runs = (torch.rand(LEADS[-1], 1, 500, generator=chance) < 0.8).float().expand(-1, 2, -1)
    ended = (torch.rand(LEADS[-1], 1, 500, generator=chance) < 0.2) * runs
    for k, gained in foresight(Beside(alive, ends, runs, ended)).items():
        there = runs[k - 1, 0] > 0
        told, real = (alive * ends)[k - 1].mean(0)[there].double(), ended[k - 1, 0][there]
        expected = 1 - log_loss(real, told) / log_loss(real, real.double().mean().expand(len(real)))
        assert gained == pytest.approx(expected, abs=1e-5)
    knows = Beside(torch.ones_like(alive), ended.expand_as(alive), runs, ended)
    assert list(foresight(knows).values()) == pytest.approx([1] * 5, abs=1e-4)


def test_chance_is_not_foreseen():
    dreams = beside(knowing(), trajectories(), LEADS[-1], draws=2)
    assert dreams is not None
    assert list(foresight(dreams).values()) == pytest.approx([0] * 5, abs=0.01)
    assert "short-sighted" in {v.name for v in verdicts({**dict.fromkeys(RANGES, math.nan), "foresight": 0.3})}


def test_optimism_is_in_the_rewards_own_sd():
    assert reward_optimism(knowing(reward=3.0), trajectories()) == pytest.approx(1, abs=0.1)
    assert math.isnan(reward_optimism(WorldModel(WorldModelConfig(3, 1, 4, 1)), trajectories()))


def test_decoded_error_compares_with_the_right_frames():
    """Frames that are the decoded codes themselves leave the codec without error; forecasts have one."""
    data, vae = trajectories(episodes=12), codec()
    told = decoded_error(knowing(), data, vae, frames_of(data))
    assert all(value == math.inf or value > 60 for value in told["codec alone"].values())
    assert all(value < 60 for name in ("dream", "same as now") for value in told[name].values())
    assert list(told["dream"]) == [1, 2, 4, 8, 16]


def test_an_agent_earns_in_dreams_what_the_hazard_leaves_it():
    model = knowing(0.1)
    spec = AgentSpec(ObservationConfig(1, False), 3, "", SPACE, 1, 0, "controller")
    starts = Starts(torch.randn(5, 3), model.start(5))
    agent = Agent(spec)

    def make(env):
        return LatentAgent(agent, env.num_envs)

    returns = dream_returns(make, model, starts, SPACE, DreamConfig(most_steps=500), 400)
    assert returns.mean() == pytest.approx(1 / 0.1, rel=0.2)
    capped = dream_returns(make, knowing(1e-9), starts, SPACE, DreamConfig(most_steps=7), 3)
    np.testing.assert_allclose(capped, 7, rtol=1e-5)


def test_each_number_has_a_rule_and_each_rule_a_sentence_with_its_value():
    assert {rule.number for rule in RULES} == set(RANGES)
    for rule in RULES:
        low, high = RANGES[rule.number]
        for value in (low - 1, high + 1):
            (verdict,) = verdicts({**dict.fromkeys(RANGES, math.nan), rule.number: value})
            assert verdict.threshold in (low, high)
            assert verdict.remedy
    assert not verdicts({number: (low + high) / 2 for number, (low, high) in RANGES.items()})


def test_exploitation_is_a_dream_that_rises_while_reality_falls():
    rising = [{"step": s, "mean": m, "selected": r, "best_ever": 300} for s, m, r in ((1, 200, 150), (2, 400, 300))]
    fell = [*rising, {"step": 3, "mean": 900, "selected": 100, "best_ever": 300}]
    assert exploitation(fell).startswith("EXPLOITED: since step 2 the dream's return rose from 400 to 900")
    assert "none seen" in exploitation([*rising, {**fell[-1], "selected": 290}])
    assert "too few" in exploitation(rising)


def codec() -> FrameVAE:
    torch.manual_seed(0)
    vae = FrameVAE(FrameVAEConfig(FrameSpec(32, 32), latent_size=3)).eval()
    with torch.no_grad():
        for parameter in vae.decoder.parameters():
            parameter.mul_(2)  # so that frames differ
    return vae


def frames_of(data: Trajectories) -> np.ndarray:
    return codec().decode(data.codes.mean.numpy())
