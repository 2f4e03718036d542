"""Forecasts and what they score: baselines against scipy, scores against slow loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from scipy.stats import multivariate_normal, norm
from torch import Tensor

from agents.forecasts import (
    CONTEXT,
    HORIZONS,
    ForecastScores,
    Learned,
    LinearGaussian,
    SameAsNow,
    compare,
    nll_per_step,
    open_loop,
)
from agents.sequences import Trajectories
from agents.world_model import WorldModel, WorldModelConfig
from worldvae.latents import LatentEpisode

CPU = torch.device("cpu")
SPACE = Box(-1, 1, (1,), np.float32)
A = np.array([[0.9, 0.2], [-0.3, 0.8]])
B = np.array([[0.5], [-1.0]])
C = np.array([0.3, -0.1])
NOISE = np.array([[0.04, 0.03], [0.03, 0.09]])


def linear_system(rows: int, noise: np.ndarray, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """z_t, a_t, z_tp1 of z_tp1 = A z_t + B a_t + C + noise, as float32."""
    random = np.random.default_rng(seed)
    z_t, a_t = random.standard_normal((rows, 2)), random.uniform(-1, 1, (rows, 1))
    z_tp1 = z_t @ A.T + a_t @ B.T + C + random.multivariate_normal(np.zeros(2), noise, rows)
    z_t, a_t, z_tp1 = (torch.tensor(x, dtype=torch.float32) for x in (z_t, a_t, z_tp1))
    return z_t, a_t, z_tp1


def linear_episode(length: int, seed: int, blanked: bool = False) -> LatentEpisode:
    """The same system without noise, codes of no spread; ``blanked``: its last frame was not seen."""
    random = np.random.default_rng(seed)
    actions = random.uniform(-1, 1, (length, 1))
    z = [random.standard_normal(2)]
    for a in actions:
        z.append(A @ z[-1] + B @ a + C)
    visible = np.arange(length + 1) < length + (not blanked)
    mean = np.where(visible[:, None], z, 1000).astype(np.float32)
    return LatentEpisode(
        mean=mean,
        logvar=np.full_like(mean, -40),
        actions=actions.astype(np.float32),
        rewards=np.zeros(length, np.float32),
        visible=visible,
        terminated=blanked,
        truncated=not blanked,
    )


def linear_trajectories(*lengths: int, blanked: bool = False) -> Trajectories:
    return Trajectories([linear_episode(n, i, blanked) for i, n in enumerate(lengths)], SPACE, CPU)


def test_same_as_now_is_a_gaussian_around_the_last_code():
    z_t, a_t, z_tp1 = linear_system(500, NOISE)
    sd = np.sqrt(np.mean((z_tp1 - z_t).numpy() ** 2, 0))
    new, actions = torch.randn(4, 6, 2), torch.zeros(4, 5, 1)
    expected = -norm.logpdf(new[:, 1:], new[:, :-1], sd).sum(-1)
    baseline = SameAsNow(z_t, a_t, z_tp1)
    np.testing.assert_allclose(baseline.nll(new, actions), expected, rtol=1e-4)
    np.testing.assert_array_equal(baseline.imagine(new[:, :3], actions), new[:, [2, 2, 2]])


def test_linear_gaussian_finds_the_system_that_made_the_data():
    baseline = LinearGaussian(*linear_system(20_000, NOISE))
    np.testing.assert_allclose(baseline.weights.T, np.column_stack([A, B, C]), atol=0.01)
    np.testing.assert_allclose(baseline.noise.covariance_matrix, NOISE, atol=0.005)


def test_linear_gaussian_has_the_likelihood_of_scipy():
    z_t, a_t, z_tp1 = linear_system(300, NOISE)
    inputs = np.column_stack([z_t, a_t, np.ones(300)]).astype(float)
    weights = np.linalg.lstsq(inputs, z_tp1.double().numpy())[0]
    residuals = z_tp1.numpy() - inputs @ weights
    covariance = residuals.T @ residuals / 300
    new, new_a, new_next = linear_system(40, NOISE, seed=1)
    off = new_next.numpy() - np.column_stack([new, new_a, np.ones(40)]) @ weights
    expected = -multivariate_normal(np.zeros(2), covariance).logpdf(off)
    nll = LinearGaussian(z_t, a_t, z_tp1).nll(torch.stack([new, new_next], 1), new_a[:, None])
    np.testing.assert_allclose(nll[:, 0], expected, rtol=1e-3)


def test_linear_gaussian_dreams_the_system_on_without_noise():
    baseline = LinearGaussian(*linear_system(100, np.zeros((2, 2))))
    episode = linear_episode(12, seed=5)
    dreamt = baseline.imagine(torch.from_numpy(episode.mean[None, :4]), torch.from_numpy(episode.actions[None]))
    np.testing.assert_allclose(dreamt[0], episode.mean[4:], atol=1e-4)


def test_one_hot_actions_which_add_up_to_the_constant_are_no_trouble():
    random = np.random.default_rng(0)
    a_t = torch.from_numpy(np.eye(3, dtype=np.float32)[random.integers(3, size=200)])
    z_t = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    pushes = torch.tensor([[1.0, 0.0], [-2.0, 3.0], [0.0, 5.0]])
    baseline = LinearGaussian(z_t, a_t, z_t + a_t @ pushes)
    dreamt = baseline.imagine(z_t[:, None], a_t[:, None])
    np.testing.assert_allclose(dreamt[:, 0], z_t + a_t @ pushes, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 5, 36, 37, 45, 70])
def test_few_transitions_of_many_latents_still_make_a_baseline(rows):
    z_t, a_t, z_tp1 = (torch.randn(rows, n, generator=torch.Generator().manual_seed(n)) for n in (32, 3, 32))
    baseline = LinearGaussian(z_t, a_t, z_tp1)
    assert baseline.nll(torch.randn(2, 4, 32), torch.randn(2, 3, 3)).isfinite().all()


class Distance:
    """Says of each step how far the codes moved, and dreams what it is told."""

    def nll(self, z: Tensor, a_t: Tensor) -> Tensor:
        return (z[:, 1:] - z[:, :-1]).abs().sum(-1)

    def imagine(self, context: Tensor, actions: Tensor) -> Tensor:
        return context[:, -1:] + actions[:, context.shape[1] - 1 :].cumsum(1)


@pytest.mark.parametrize("blanked", [False, True])
def test_the_likelihood_is_a_mean_over_the_steps_whose_next_frame_was_seen(blanked):
    lengths = [3, 70, 1, 5] * 20  # more episodes than fit one batch
    data = linear_trajectories(*lengths, blanked=blanked)
    moved = []
    for i, n in enumerate(lengths):
        z = linear_episode(n, i).mean[: n + 1 - blanked]
        moved += np.abs(np.diff(z, axis=0)).sum(1).tolist()
    assert nll_per_step(Distance(), data) == pytest.approx(np.mean(moved), rel=1e-4)


def test_the_same_seed_measures_the_same_likelihood():
    episode = linear_episode(50, 0)
    episode.logvar[:] = 0
    data = Trajectories([episode], SPACE, CPU)
    one, again, other = (nll_per_step(Distance(), data, seed) for seed in (0, 0, 1))
    assert one == again != other


@pytest.mark.parametrize("blanked", [False, True])
def test_open_loop_error_is_that_of_every_run_of_seen_frames_in_units_of_variance(blanked):
    lengths = [30, 4, 26, 17]
    seen = [linear_episode(n, i) for i, n in enumerate(lengths)]
    errors = []
    for episode in seen:
        z = episode.mean[: len(episode.mean) - blanked].astype(float)
        for first in range(len(z) - CONTEXT - 16 + 1):
            now = first + CONTEXT - 1
            dreamt = z[now] + episode.actions[now : now + 16].cumsum(0)
            errors.append(np.square(dreamt - z[now + 1 : now + 17]).sum(1))
    everything = np.concatenate([e.mean[: len(e.mean) - blanked] for e in seen])
    expected = np.mean(errors, 0) / everything.var(0).sum()
    told = open_loop(Distance(), linear_trajectories(*lengths, blanked=blanked))
    assert list(told) == list(HORIZONS)
    np.testing.assert_allclose(list(told.values()), [expected[k - 1] for k in HORIZONS], rtol=1e-4)


@pytest.mark.parametrize("blanked", [False, True])
@pytest.mark.parametrize(
    ("frames", "horizons"), [(CONTEXT, []), (CONTEXT + 1, [1]), (CONTEXT + 3, [1, 2]), (CONTEXT + 16, list(HORIZONS))]
)
def test_horizons_for_which_too_few_frames_were_seen_are_left_out(frames, horizons, blanked):
    data = linear_trajectories(2, frames - 1 + blanked, blanked=blanked)
    assert list(open_loop(Distance(), data)) == horizons


def test_a_perfect_forecast_scores_zero_and_the_comparison_tells_all_three():
    train, held_out = linear_trajectories(*[40] * 10), linear_trajectories(30, 25)
    torch.manual_seed(0)
    scores = compare(WorldModel(WorldModelConfig(2, 1, 8, 2)), train, held_out)
    assert list(scores) == ["world model", "same as now", "linear-Gaussian"]
    assert all(
        isinstance(score, ForecastScores) and list(score.open_loop) == list(HORIZONS) for score in scores.values()
    )
    assert max(scores["linear-Gaussian"].open_loop.values()) < 1e-6 < scores["same as now"].open_loop[1]
    assert scores["linear-Gaussian"].nll == min(score.nll for score in scores.values())


def test_the_models_forecast_is_the_mean_of_its_dreams_and_repeats():
    torch.manual_seed(0)
    model = WorldModel(WorldModelConfig(2, 3, 8, 2))
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(1, 4, 2, generator=generator)
    actions = torch.from_numpy(np.eye(3, dtype=np.float32)[[[Discrete(3, seed=0).sample() for _ in range(6)]]])
    forecast = Learned(model).imagine(context, actions)
    assert forecast.shape == (1, 3, 2)
    assert torch.equal(forecast, Learned(model).imagine(context, actions))
    many = model.imagine(context.expand(20_000, -1, -1), actions.expand(20_000, -1, -1), generator)
    off = (forecast[0] - many.mean(0)).abs()
    assert (off < 5 * many.std(0) / np.sqrt(Learned.DREAMS)).all()
