"""Controllers evolve: on CartPole's state and on the dot environment's pixels, through workers."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from agents.agent import Agent, AgentSpec, PixelAgent
from agents.evaluation import evaluate
from agents.evolution import Evolution, EvolutionConfig, evolve
from agents.observations import ObservationConfig
from agents.play import LatentEnvs, Play, play
from scripts.evolve import EvolveConfig, run_evolution
from scripts.run_folder import RunFolder
from tests.dots import record_dots
from worldvae.checkpoint import CheckpointError, load_tree, save_tree
from worldvae.fit import read_log
from worldvae.vae import FrameVAE, FrameVAEConfig

LIMIT = 200
CONFIG = EvolutionConfig(
    population=8, sigma=0.5, generations=6, rollouts=2, select_every=3, select_episodes=4, candidates_at_once=4, seed=3
)


@dataclass(frozen=True)
class CartPoles:
    """CartPole-v1's own state in place of latents; writes down the seeds it was asked for."""

    diary: Path | None = None
    seconds: float = 0.0
    spoilt: bool = False

    def __call__(self, seeds, patience):
        if self.diary:
            with open(self.diary, "a") as file:
                file.write(json.dumps([os.getpid(), list(seeds), patience]) + "\n")
        time.sleep(self.seconds)
        return SyncVectorEnv([self.one] * len(seeds), autoreset_mode=AutoresetMode.DISABLED)

    def one(self):
        env = gymnasium.make("CartPole-v1", max_episode_steps=LIMIT)
        return gymnasium.wrappers.TransformReward(env, lambda r: float("nan")) if self.spoilt else env


def cart_agent(**changes):
    spec = AgentSpec(
        observation=ObservationConfig(stack=1, last_action=False),
        latent_size=4,
        codec_sha256="",
        action_space=gymnasium.spaces.Discrete(2),
        action_repeat=1,
        hidden=0,
        architecture="controller",
    )
    return Agent(replace(spec, **changes))


def log_of(folder):
    """The log without what a clock says."""
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in read_log(folder / "metrics.jsonl")]


def mean_return(agent, make_env, seeds):
    weights = agent.actor.weights.double().numpy().reshape(1, -1)
    return play(agent, make_env, Play(weights, tuple(seeds), None)).returns.mean()


def result_of(folder):
    """The bytes of the checkpointed state and of the saved agent, and the log."""
    save_tree(folder / "state", load_tree(folder / "training.safetensors")["state"])
    return (folder / "state").read_bytes(), (folder / "model.safetensors").read_bytes(), log_of(folder)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, evolve(cart_agent(), CartPoles(), CONFIG, folder)


@pytest.mark.parametrize(("covariance", "hidden"), [("full", 0), ("diagonal", 0), ("full", 4)])
def test_it_learns_to_balance_a_pole(covariance, hidden, tmp_path):
    config = replace(CONFIG, covariance=covariance, generations=40, hidden=hidden)
    agent = evolve(cart_agent(hidden=hidden), CartPoles(), config, tmp_path)
    test_seeds = range(2_000_000, 2_000_020)
    assert mean_return(agent, CartPoles(), test_seeds) > 0.9 * LIMIT
    nobody = cart_agent(hidden=hidden)
    assert mean_return(nobody, CartPoles(), test_seeds) < 0.2 * LIMIT


def test_an_interrupted_evolution_equals_an_unbroken_one(undisturbed, tmp_path, monkeypatch):
    folder, _ = undisturbed
    played = Evolution._play

    def interrupted(self, *args):
        if self.cma.generation == 4:
            raise KeyboardInterrupt  # after the generation's candidates were drawn
        return played(self, *args)

    monkeypatch.setattr(Evolution, "_play", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evolve(cart_agent(), CartPoles(), CONFIG, tmp_path)
    monkeypatch.undo()
    evolve(cart_agent(), CartPoles(), CONFIG, tmp_path)
    assert result_of(tmp_path) == result_of(folder)


def test_results_do_not_depend_on_how_many_workers_play(undisturbed, tmp_path):
    folder, _ = undisturbed
    evolve(cart_agent(), CartPoles(), replace(CONFIG, workers=1), tmp_path)
    assert result_of(tmp_path) == result_of(folder)


def test_a_worker_killed_from_outside_changes_nothing_and_is_named(undisturbed, tmp_path, caplog):
    folder, _ = undisturbed
    diary = tmp_path / "diary"

    def kill_one():
        while not diary.exists() or len(diary.read_text().splitlines()) < 5:
            time.sleep(0.01)
        pid, *_ = json.loads(diary.read_text().splitlines()[4])
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    killed: list[int] = []
    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    evolve(cart_agent(), CartPoles(diary, seconds=0.1), CONFIG, tmp_path / "evolved")
    killer.join()
    assert f"(pid {killed[0]}) was killed by SIGKILL" in caplog.text
    assert result_of(tmp_path / "evolved") == result_of(folder)


def test_the_best_ever_is_chosen_on_fresh_selection_seeds(tmp_path):
    diary = tmp_path / "diary"
    config = replace(CONFIG, generations=7, patience=50, workers=1)
    agent = evolve(cart_agent(), CartPoles(diary), config, tmp_path / "evolved")
    asked = [json.loads(line)[1:] for line in diary.read_text().splitlines()]
    training, selection = ([seeds for seeds, patience in asked if patience == p] for p in (50, None))
    # a generation's candidates all play the same two seeds, and the next one's two fresh ones
    first = 10_000 * 3 + 1_000
    assert training == [[first + 2 * g, first + 2 * g + 1] * 4 for g in range(7) for _ in range(2)]
    # after generations 3, 6 and the last: mean and leader, four whole episodes that were never played before
    first = 1_000_000 + 10_000 * 3
    assert selection == [list(range(first + 4 * i, first + 4 * i + 4)) for i in range(3) for _ in range(2)]
    summary = json.loads((tmp_path / "evolved" / "config.json").read_text())["training"]
    scores = [mean_return(agent, CartPoles(), seeds) for seeds in selection]
    assert summary["best_ever"] in scores
    assert summary["best_ever"] == log_of(tmp_path / "evolved")[-1]["best_ever"]


def test_env_steps_of_play_and_of_selection_are_counted_apart(undisturbed):
    folder, _ = undisturbed
    log = log_of(folder)
    summary = json.loads((folder / "config.json").read_text())["training"]
    assert summary["seed"] == 3
    assert summary["generation"] == 6
    for key in ("env_steps", "select_env_steps"):
        assert summary[key] == log[-1][key] > 0
    returns = [entry["mean"] * CONFIG.population * CONFIG.rollouts for entry in log]  # a point for each step
    np.testing.assert_allclose(np.cumsum(returns), [entry["env_steps"] for entry in log])
    assert [("best_ever" in entry) for entry in log] == [False, False, True, True, True, True]


def test_an_evolution_that_ran_out_of_time_still_selects(tmp_path):
    agent = evolve(cart_agent(), CartPoles(), replace(CONFIG, minutes=1e-6, select_every=5), tmp_path)
    state = load_tree(tmp_path / "training.safetensors")
    assert state["step"] == state["state"]["selections"] == state["state"]["selected_at"] == 1
    np.testing.assert_array_equal(agent.actor.weights, state["state"]["best"].float())


def test_it_starts_from_the_ancestors_weights_and_leaves_the_ancestor_alone(undisturbed, tmp_path):
    ancestor = undisturbed[1]
    before = ancestor.actor.weights.clone()
    config = replace(CONFIG, sigma=1e-6, generations=1, workers=1)
    agent = evolve(ancestor, CartPoles(), config, tmp_path)
    torch.testing.assert_close(agent.actor.weights, before, atol=1e-4, rtol=0)
    assert torch.equal(ancestor.actor.weights, before)


def test_a_return_that_is_no_number_ends_with_a_sentence(tmp_path):
    with pytest.raises(RuntimeError, match=r"raised .*reward is not a finite number: nan"):
        evolve(cart_agent(), CartPoles(spoilt=True), CONFIG, tmp_path)


def test_another_kind_of_evolution_is_refused_in_the_same_folder(undisturbed):
    folder, _ = undisturbed
    for changed in ({"population": 10}, {"covariance": "diagonal"}):
        with pytest.raises(CheckpointError, match=r"under other settings.*evolve in a new folder"):
            evolve(cart_agent(), CartPoles(), replace(CONFIG, **changed), folder)


def test_mistakes_are_told_before_anything_is_played():
    with pytest.raises(ValueError, match="population must be >= 4"):
        EvolutionConfig(population=2)
    with pytest.raises(ValueError, match="kept for selection"):
        EvolutionConfig(generations=100_000, rollouts=16)


@pytest.fixture(scope="module")
def dots(tmp_path_factory):
    """The dot environment through a codec of chance: its features are enough to see a dot."""
    folder = tmp_path_factory.mktemp("codec")
    torch.manual_seed(0)
    FrameVAE(FrameVAEConfig(latent_size=8)).save(folder)
    return folder, FrameVAE.load(folder)


def dot_agent(vae, discrete):
    space = gymnasium.make("tests/DiscreteDot-v0" if discrete else "tests/Dot-v0").action_space
    return cart_agent(latent_size=8, codec_sha256=vae.sha256, action_space=space)


@pytest.mark.parametrize("env_id", ["tests/Dot-v0", "tests/DiscreteDot-v0"])
def test_candidates_played_at_once_return_what_each_returns_alone_in_the_official_protocol(env_id, dots):
    folder, vae = dots
    agent = dot_agent(vae, env_id == "tests/DiscreteDot-v0")
    weights = np.random.default_rng(0).normal(size=(3, agent.actor.weights.shape[-1]))
    seeds = (7, 8, 9, 10)
    played = play(agent, LatentEnvs(folder, env_id, action_repeat=2), Play(weights, seeds, None))
    assert played.env_steps == 3 * 4 * 20
    for candidate, returns in zip(weights, played.returns, strict=True):
        agent.actor.weights.data = torch.from_numpy(candidate).float()
        scores = evaluate(env_id, lambda e: PixelAgent(agent, vae, e.num_envs), seeds, workers=2, action_repeat=2)
        assert scores.returns == tuple(returns)


def test_patience_cuts_episodes_and_counts_their_steps(dots):
    folder, vae = dots
    agent = dot_agent(vae, discrete=False)
    envs = LatentEnvs(folder, "tests/Dot-v0", env_kwargs={"target": -50.0})  # where no reward is
    played = play(agent, envs, Play(np.zeros((2, agent.actor.weights.shape[-1])), (1, 2), 5))
    assert played.env_steps == 2 * 2 * 5


def test_envpool_plays_the_same_track_for_the_same_seed(dots):
    pytest.importorskip("envpool")
    folder, vae = dots
    envs = LatentEnvs(folder, "CarRacing-v3", "envpool", action_repeat=4, max_episode_steps=80)
    agent = cart_agent(latent_size=8, codec_sha256=vae.sha256, action_space=envs([0], None).single_action_space)
    weights = np.zeros((2, agent.actor.weights.shape[-1]))
    weights[:, -2:] = 1.0, -9.0  # gas, no brake
    first, second = (play(agent, envs, Play(weights, seeds, None)).returns for seeds in ((5, 6, 5), (6, 7)))
    np.testing.assert_array_equal(first[0], first[1])
    assert first[0, 0] == first[0, 2] != first[0, 1] == second[0, 0] != second[0, 1]


@pytest.mark.parametrize("memory", ["none", "untrained"])
def test_the_script_evolves_in_a_runs_environment_and_the_agent_plays_from_its_file(memory, tmp_path):
    run = RunFolder(tmp_path)
    record_dots(run.rollouts, episodes=2, env_id="tests.pixel_env:tests/DiscreteDot-v0")
    torch.manual_seed(0)
    FrameVAE(FrameVAEConfig(latent_size=8)).save(run.vae)
    config = EvolveConfig(memory=memory, evolution=replace(CONFIG, generations=2, workers=1))
    run_evolution(run, config)
    agent, vae = Agent.load(run.path / "evolved"), FrameVAE.load(run.vae)
    assert agent.actor.weights.shape == ((8 + (256 if memory != "none" else 0) + 1) * 3,)
    scores = evaluate("tests/DiscreteDot-v0", lambda e: PixelAgent(agent, vae, e.num_envs), [2_000_000], workers=1)
    assert scores.lengths == (20,)
