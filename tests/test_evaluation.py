"""The protocol: exactly the listed seeds, official rewards, honest intervals."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pytest
from scipy import stats

from agents.evaluation import bootstrap_interval, commit, env_version, evaluate
from tests.pixel_env import DotEnv


class Still:
    """Does nothing at all."""

    def __init__(self, env):
        self.actions = np.zeros(env.action_space.shape, np.float32)

    def reset(self, mask):
        pass

    def act(self, observations):
        return self.actions


def play_alone(seed: int, repeat: int) -> tuple[float, int]:
    env = DotEnv()
    env.reset(seed=seed)
    total, steps, over = 0.0, 0, False
    while not over:
        _, reward, terminated, truncated, _ = env.step(np.zeros(1, np.float32))
        total, steps, over = total + reward, steps + 1, terminated or truncated
    return total, steps


@pytest.mark.parametrize(("workers", "repeat"), [(1, 1), (3, 1), (2, 3)])
def test_each_listed_seed_is_played_once_as_if_alone(workers, repeat):
    seeds = [2_000_003, 2_000_000, 2_000_007, 2_000_001]
    scores = evaluate("tests/Dot-v0", Still, seeds, workers=workers, action_repeat=repeat)
    expected = [play_alone(seed, repeat) for seed in seeds]
    assert scores.seeds == tuple(seeds)
    np.testing.assert_allclose(scores.returns, [r for r, _ in expected])
    assert list(scores.lengths) == [steps for _, steps in expected]


def test_mean_sd_and_interval_are_those_of_numpy_and_scipy():
    scores = evaluate("tests/Dot-v0", Still, range(2_000_000, 2_000_012), workers=2)
    assert scores.mean == pytest.approx(np.mean(scores.returns))
    assert scores.sd == pytest.approx(np.std(scores.returns, ddof=1))
    told = scores.as_json()
    assert told["ci95"][0] <= told["mean"] <= told["ci95"][1]


def test_a_single_episode_has_no_spread_and_its_record_is_json_still():
    scores = evaluate("tests/Dot-v0", Still, [2_000_000])
    assert str(scores) == "{0:.1f} over 1 episodes, 95% [{0:.1f}, {0:.1f}]".format(scores.returns[0])
    assert json.loads(json.dumps(scores.as_json(), allow_nan=False))["sd"] is None


def test_the_bootstrap_interval_is_scipys():
    values = np.random.default_rng(0).gamma(2, 100, 50)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(1)).confidence_interval
    np.testing.assert_allclose(bootstrap_interval(values), theirs, rtol=0.02)


@pytest.mark.parametrize("seeds", [[], [1, 1]])
def test_an_evaluation_without_distinct_seeds_is_refused(seeds):
    with pytest.raises(ValueError, match="each listed once"):
        evaluate("tests/Dot-v0", Still, seeds)


def test_the_record_names_version_and_commit():
    assert env_version("CarRacing-v3").startswith("gymnasium 1.")
    import agents.thorough  # noqa: F401

    assert env_version("agents.thorough:ThoroughCarRacing-v0").startswith("gymnasium 1.")
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode == 0:
        assert commit().rstrip("+") == head.stdout.strip()
