"""Training the world model: known processes to their entropy, real episodes below the baselines."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from scipy.special import expit, xlogy

from agents.dynamics import (
    DynamicsConfig,
    DynamicsLearner,
    fed_back,
    load_trajectories,
    negative_log_likelihood,
    train_dynamics,
)
from agents.forecasts import CONTEXT, Learned, compare, nll_per_step
from agents.sequences import Sequences, Trajectories
from agents.world_model import WorldModel, WorldModelConfig
from tests.dots import SMALL, record_dots
from worldvae import CheckpointError, ObjectiveConfig, VAETrainingConfig, encode, train_vae
from worldvae.checkpoint import FORMAT_VERSION, read_json, write_json
from worldvae.fit import read_log
from worldvae.latents import LatentEpisode, LatentStore

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
SPACE = Box(-1, 1, (1,), np.float32)
CONFIG = DynamicsConfig(hidden=32, mixtures=3, passes=120, batch_size=8, dropout=0.0, device="cpu")


def store_of(folder: Path, episodes: list[LatentEpisode]) -> LatentStore:
    """These episodes on disk, as ``encode`` would have left them."""
    folder.mkdir(parents=True)
    codec = {"codec_sha256": "c" * 64, "latent_size": episodes[0].mean.shape[1], "precision": "float32"}
    write_json(folder / "latents.json", {"format_version": FORMAT_VERSION, "kind": LatentStore.KIND, **codec})
    store = LatentStore(folder)
    for i, episode in enumerate(episodes):
        tensors = {name: getattr(episode, name) for name in ("mean", "logvar", "actions", "rewards", "visible")}
        store.episodes.write(i, tensors, {"terminated": episode.terminated, "truncated": episode.truncated})
    return LatentStore(folder)


def random_episode(length: int, seed: int, blanked: bool = False) -> LatentEpisode:
    random = np.random.default_rng(seed)
    mean, logvar = random.standard_normal((2, length + 1, 2)).astype(np.float32)
    actions = random.uniform(-1, 1, (length, 1)).astype(np.float32)
    rewards = random.standard_normal(length).astype(np.float32)
    visible = np.arange(length + 1) < length + (not blanked)
    return LatentEpisode(mean, logvar, actions, rewards, visible, seed % 2 == 0, seed % 2 == 1)


# ---- what M is given


def test_codes_fed_back_are_the_models_own_draws_at_the_share_asked_for():
    model, generator = random_model(), torch.Generator().manual_seed(0)
    z_t, a_t = torch.randn(64, 51, 2, generator=generator), torch.randn(64, 51, 1, generator=generator)
    given = fed_back(model, z_t, a_t, 0.25, generator)
    changed = (given != z_t).any(-1)
    assert not changed[:, 0].any()
    assert changed[:, 1:49].sum(1).unique().tolist() in ([12], [11, 12]), "of three times 16 steps, the first not"
    assert (changed[:, 1:-1].diff(dim=1) != 0).sum(1).max() <= 8, "in stretches"
    expected = model(given[:, :-1], a_t[:, :-1])[0].z_tp1
    standard = ((given[:, 1:] - expected.expectation()) / expected.variance().sqrt())[changed[:, 1:]]
    assert standard.mean().item() == pytest.approx(0, abs=4 / math.sqrt(standard.numel()))
    assert standard.var().item() == pytest.approx(1, abs=0.2)
    torch.testing.assert_close(fed_back(model, z_t, a_t, 0.0, generator), z_t)


# ---- the loss


def random_model() -> WorldModel:
    torch.manual_seed(0)
    return WorldModel(WorldModelConfig(2, 1, 8, 2, reward=True, termination=True))


def loss_parts(model: WorldModel, z: torch.Tensor, sequences: Sequences) -> tuple[dict[str, float], list[torch.Tensor]]:
    """The loss's parts and the gradient of all weights."""
    h_tp1, _ = model.remember(z[:, :-1], sequences.a_t)
    prediction = model.predict(sequences.real(h_tp1))
    loss, parts = negative_log_likelihood(prediction, z, sequences, torch.tensor(2.0))
    return {name: part.item() for name, part in parts.items()}, list(torch.autograd.grad(loss, model.parameters()))


def test_the_ends_part_counts_as_often_as_asked():
    episode, model = batch_of(random_episode(6, 0)), random_model()
    z = episode.codes.mean
    h_tp1, _ = model.remember(z[:, :-1], episode.a_t)
    told = model.predict(episode.real(h_tp1)), z, episode, torch.tensor(2.0)
    once, parts = negative_log_likelihood(*told)
    often, _ = negative_log_likelihood(*told, termination_weight=20.0)
    torch.testing.assert_close(often, once + 19 * parts["termination"])


def batch_of(*episodes: LatentEpisode) -> Sequences:
    (sequences,) = Trajectories(list(episodes), SPACE, CPU).whole()
    return sequences


def test_the_loss_is_a_mean_over_real_steps_and_codes_count_only_where_seen():
    episodes = [random_episode(n, seed, blanked=n == 5) for seed, n in enumerate([4, 1, 5, 7])]
    model, together = random_model(), batch_of(*episodes)
    told, _ = loss_parts(model, together.codes.mean, together)
    codes, rewards, ends = [], [], []
    for episode in episodes:
        prediction, _ = model(torch.from_numpy(episode.mean[None, :-1]), torch.from_numpy(episode.actions[None]))
        density = prediction.z_tp1.log_prob(torch.from_numpy(episode.mean[None, 1:]))[0].sum(-1).detach().numpy()
        codes += (-density[episode.visible[1:]]).tolist()
        rewards += (((prediction.reward_tp1[0].detach().numpy() - episode.rewards) / 2) ** 2 / 2).tolist()
        p = expit(prediction.termination[0].detach().numpy().astype(float))
        y = np.arange(len(p)) == (len(p) - 1 if episode.terminated else -1)
        ends += (-xlogy(y, p) - xlogy(1 - y, 1 - p)).tolist()
    assert (len(codes), len(rewards), len(ends)) == (16, 17, 17)
    for name, values in (("nll", codes), ("reward", rewards), ("termination", ends)):
        assert told[name] == pytest.approx(np.mean(values), rel=1e-4)
    assert told["loss"] == pytest.approx(told["nll"] + told["reward"] + told["termination"], rel=1e-5)


def test_what_stands_in_padded_places_and_blanked_frames_changes_neither_loss_nor_gradient():
    sequences = batch_of(random_episode(2, 0), random_episode(6, 1, blanked=True))
    model = random_model()
    before, gradients = loss_parts(model, sequences.codes.mean, sequences)
    z = sequences.codes.mean.clone()
    z[0, 3:], z[1, 6] = 30, -30
    changed = replace(
        sequences,
        **{
            name: torch.where(sequences.valid.view(2, 6, *[1] * (value.ndim - 2)), value, 9.0)
            for name in ("a_t", "rewards_tp1", "terminated")
            for value in [getattr(sequences, name)]
        },
    )
    after, others = loss_parts(model, z, changed)
    assert after == pytest.approx(before, rel=1e-6)
    for one, two in zip(gradients, others, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-7)


def test_the_step_into_a_blanked_frame_still_teaches_its_reward_and_end():
    sequences = batch_of(random_episode(3, 0, blanked=True))
    before, _ = loss_parts(random_model(), sequences.codes.mean, sequences)
    rewards, ends = sequences.rewards_tp1.clone(), sequences.terminated.clone()
    rewards[0, 2], ends[0, 2] = rewards[0, 2] + 5, 1 - ends[0, 2]
    changed = replace(sequences, rewards_tp1=rewards, terminated=ends)
    after, _ = loss_parts(random_model(), sequences.codes.mean, changed)
    assert after["nll"] == before["nll"]
    assert abs(after["reward"] - before["reward"]) > 0.1
    assert abs(after["termination"] - before["termination"]) > 0.001


def test_a_batch_without_any_seen_code_has_a_loss_all_the_same():
    sequences = batch_of(random_episode(1, 0, blanked=True))
    told, gradients = loss_parts(random_model(), sequences.codes.mean, sequences)
    assert told["nll"] == 0
    assert all(gradient.isfinite().all() for gradient in gradients)


# ---- processes whose truth is known


def jumps(length: int, seed: int) -> LatentEpisode:
    """z_tp1 = a_t * z_{t-1} / 2 +- 1, either as likely, + 0.1 noise: two modes, and a memory of one step.

    The reward is 20 + 10 a_t; a full action (+1, not -1) ends the episode every fourth time.
    """
    random = np.random.default_rng(seed)
    z, actions, rewards, over = [0.0, 0.0], [], [], False
    while len(actions) < length and not over:
        a = random.choice([-1.0, 1.0])
        actions.append([a])
        rewards.append(20 + 10 * a)
        z.append(a * z[-2] / 2 + random.choice([-1.0, 1.0]) + 0.1 * random.standard_normal())
        over = bool(a > 0 and random.random() < 0.25)
    mean = np.array(z[1:], np.float32)[:, None]
    return LatentEpisode(
        mean=mean,
        logvar=np.full_like(mean, -40),
        actions=np.array(actions, np.float32),
        rewards=np.array(rewards, np.float32),
        visible=np.ones(len(mean), bool),
        terminated=over,
        truncated=not over,
    )


JUMPS_ENTROPY = np.log(2) + 0.5 * np.log(2 * np.pi * np.e * 0.1**2)
"""Nats a step: which of two modes (20 sd apart), and where in it."""


@pytest.fixture(scope="module")
def jumping(tmp_path_factory) -> tuple[WorldModel, Trajectories, Trajectories]:
    folder = tmp_path_factory.mktemp("jumps")
    latents = store_of(folder / "latents", [jumps(20, seed) for seed in range(600)])
    config = replace(CONFIG, hidden=48, passes=25, learning_rate=1e-2, held_out=0.3)
    model = train_dynamics(latents, SPACE, config, folder / "dynamics")
    return model, *load_trajectories(latents, SPACE, config)


def test_it_learns_a_random_process_down_to_its_entropy(jumping):
    model, train, held_out = jumping
    scores = compare(model, train, held_out)
    steps = int(held_out.lengths.sum())
    luck = 3 * np.sqrt(0.5 / steps)  # the variance of a Gaussian's log density is 1/2
    assert JUMPS_ENTROPY - luck < scores["world model"].nll < JUMPS_ENTROPY + 0.15
    one_gaussian = 0.5 * np.log(2 * np.pi * np.e * 1.01)
    assert one_gaussian - 0.05 < scores["linear-Gaussian"].nll < scores["same as now"].nll


def test_it_learns_what_rewards_and_ends_depend_on(jumping):
    model, _, held_out = jumping
    for sequences in held_out.whole():
        prediction, _ = model(sequences.codes.mean[:, :-1], sequences.a_t)
        full = sequences.valid & (sequences.a_t[..., 0] > 0)
        for where, reward, end in ((full, 30, 0.25), (sequences.valid & ~full, 10, 0)):
            assert (prediction.reward_tp1[where] - reward).square().mean().sqrt() < 1  # their sd is 10
            assert prediction.termination[where].sigmoid().mean().item() == pytest.approx(end, abs=0.05)


# ---- real episodes of the dot environment


@pytest.fixture(scope="module")
def dots(tmp_path_factory) -> tuple[Path, LatentStore]:
    """A run's folder up to its latents."""
    run = tmp_path_factory.mktemp("run")
    rollouts = record_dots(run / "rollouts", episodes=24, env_kwargs={"target": 12.0}, frame=SMALL)
    objective = ObjectiveConfig(sigma=0.1, free_bits=0.0)
    vae = train_vae(rollouts, VAETrainingConfig(4, objective=objective, passes=10, device="cpu"), run / "vae")
    return run, encode(rollouts, vae, run / "latents")


@pytest.fixture(scope="module")
def trained(dots) -> tuple[WorldModel, Path]:
    run, latents = dots
    return train_dynamics(latents, SPACE, CONFIG, run / "trained"), run / "trained"


def test_held_out_episodes_are_foretold_better_than_by_both_baselines(dots, trained):
    scores = compare(trained[0], *load_trajectories(dots[1], SPACE, CONFIG))
    assert scores["world model"].nll < scores["linear-Gaussian"].nll - 0.05
    assert scores["world model"].nll < scores["same as now"].nll - 0.05
    assert scores["world model"].open_loop[2] < scores["same as now"].open_loop[2]


def test_the_config_tells_what_the_model_reached(dots, trained):
    model, folder = trained
    told = read_json(folder / "config.json")["training"]
    _, held_out = load_trajectories(dots[1], SPACE, CONFIG)
    assert told["held_out_nll"] == pytest.approx(nll_per_step(Learned(model), held_out))
    assert told["held_out_nll"] == read_log(folder / "metrics.jsonl")[-1]["held_out_nll"]
    assert told["passes"] == CONFIG.passes


@pytest.mark.parametrize("optimiser", ["adam", "muon"])
def test_an_interrupted_training_ends_with_the_same_bytes(dots, tmp_path, monkeypatch, optimiser):
    step, calls = DynamicsLearner.step, iter(range(37))

    def interrupted(self, batch):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return step(self, batch)

    short = replace(CONFIG, passes=20, dropout=0.3, fed_back=0.5, optimiser=optimiser)
    train_dynamics(dots[1], SPACE, short, tmp_path / "unbroken")
    monkeypatch.setattr(DynamicsLearner, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_dynamics(dots[1], SPACE, short, tmp_path / "resumed")
    monkeypatch.undo()
    train_dynamics(dots[1], SPACE, short, tmp_path / "resumed")
    unbroken, resumed = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("unbroken", "resumed"))
    assert unbroken == resumed


def test_a_training_may_set_out_from_another_model(dots, trained, tmp_path):
    _, latents = dots
    brief = replace(CONFIG, passes=2, learning_rate=1e-4)
    train_dynamics(latents, SPACE, brief, tmp_path / "on", start=trained[0])
    train_dynamics(latents, SPACE, brief, tmp_path / "new")
    on, new = (read_json(tmp_path / f / "config.json")["training"]["held_out_nll"] for f in ("on", "new"))
    assert on < new - 1
    with pytest.raises(ValueError, match="is no start for one of"):
        train_dynamics(latents, SPACE, replace(brief, hidden=8), tmp_path / "other", start=trained[0])


def test_another_seed_trains_another_model(dots, tmp_path):
    files = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        train_dynamics(dots[1], SPACE, replace(CONFIG, passes=1, seed=seed), tmp_path / folder)
        files.append((tmp_path / folder / "model.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]


def test_the_model_belongs_to_the_codec_that_made_the_codes(dots, trained):
    _, latents = dots
    loaded = WorldModel.load(trained[1], latents.manifest["codec_sha256"])
    _, held_out = load_trajectories(latents, SPACE, CONFIG)
    assert nll_per_step(Learned(loaded), held_out) == pytest.approx(nll_per_step(Learned(trained[0]), held_out))
    with pytest.raises(CheckpointError, match="train it again"):
        WorldModel.load(trained[1], "0" * 64)


def still_learner(dots, **settings) -> DynamicsLearner:
    """Whose weights stay as they are."""
    train, _ = load_trajectories(dots[1], SPACE, CONFIG)
    torch.manual_seed(0)
    model = WorldModel(WorldModelConfig(4, 1, 8, 2))
    return DynamicsLearner(replace(CONFIG, learning_rate=0.0, **settings), model, train, steps=10)


def test_codes_are_drawn_anew_in_every_step(dots):
    learner = still_learner(dots, dropout=0.0)
    losses = {learner.step((np.arange(21)[None], np.ones((1, 20), bool)))["loss"].item() for _ in range(5)}
    assert len(losses) == 5


def test_a_share_of_h_is_hidden_while_training(dots):
    hidden = still_learner(dots, dropout=0.5)._dropout(torch.ones(1000, 100))
    assert set(hidden.unique().tolist()) == {0.0, 2.0}  # the mean stays
    assert hidden.mean().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("wrong", [{"fed_back": 1.5}, {"balance": -0.1}, {"dropout": 1.0}, {"most_steps": 0}])
def test_settings_that_make_no_sense_are_refused_in_words(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}.* (must be|in \\[0, 1\\))"):
        DynamicsConfig(**wrong)


def test_one_episode_is_too_few_and_it_says_so(tmp_path):
    with pytest.raises(ValueError, match="at least 2"):
        train_dynamics(store_of(tmp_path / "latents", [jumps(5, 0)]), SPACE, CONFIG, tmp_path / "dynamics")


def test_episodes_of_one_step_are_enough_to_learn_and_to_compare(tmp_path):
    latents = store_of(tmp_path / "latents", [random_episode(1, seed) for seed in range(6)])
    config = replace(CONFIG, passes=2)
    model = train_dynamics(latents, SPACE, config, tmp_path / "dynamics")
    scores = compare(model, *load_trajectories(latents, SPACE, config))
    assert all(np.isfinite(score.nll) and score.open_loop == {} for score in scores.values())


def test_the_stage_prints_its_table_and_films_a_dream(dots, tmp_path):
    for name in ("rollouts", "vae", "latents"):
        shutil.copytree(dots[0] / name, tmp_path / name)
    command = [sys.executable, "-m", "scripts.train_dynamics", str(tmp_path)]
    command += ["--passes", "2", "--hidden", "16", "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    told = read_json(tmp_path / "dynamics" / "forecasts.json")
    lines = done.stdout.splitlines()
    for name in ("world model", "same as now", "linear-Gaussian"):
        (line,) = (line for line in lines if line.startswith(name))
        numbers = [told[name]["nll"], *told[name]["open_loop"].values()]
        assert line.removeprefix(name).split() == [f"{number:.4g}" for number in numbers]
    assert list(told["world model"]["open_loop"]) == ["1", "2", "4", "8"]
    assert cv2.imread(str(tmp_path / "pictures" / "dream.png")) is not None
    film = cv2.VideoCapture(str(tmp_path / "pictures" / "dream.webm"))
    assert film.get(cv2.CAP_PROP_FRAME_COUNT) == 21 - CONTEXT
    assert (tmp_path / "pictures" / "dream.gif").stat().st_size > 1000
    assert WorldModel.load(tmp_path / "dynamics", dots[1].manifest["codec_sha256"]).config.hidden == 16
