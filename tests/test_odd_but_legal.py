"""Odd but legal inputs work from screen to latents, and whatever fails says so in one sentence."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from tests.pixel_env import ODD_ACTIONS, SIZE, DotEnv, TroubledDotEnv
from worldvae import (
    FrameSpec,
    FrameVAE,
    LatentStore,
    RolloutStore,
    VAETrainingConfig,
    encode,
    make_vector_env,
    record,
    to_frames,
    train_vae,
)
from worldvae.environments import UnknownEnvironment, closing
from worldvae.failures import EnvironmentFailed
from worldvae.policies import BehaviourPolicy, random_policy
from worldvae.record import interact

ROOT = Path(__file__).parent.parent
FEW_STEPS = VAETrainingConfig(latent_size=4, passes=1, batch_size=16)
BOUNDED = sorted(set(ODD_ACTIONS) - {"unbounded"})


class Noted:
    """Acts as another policy does, and notes its actions."""

    def __init__(self, policy: BehaviourPolicy):
        self.policy = policy
        self.actions: list[np.ndarray] = []

    def reset(self, mask: np.ndarray) -> None:
        self.policy.reset(mask)

    def act(self, observations: np.ndarray) -> np.ndarray:
        self.actions.append(self.policy.act(observations))
        return self.actions[-1]


def collected(
    folder: Path, spec: FrameSpec | None = None, env_id: str = "tests/Dot-v0", backend: Any = "sync", **env_kwargs: Any
) -> RolloutStore:
    """A store of 6 episodes, played two at a time."""
    spec = spec or FrameSpec()
    with closing(make_vector_env(env_id, 2, backend=backend, env_kwargs=env_kwargs)) as env:
        space = env.single_action_space
        store = RolloutStore.create(
            folder, env_id=env_id, frame_spec=spec, action_space=space, env_kwargs=json.loads(json.dumps(env_kwargs))
        )
        for _ in store.append_all(record(env, random_policy("uniform", space, 2, seed=0), spec, range(6))):
            pass
    return store


def the_way_on(store: RolloutStore, folder: Path) -> tuple[FrameVAE, LatentStore]:
    """A codec trained for a few steps on the store, and the store's codes."""
    vae = train_vae(store, FEW_STEPS, folder / "vae")
    return vae, encode(store, vae, folder / "latents")


def cli(module: str, *arguments: str, prefix: tuple[str, ...] = (), **more: Any) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, "-m", f"scripts.{module}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, **more)


def assert_one_sentence(result: subprocess.CompletedProcess[str], words: str) -> None:
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "Warning" not in result.stderr
    assert result.stderr.count("error: ") == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert words in last


# Environments that fail


TROUBLES = {
    "ZeroDivisionError": "ZeroDivisionError: one of us",
    "AssertionError": "AssertionError: one of us",
    "StopIteration": "StopIteration: one of us",
    "SystemExit": "SystemExit: one of us",
    "EOFError": "EOFError: one of us",
    "Peculiar": "Peculiar: 49% of the wheels",
    "misshapen": "ValueError: an observation of (23, 24, 3) where its space says (24, 24, 3)",
}


@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize("trouble", sorted(TROUBLES))
def test_whatever_an_environment_raises_is_told_with_its_seed_and_step(tmp_path, backend, trouble):
    with pytest.raises(EnvironmentFailed) as caught:
        collected(tmp_path, env_id="tests/TroubledDot-v0", backend=backend, length=4, trouble=trouble, at=(2, 3))
    expected = f"tests/TroubledDot-v0 failed in step 3 of the episode of seed 2: {TROUBLES[trouble]}"
    assert str(caught.value) == expected
    assert {e.seed for e in RolloutStore(tmp_path)} == {0, 1}


@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize("seed", [0, 3])
def test_an_environment_that_fails_in_a_reset_says_so(tmp_path, backend, seed):
    words = f"failed in reset of the episode of seed {seed}: RuntimeError: one of us"
    with pytest.raises(EnvironmentFailed, match=words):
        collected(tmp_path, env_id="tests/TroubledDot-v0", backend=backend, length=2, at=(seed, 0))
    assert {e.seed for e in RolloutStore(tmp_path)} == ({0, 1} if seed else set())


@pytest.mark.parametrize("at", [(2, 0), (2, 3)])
def test_a_killed_worker_is_told_and_what_was_whole_is_kept(tmp_path, at):
    words = "tests/TroubledDot-v0 failed in (reset|step) while it played seeds 2, 3: a worker process died"
    with pytest.raises(EnvironmentFailed, match=words):
        collected(tmp_path, env_id="tests/TroubledDot-v0", backend="async", length=4, trouble="killed", at=at)
    assert {e.seed for e in RolloutStore(tmp_path)} == {0, 1}


@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize("reward", [np.nan, np.inf, -np.inf, 1e39])
def test_a_reward_that_no_float32_holds_reaches_nobody(backend, reward):
    kwargs = {"length": 4, "trouble": float(reward), "at": (2, 3)}
    words = "tests/TroubledDot-v0 failed in step 3 of the episode of seed 2: a reward is not a finite number"
    with closing(make_vector_env("tests/TroubledDot-v0", 2, backend=backend, env_kwargs=kwargs)) as env:
        stream = interact(env, random_policy("uniform", env.single_action_space, 2, seed=0), range(6))
        assert np.isfinite([next(stream).rewards_tp1 for _ in range(6)]).all()
        with pytest.raises(EnvironmentFailed, match=words):
            next(stream)


def test_whole_episodes_before_such_a_reward_are_kept(tmp_path):
    with pytest.raises(EnvironmentFailed, match="not a finite number: inf"):
        collected(tmp_path, env_id="tests/TroubledDot-v0", length=4, trouble=float("inf"), at=(2, 1))
    assert {e.seed for e in RolloutStore(tmp_path)} == {0, 1}


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_vector_environment_of_ones_own_is_told_with_all_seeds_it_played(mode):
    env = SyncVectorEnv([lambda: TroubledDotEnv(at=(1, 2)), DotEnv], autoreset_mode=mode)
    env.envs[0].at = (0, 2)
    with pytest.raises(EnvironmentFailed, match="failed in step while it played seeds 0, 1: RuntimeError: one of us"):
        list(record(env, random_policy("uniform", env.single_action_space, 2, seed=0), FrameSpec(), range(4)))


def test_envpool_is_told_with_all_seeds_it_played(monkeypatch):
    pytest.importorskip("envpool")

    def stall(*_: Any) -> None:
        raise ZeroDivisionError("no fuel")

    env = make_vector_env("CarRacing-v3", 2, backend="envpool")
    monkeypatch.setattr(env._pool, "step", stall)
    words = "CarRacing-v3 failed in step while it played seeds 7, 8: ZeroDivisionError: no fuel"
    with closing(env), pytest.raises(EnvironmentFailed, match=words):
        list(record(env, random_policy("uniform", env.single_action_space, 2, seed=0), FrameSpec(), [7, 8]))


@pytest.mark.parametrize(
    ("trouble", "words"),
    [("Peculiar", "seed 2: Peculiar: 49% of the wheels"), ("killed", "seeds 2, 3: a worker process died")],
)
def test_on_the_command_line_a_failure_is_one_sentence_and_leaves_no_process(tmp_path, trouble, words):
    troubled = ["--env", "tests.pixel_env:tests/TroubledDot-v0", "--env-kwargs"]
    troubled += [json.dumps({"length": 4, "trouble": trouble, "at": [2, 3]})]
    several = ["--backend", "async", "--num-envs", "2", "--episodes", "6"]
    command = [sys.executable, "-m", "scripts.collect", str(tmp_path), *troubled, *several]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    _, stderr = process.communicate(timeout=120)
    assert_one_sentence(subprocess.CompletedProcess(command, process.returncode, "", stderr), words)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert {e.seed for e in RolloutStore(tmp_path / "rollouts")} == {0, 1}


def test_with_worldvae_debug_the_environments_own_traceback_is_shown(tmp_path):
    kwargs = json.dumps({"trouble": "Peculiar", "at": [0, 3]})
    arguments = ["--env", "tests.pixel_env:tests/TroubledDot-v0", "--env-kwargs", kwargs, "--num-envs", "2"]
    result = cli("collect", str(tmp_path), *arguments, env={**os.environ, "WORLDVAE_DEBUG": "1"})
    assert 'raise Peculiar("wheels", 100 % 51)' in result.stderr


@pytest.mark.parametrize(
    ("env_id", "kwargs", "words"),
    [
        ("tests/Dot-v0", {"lenght": 3}, "cannot make 'tests/Dot-v0': TypeError: .*lenght"),
        ("tests/Dot-v0", {"actions": "none such"}, "cannot make 'tests/Dot-v0': KeyError: 'none such'"),
        ("tests/RenderOnly-v0", {"renders": "never"}, "gives no uint8 images and renders none"),
        ("tests/RenderOnly-v0", {"renders": "nothing"}, "cannot make 'tests/RenderOnly-v0': .*render"),
    ],
)
def test_an_environment_that_shows_nothing_or_cannot_be_made_says_so(env_id, kwargs, words):
    with pytest.raises(UnknownEnvironment, match=words):
        make_vector_env(env_id, 2, backend="sync", env_kwargs=kwargs)


def test_an_environment_that_shows_nothing_says_so_on_the_command_line(tmp_path):
    arguments = ["--env", "tests.pixel_env:tests/RenderOnly-v0", "--env-kwargs", '{"renders": "never"}']
    assert_one_sentence(cli("collect", str(tmp_path), *arguments), "gives no uint8 images and renders none")


# Odd episodes, screens and actions


def test_episodes_of_one_step_go_all_the_way(tmp_path):
    store = collected(tmp_path / "rollouts", length=1)
    assert [len(e) for e in store] == [1] * 6
    vae, latents = the_way_on(store, tmp_path)
    for episode, codes in zip(store, latents, strict=True):
        assert codes.mean.shape == (2, 4)
        np.testing.assert_array_equal(codes.mean, vae.encode(episode.frames).mean)
        np.testing.assert_array_equal(codes.rewards, episode.rewards)
        assert codes.truncated


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("screen", [(SIZE, SIZE), (SIZE, SIZE, 1), (SIZE, SIZE, 3), (30, 50, 3), (50, 30)])
def test_grey_colour_and_oblong_screens_become_frames_and_codes(tmp_path, screen, channels):
    spec = FrameSpec(channels=channels)
    store = collected(tmp_path / "rollouts", spec, length=3, screen=screen)
    first, _ = DotEnv(screen=screen).reset(seed=4)
    (episode,) = (e for e in store if e.seed == 4)
    assert first.shape == screen
    assert episode.frames.shape == (4, 64, 64, channels)
    np.testing.assert_array_equal(episode.frames[0], to_frames(first, spec))
    assert np.ptp(episode.frames[0]) > 100
    vae, latents = the_way_on(store, tmp_path)
    assert vae.config.frame == spec
    assert [e.mean.shape for e in latents] == [(4, 4)] * 6
    assert vae.decode(latents[0].mean).shape == (4, 64, 64, channels)


def test_oblong_frames_are_kept_and_go_all_the_way(tmp_path):
    spec = FrameSpec(48, 80, crop=(1, 2, 3, 0))
    store = collected(tmp_path / "rollouts", spec, length=3, screen=(30, 50, 3))
    assert RolloutStore(tmp_path / "rollouts").frame_spec == spec
    first, _ = DotEnv(screen=(30, 50, 3)).reset(seed=0)
    np.testing.assert_array_equal(store[0].frames[0], to_frames(first, spec))
    vae, latents = the_way_on(store, tmp_path)
    assert vae.decode(latents[0].mean).shape == (4, 48, 80, 3)


@pytest.mark.parametrize(
    ("architecture", "size", "words"),
    [
        ("paper", (48, 80), r"'paper' takes 64x64 frames, not \(48, 80, 3\)"),
        ("compact", (50, 80), r"'compact' takes heights and widths of multiples of 16, not \(50, 80\)"),
    ],
)
def test_frames_that_a_codec_does_not_take_are_kept_and_it_says_what_it_takes(tmp_path, architecture, size, words):
    store = collected(tmp_path / "rollouts", FrameSpec(*size), length=3, screen=(30, 50, 3))
    with pytest.raises(ValueError, match=words):
        train_vae(store, replace(FEW_STEPS, architecture=architecture), tmp_path / "vae")


@pytest.mark.parametrize("kind", ["uniform", "correlated"])
@pytest.mark.parametrize("actions", BOUNDED)
def test_actions_of_any_bounded_space_are_kept_as_they_were_taken(tmp_path, actions, kind):
    env = make_vector_env("tests/Dot-v0", 1, backend="sync", env_kwargs={"length": 5, "actions": actions})
    space = env.single_action_space
    policy = Noted(random_policy(kind, space, 1, seed=0))
    store = RolloutStore.create(tmp_path, env_id="tests/Dot-v0", frame_spec=FrameSpec(8, 8), action_space=space)
    for episode in record(env, policy, FrameSpec(8, 8), range(2)):
        store.append(episode)
    store = RolloutStore(tmp_path)
    assert store.action_space == space
    kept = np.concatenate([e.actions for e in store])
    np.testing.assert_array_equal(kept, np.concatenate(policy.actions))
    assert kept.dtype == space.dtype
    assert kept.shape == (10, *space.shape)
    assert all(space.contains(action if space.shape else action[()]) for action in kept)
    assert len(np.unique(kept)) > 1


@pytest.mark.parametrize("actions", BOUNDED)
def test_actions_stay_beside_the_codes(tmp_path, actions):
    store = collected(tmp_path / "rollouts", length=3, actions=actions)
    _, latents = the_way_on(store, tmp_path)
    for episode, codes in zip(store, latents, strict=True):
        assert codes.actions.dtype == episode.actions.dtype
        np.testing.assert_array_equal(codes.actions, episode.actions)


@pytest.mark.parametrize("kind", ["uniform", "correlated"])
def test_random_actions_without_bounds_are_refused_in_words(kind):
    with pytest.raises(ValueError, match="random actions need a bounded action space, not Box"):
        random_policy(kind, ODD_ACTIONS["unbounded"], 1, seed=0)


def test_integer_boxes_are_drawn_evenly_up_to_both_ends():
    space = gymnasium.spaces.Box(-2, 1, (3,), np.int8)
    for kind in ("uniform", "correlated"):
        policy = random_policy(kind, space, 500, seed=0)
        actions = np.concatenate([policy.act(np.empty((500, 0))) for _ in range(4)])
        values, counts = np.unique(actions, return_counts=True)
        assert values.tolist() == [-2, -1, 0, 1]
        np.testing.assert_allclose(counts[:2], counts[:1:-1], rtol=0.15)  # as much to the left as to the right


# Odd places and machines


def test_folders_may_have_any_name(tmp_path):
    folder = tmp_path / "a folder, with (ünusual) 'signs' & 100% spaces"
    store = collected(folder / "roll outs", length=3)
    vae, latents = the_way_on(store, folder)
    assert FrameVAE.load(folder / "vae").sha256 == vae.sha256
    assert len(LatentStore(folder / "latents")) == len(latents) == 6


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_cuda_is_refused_in_words(tmp_path):
    store = collected(tmp_path / "rollouts", length=2)
    with pytest.raises(ValueError, match="no CUDA device here; use --device cpu"):
        train_vae(store, VAETrainingConfig(device="cuda"), tmp_path / "vae")


COLLECT_AND_TRAIN = """
import sys
from pathlib import Path
from tests.test_odd_but_legal import collected, the_way_on
folder = Path(sys.argv[1])
store = collected(folder / "rollouts", backend="async", length=3)
_, latents = the_way_on(store, folder)
print(len(latents))
"""
TRAIN_ELSEWHERE = """
import sys
from pathlib import Path
from tests.test_odd_but_legal import RolloutStore, the_way_on
_, latents = the_way_on(RolloutStore(sys.argv[1]), Path(sys.argv[2]))
print(len(latents))
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be taken away here")
def test_one_core_is_enough(tmp_path):
    one_core = f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})"
    command = [sys.executable, "-c", one_core + COLLECT_AND_TRAIN, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["6"]


@pytest.fixture
def without_write_permission() -> tuple[str, ...]:
    """Begins a command for which read-only folders are read-only, also where tests run as root."""
    if os.getuid() != 0:
        return ()
    if shutil.which("setpriv") is None:
        pytest.skip("root writes everywhere, and setpriv is not here")
    return ("setpriv", "--bounding-set", "-dac_override")


@pytest.fixture
def read_only_run(tmp_path):
    """A run's folder with rollouts that can be read and not written."""
    run = tmp_path / "run"
    collected(run / "rollouts", length=3)
    folders = [run, run / "rollouts"]
    for folder in folders:
        folder.chmod(0o555)
    yield run
    for folder in folders:
        folder.chmod(0o755)


def test_rollouts_that_cannot_be_written_can_be_learned_from(tmp_path, read_only_run, without_write_permission):
    script = [sys.executable, "-c", TRAIN_ELSEWHERE, str(read_only_run / "rollouts"), str(tmp_path / "else where")]
    command = [*without_write_permission, *script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["6"]


@pytest.mark.parametrize("module", ["collect", "train_vae"])
def test_a_folder_that_cannot_be_written_is_named(read_only_run, without_write_permission, module):
    result = cli(module, str(read_only_run), prefix=without_write_permission)
    assert_one_sentence(result, f"cannot write {read_only_run}")
    assert result.stderr.strip().endswith("Permission denied")
