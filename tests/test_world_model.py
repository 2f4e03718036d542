"""The world model M: its mixture density against scipy, its steps against a slow loop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, logsumexp, softmax
from scipy.stats import norm
from torch import Tensor

from agents.world_model import Mixture, Prediction, WorldModel, WorldModelConfig
from worldvae.checkpoint import CheckpointError
from worldvae.devices import precision

CONFIG = WorldModelConfig(latent_size=3, action_size=2, hidden=16, mixtures=4, reward=True, termination=True)


@pytest.fixture
def model() -> WorldModel:
    torch.manual_seed(0)
    return WorldModel(CONFIG).eval()


def random_mixture(*shape: int, dtype: torch.dtype = torch.float64) -> Mixture:
    generator = torch.Generator().manual_seed(1)
    return Mixture(*(torch.randn(3, *shape, generator=generator, dtype=dtype)))


def sequences(batch: int, steps: int, seed: int = 2) -> tuple[Tensor, Tensor]:
    """Random codes [B, T, Z] and actions [B, T, A]."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, steps, CONFIG.latent_size), (batch, steps, CONFIG.action_size))
    z_t, a_t = (torch.randn(shape, generator=generator) for shape in shapes)
    return z_t, a_t


def parts(prediction: Prediction) -> list[Tensor]:
    mixture = prediction.z_tp1
    assert prediction.reward_tp1 is not None
    assert prediction.termination is not None
    return [mixture.logits, mixture.mean, mixture.log_sd, prediction.reward_tp1, prediction.termination]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for one, two in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one.detach(), two.detach(), atol=1e-6)


@pytest.mark.parametrize(
    ("config", "published"),
    [
        (WorldModelConfig(32, 3), 422_368),  # Ha & Schmidhuber 2018, CarRacing
        (WorldModelConfig(64, 1, hidden=512, termination=True, restart=True), 1_678_785),  # VizDoom
    ],
)
def test_it_has_the_published_parameters_and_a_second_bias_per_gate(config, published):
    count = sum(p.numel() for p in WorldModel(config).parameters())
    assert count == published + 4 * config.hidden


def test_the_restart_flag_marks_the_first_step_after_nothing_and_no_other():
    torch.manual_seed(0)
    model = WorldModel(replace(CONFIG, restart=True))
    z_t, a_t = sequences(4, 9)
    flagged = torch.cat([z_t, a_t, torch.zeros(4, 9, 1)], -1)
    flagged[:, 0, -1] = 1
    expected, _ = model.lstm(flagged)
    h_tp1, _ = model.remember(z_t, a_t)
    assert_same([h_tp1], [expected])
    _, state = model.remember(z_t[:, :4], a_t[:, :4])
    assert_same([model.remember(z_t[:, 4:], a_t[:, 4:], state)[0]], [expected[:, 4:]])
    for part, fresh in zip(state, model.start(4), strict=True):
        part[:2] = fresh[:2]  # two of the four begin anew
    anew = model.remember(z_t[:, 4:], a_t[:, 4:], state)[0]
    assert_same([anew[:2], anew[2:]], [model.remember(z_t[:2, 4:], a_t[:2, 4:])[0], expected[2:, 4:]])


def test_a_calibrated_end_is_shift_plus_gain_times_the_logit(model):
    before = model(*sequences(2, 3))[0].termination
    model.termination_scale.copy_(torch.tensor([-4.0, 0.5]))
    np.testing.assert_allclose(model(*sequences(2, 3))[0].termination.detach(), before.detach() / 2 - 4, rtol=1e-5)


@pytest.mark.parametrize("size", ["latent_size", "action_size", "hidden", "mixtures"])
def test_a_model_without_size_is_refused(size):
    with pytest.raises(ValueError, match="must be >= 1"):
        replace(CONFIG, **{size: 0})


def test_the_density_is_scipys():
    mixture = random_mixture(6, 3, 5)
    z = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    logits, mean, log_sd = (t.numpy() for t in (mixture.logits, mixture.mean, mixture.log_sd))
    each = norm.logpdf(z.numpy()[..., None], mean, np.exp(log_sd))
    expected = logsumexp(log_softmax(logits, -1) + each, -1)
    np.testing.assert_allclose(mixture.log_prob(z), expected, rtol=1e-12)


@pytest.mark.parametrize("log_sd", [-30.0, -10.0, 0.0, 10.0, 30.0])
@pytest.mark.parametrize("z", [-1e4, 0.0, 0.3, 1e4])
@pytest.mark.parametrize("logit", [0.0, 300.0])
def test_far_from_the_data_the_density_and_its_gradient_stay_finite_and_right(log_sd, z, logit):
    leaves = [torch.tensor([v], requires_grad=True) for v in ([logit, 0.0], [0.0, 1.0], [log_sd, log_sd])]
    density = Mixture(*leaves).log_prob(torch.tensor([z]))
    density.sum().backward()
    each = norm.logpdf(z, np.array([0.0, 1.0]), np.exp(log_sd))
    np.testing.assert_allclose(density.detach(), [logsumexp(log_softmax([logit, 0.0]) + each)], rtol=1e-5)
    for leaf in leaves:
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()


def test_the_density_integrates_to_one_and_has_the_moments_it_tells():
    mixture = random_mixture(3, 5)
    grid = torch.linspace(-80, 80, 400_001, dtype=torch.float64)
    for latent in range(3):
        alone = Mixture(*(t[latent] for t in (mixture.logits, mixture.mean, mixture.log_sd)))
        one = Mixture(*(t.expand(len(grid), 5) for t in (alone.logits, alone.mean, alone.log_sd)))
        density = one.log_prob(grid).exp()
        assert torch.trapezoid(density, grid) == pytest.approx(1, abs=1e-9)
        mean = torch.trapezoid(density * grid, grid).item()
        assert mixture.expectation()[latent] == pytest.approx(mean, abs=1e-9)
        variance = torch.trapezoid(density * (grid - mean) ** 2, grid).item()
        assert mixture.variance()[latent] == pytest.approx(variance, rel=1e-9)


def test_the_variance_of_a_narrow_density_far_from_zero_is_not_lost_in_rounding():
    mixture = Mixture(torch.zeros(1, 2), torch.full((1, 2), 77.7), torch.full((1, 2), -7.0))
    assert mixture.variance().item() == pytest.approx(np.exp(-14.0), rel=1e-3)


@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
def test_draws_follow_logits_over_the_temperature_and_sd_times_its_root(temperature):
    count = 200_000
    logits, mean, sd = np.array([1.0, 0.0, -1.5]), np.array([-50.0, 0.0, 50.0]), np.array([0.5, 1.0, 2.0])
    rows = (torch.tensor(x, dtype=torch.float32).expand(count, 1, 3) for x in (logits, mean, np.log(sd)))
    drawn = Mixture(*rows).sample(torch.Generator().manual_seed(0), temperature).numpy().ravel()
    weights = softmax(logits / temperature)
    for k in range(3):
        there = drawn[np.abs(drawn - mean[k]) < 25]
        share = len(there) / count
        assert abs(share - weights[k]) < 5 * np.sqrt(weights[k] * (1 - weights[k]) / count)
        if weights[k] > 0.001:
            expected = sd[k] * np.sqrt(temperature)
            assert abs(there.mean() - mean[k]) < 5 * expected / np.sqrt(len(there))
            assert abs(there.std() / expected - 1) < 5 / np.sqrt(2 * len(there))


def test_many_draws_have_the_mixtures_mean_and_variance():
    mixture, count = random_mixture(4, 5, dtype=torch.float32), 200_000
    spread = Mixture(*(t.expand(count, 4, 5) for t in (mixture.logits, mixture.mean, mixture.log_sd)))
    drawn = spread.sample(torch.Generator().manual_seed(0))
    np.testing.assert_allclose(drawn.mean(0), mixture.expectation(), atol=0.05)
    np.testing.assert_allclose(drawn.var(0), mixture.variance(), rtol=0.05)


def test_the_same_seed_draws_the_same_and_another_something_else():
    mixture = random_mixture(8, 5)
    one, again, other = (mixture.sample(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_that_is_none_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be > 0"):
        random_mixture(2, 2).sample(temperature=temperature)


def test_it_predicts_every_step_with_the_shapes_it_tells(model):
    prediction, state = model(*sequences(5, 7))
    assert prediction.z_tp1.logits.shape == prediction.z_tp1.mean.shape == prediction.z_tp1.log_sd.shape == (5, 7, 3, 4)
    assert prediction.reward_tp1.shape == prediction.termination.shape == (5, 7)
    assert state[0].shape == state[1].shape == (5, 16)


def test_heads_not_asked_for_are_not_there():
    prediction, _ = WorldModel(WorldModelConfig(3, 2, 16, 4))(*sequences(1, 1))
    assert prediction.reward_tp1 is None
    assert prediction.termination is None


@pytest.mark.skipif(precision(torch.device("cpu")) == torch.float32, reason="no bfloat16 here: training uses none")
def test_predictions_are_float32_in_mixed_precision_too(model):
    with torch.autocast("cpu", torch.bfloat16):
        prediction, state = model(*sequences(2, 3))
    assert {t.dtype for t in (*parts(prediction), *state)} == {torch.float32}


def test_predicted_rewards_are_in_the_units_of_the_data(model):
    before = model(*sequences(2, 3))[0].reward_tp1
    model.reward_moments.copy_(torch.tensor([-7.0, 20.0]))
    np.testing.assert_allclose(model(*sequences(2, 3))[0].reward_tp1.detach(), 20 * before.detach() - 7, rtol=1e-5)


def test_the_future_and_other_episodes_change_nothing(model):
    z_t, a_t = sequences(3, 8)
    before, _ = model(z_t, a_t)
    z_t[:, 5:], a_t[:, 5:] = 99, -99
    z_t[1:], a_t[1:] = -50, 50
    after, _ = model(z_t, a_t)
    assert_same([p[0, :5] for p in parts(before)], [p[0, :5] for p in parts(after)])
    for one, two in zip(parts(before), parts(after), strict=True):
        assert not torch.equal(one[0, 5:], two[0, 5:])  # what it was given there does count


def test_stepping_on_one_at_a_time_equals_the_whole_sequence(model):
    z_t, a_t = sequences(4, 9)
    whole, last = model(z_t, a_t)
    state = model.start(4)
    assert not any(part.any() for part in state)
    for t in range(9):
        state = model.advance(z_t[:, t], a_t[:, t], state)
        assert_same(parts(model.predict(state[0])), [part[:, t] for part in parts(whole)])
    assert_same(list(state), list(last))


def test_a_sequence_goes_on_from_the_state_it_was_left_in(model):
    z_t, a_t = sequences(2, 6)
    whole, _ = model(z_t, a_t)
    _, state = model(z_t[:, :2], a_t[:, :2])
    assert_same(parts(model(z_t[:, 2:], a_t[:, 2:], state)[0]), [part[:, 2:] for part in parts(whole)])


@pytest.mark.parametrize(("known", "ahead", "temperature"), [(1, 5, 1.0), (4, 3, 0.5), (2, 1, 2.0)])
def test_a_dream_is_a_slow_loop_of_single_steps_that_feeds_on_its_draws(model, known, ahead, temperature):
    real, actions = sequences(3, known + ahead - 1)
    context = real[:, :known]
    dreamt = model.imagine(context, actions, torch.Generator().manual_seed(7), temperature)
    generator, state, expected = torch.Generator().manual_seed(7), model.start(3), []
    z = context[:, 0]
    for t in range(known + ahead - 1):
        state = model.advance(z, actions[:, t], state)
        if t + 1 < known:
            z = context[:, t + 1]
        else:
            z = model.predict(state[0]).z_tp1.sample(generator, temperature)
            expected.append(z)
    assert dreamt.shape == (3, ahead, 3)
    assert not dreamt.requires_grad
    np.testing.assert_allclose(dreamt, torch.stack(expected, 1).detach(), atol=1e-5)


def test_a_saved_model_predicts_the_same_and_only_for_its_codec(model, tmp_path):
    model.reward_moments.copy_(torch.tensor([3.0, 2.0]))
    model.save(tmp_path, "a" * 64)
    loaded = WorldModel.load(tmp_path, "a" * 64)
    assert loaded.config == CONFIG
    for one, two in zip(parts(model(*sequences(2, 4))[0]), parts(loaded(*sequences(2, 4))[0]), strict=True):
        assert torch.equal(one, two)
    with pytest.raises(CheckpointError, match="was trained on codec aaaaaaaaaaaa, this one is bbbbbbbbbbbb"):
        WorldModel.load(tmp_path, "b" * 64)
