"""A pipeline of several rounds on the dot environment: agents that learn in dreams of it, and then see more of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from agents.actor_critic import ActorCriticConfig
from agents.dream import DreamConfig, real_starts
from agents.dynamics import DynamicsConfig
from agents.sequences import Trajectories
from scripts import dream, dream_gap
from scripts.collect import CollectConfig, collect, positions, returns_of
from scripts.dreaming import dreaming
from scripts.encode import encode_rollouts
from scripts.evaluate import EvaluateConfig, score
from scripts.learn_in_dream import DreamAgentConfig
from scripts.pipeline import Again, PipelineConfig, choose, refresh_codec, run_pipeline, with_seed
from scripts.run_folder import RunFolder
from worldvae import FrameSpec, FrameVAE, ObjectiveConfig, RolloutStore, VAETrainingConfig
from worldvae.checkpoint import read_json
from worldvae.latents import LatentStore

PLAY = CollectConfig("tests.pixel_env:tests/Dot-v0", episodes=20, backend="sync", num_envs=4, frame=FrameSpec(32, 32))
VAE = VAETrainingConfig(latent_size=4, objective=ObjectiveConfig(sigma=0.1, free_bits=0.0), passes=6, device="cpu")
M = DynamicsConfig(hidden=32, mixtures=2, passes=30, batch_size=8, restart=True, device="cpu")
CONFIG = PipelineConfig(
    collect=(PLAY,),
    vae=VAE,
    dynamics=M,
    agent=DreamAgentConfig(
        dream=DreamConfig(most_steps=20),
        select_episodes=2,
        workers=1,
        learning=ActorCriticConfig(dreams=32, horizon=8, iterations=8, minibatches=2, hidden=16, selections=2),
    ),
    evaluate=EvaluateConfig(episodes=2, workers=1, film=False),
    rounds=2,
    again=Again(
        collect=replace(PLAY, episodes=8, first_seed=5000),
        vae=replace(VAE, passes=1, learning_rate=1e-3),
        dynamics=replace(M, passes=5, learning_rate=1e-3),
    ),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[RunFolder, str]:
    run = RunFolder(tmp_path_factory.mktemp("rounds"))
    return run, run_pipeline(run, with_seed(CONFIG, 0))


def test_the_second_rounds_rollouts_are_played_by_the_firsts_agent(finished):
    run, _ = finished
    store = RolloutStore(run.rollouts)
    assert [store.header(i)["policy"] for i in range(36)] == ["correlated"] * 20 + ["agent"] * 16
    assert [store.header(i)["seed"] for i in range(20, 36)] == list(range(5000, 5016))
    first, last = (FrameVAE.load(folder.vae).sha256 for folder in (run.round(0), run))
    assert first != last
    assert [folder.path.name for folder in run.earlier] == ["round-0"]


def test_only_collecting_and_selecting_took_env_steps_and_all_rounds_minutes_count(finished):
    run, table = finished
    told = read_json(run.path / "evaluation.json")
    assert told["env_steps"] == {"collect": 36 * 20, "train": 0, "select": 2 * 2 * 2 * 20}
    assert told["config"]["agent"]["dream_steps"] == 8 * 8 * 32
    stages = [folder.stages for folder in (run, run.round(0))]
    spent = sum(each[s]["seconds"] for each in stages for s in ("train_vae", "encode", "train_dynamics", "train_agent"))
    assert told["wall_seconds"]["train"] == pytest.approx(spent)
    assert told["wall_seconds"]["collect"] == pytest.approx(
        sum(each[s]["seconds"] for each in stages for s in ("collect", "choose") if s in each)
    )
    assert "report.html" in table


def test_what_is_done_is_not_done_again_in_any_round(finished, capsys):
    run, _ = finished
    run_pipeline(run, with_seed(CONFIG, 0))
    assert capsys.readouterr().out.count("done before") == 5 + 5 + 1 + 2


def test_a_codec_that_is_kept_has_only_new_episodes_to_encode(finished, tmp_path):
    run, _ = finished
    later = RunFolder(tmp_path, run.rollouts)
    refresh_codec(later, None, run.round(0))
    first = FrameVAE.load(run.round(0).vae)
    assert FrameVAE.load(later.vae).sha256 == first.sha256 != FrameVAE.load(run.vae).sha256
    assert len(LatentStore(later.latents)) == 20
    encode_rollouts(later)
    latents, store = LatentStore(later.latents), RolloutStore(run.rollouts)
    assert len(latents) == 36
    np.testing.assert_allclose(latents[27].mean, first.encode(store.visible_frames(27)).mean, atol=1e-4)


@pytest.mark.parametrize("better", [0, 1])
def test_the_agent_of_the_round_that_played_best_is_judged(finished, tmp_path, better):
    """Were the rounds' returns others, another agent would be chosen: the recorded ones are changed to see that."""
    run = RunFolder(tmp_path / "run")
    shutil.copytree(finished[0].path, run.path)
    store = RolloutStore(run.rollouts)
    for i in positions(store, range(5000 + 8 * better, 5008 + 8 * better)):
        tensors, header = store.episodes.read(store.indices[i])
        store.episodes.write(store.indices[i], {**tensors, "rewards": tensors["rewards"] + 1000}, header)
    choose(run, with_seed(CONFIG, 0))
    told = read_json(run.path / "chosen.json")
    assert told["round"] == better
    assert told["returns"] == [
        np.mean(returns_of(store, positions(store, range(first, first + 8)))) for first in (5000, 5008)
    ]
    chosen = run.round(0) if better == 0 else run
    report = score(run, CONFIG.evaluate)
    alone = score(RunFolder(chosen.path, run.rollouts), CONFIG.evaluate)
    assert report["returns"] == alone["returns"]
    assert report["chosen"] == told


def test_a_kept_codec_stays(tmp_path):
    run = RunFolder(tmp_path)
    run_pipeline(run, with_seed(replace(CONFIG, again=replace(CONFIG.again, vae=None)), 1))
    assert FrameVAE.load(run.vae).sha256 == FrameVAE.load(run.round(0).vae).sha256
    assert len(LatentStore(run.latents)) == 28


def test_an_agent_that_sees_other_frames_plays_nothing_and_leaves_nothing(finished, tmp_path):
    others = replace(PLAY, policy="agent", agent_run=finished[0].path, frame=FrameSpec(16, 32))
    with pytest.raises(ValueError, match="sees FrameSpec"):
        collect(RunFolder(tmp_path / "other"), others)
    assert not (tmp_path / "other" / "rollouts").exists()


def test_another_training_seed_plays_other_episodes_in_every_round():
    seeded = with_seed(CONFIG, 3)
    assert (seeded.collect[0].first_seed, seeded.again.collect.first_seed) == (30_000, 35_000)
    assert seeded.again.vae.seed == seeded.again.dynamics.seed == seeded.agent.learning.seed == 3


def test_its_way_is_in_the_folder(finished):
    run, _ = finished
    for folder in (run.path, run.path / "round-0"):
        assert {"vae", "latents", "dynamics", "agent", "stages.json"} <= {p.name for p in Path(folder).iterdir()}


def test_dreams_can_begin_in_what_no_agent_has_played_alone(finished, tmp_path):
    run, _ = finished
    store, vae = RolloutStore(run.rollouts), FrameVAE.load(run.vae)
    played = list(LatentStore(run.latents))
    for random_play, episodes in ((False, played), (True, played[:20])):  # the agent played the others
        model, starts = dreaming(run, store, vae, context=3, seed=0, random_play=random_play)
        expected = real_starts(model, Trajectories(episodes, store.action_space, model.device), context=3)
        assert torch.equal(starts.z, expected.z)

    agents_own = RunFolder(tmp_path)
    collect(agents_own, replace(PLAY, episodes=2, policy="agent", agent_run=run.path))
    for name in ("vae", "dynamics"):
        (tmp_path / name).symlink_to(run.path / name)
    encode_rollouts(agents_own)
    with pytest.raises(ValueError, match="agents played all rollouts"):
        dreaming(agents_own, RolloutStore(agents_own.rollouts), vae, context=0, seed=0, random_play=True)


def test_the_gap_between_dream_and_reality_is_told(finished, capsys):
    run, _ = finished
    dream_gap.main(run.path, run.agent, held=(1, 5), temperatures=(1.0, 1.3), episodes=4, most_steps=20, workers=1)
    told, shown = json.loads((run.dynamics / "dream_gap.json").read_text()), capsys.readouterr().out
    assert [one["name"] for one in told["played"]] == [
        "the agent",
        *(f"random actions, {n} steps each" for n in (1, 5)),
    ]
    for one in told["played"]:
        assert [dream["temperature"] for dream in one["dreams"]] == [1.0, 1.3]
        assert len(one["reality"]["returns"]) == 4
        assert min(one["reality"]["episode_seeds"]) >= 1_900_000
    agent, *randoms = (one["dreams"][0]["mean"] / one["reality"]["mean"] for one in told["played"])
    assert told["numbers"]["exploited"] == pytest.approx(agent)
    assert told["numbers"]["forgiving"] in map(pytest.approx, randoms)
    assert set(told["forecasts"]) == {"world model", "same as now", "linear-Gaussian"}
    for verdict in told["verdicts"]:
        assert verdict["name"].upper() in shown
    assert "reality took 240 env steps of selection" in shown
    height, width, _ = cv2.imread(str(run.dynamics / "dream_gap.png")).shape
    assert width > 2 * height


def test_dreams_are_filmed_beside_reality_and_played_in_without_a_display(finished, monkeypatch, capsys):
    run, _ = finished
    dream.main(run.path, episode=0)
    assert cv2.imread(str(run.pictures / "dream.png")).shape[0] > 3 * 32
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    dream.main(run.path, play=True, steps=6)
    frames = cv2.VideoCapture(str(run.pictures / "dream_played.webm"))
    assert frames.get(cv2.CAP_PROP_FRAME_COUNT) in (6, 7)
    assert "dream_played.gif" in capsys.readouterr().out


def test_an_agent_is_judged_and_filmed_in_another_environment_under_its_name(finished):
    run, _ = finished
    own = read_json(run.path / "evaluation.json")
    score(run, EvaluateConfig(episodes=2, workers=1, env="tests.pixel_env:tests/RenderOnly-v0"))
    told = read_json(run.path / "evaluation_RenderOnly-v0.json")
    assert (told["env"], told["episode_seeds"]) == ("tests.pixel_env:tests/RenderOnly-v0", own["episode_seeds"])
    filmed = cv2.VideoCapture(str(run.pictures / "film_RenderOnly-v0.webm"))
    assert filmed.get(cv2.CAP_PROP_FRAME_COUNT) == 20 + 1
    assert read_json(run.path / "evaluation.json") == own


@pytest.mark.parametrize(
    ("space", "keys", "vector"),
    [
        (Box(-1, 1, (1,)), "left", [-1]),
        (Box(-1, 1, (1,)), "", [0]),
        (Box(-1, 1, (2,)), "right down", [1, -1]),
        (Box(np.array([-1, 0, 0]), np.array([1, 1, 1]), dtype=np.float64), "left up", [-1, 1, -1]),  # gas, no brake
        (Discrete(3), "", [1, 0, 0]),
        (Discrete(3), "right", [0, 0, 1]),
        (Discrete(3), "up", [1, 0, 0]),
    ],
)
def test_arrow_keys_steer(space, keys, vector):
    assert dream.steered(space, *(key in keys.split() for key in ("left", "right", "up", "down"))).tolist() == vector
