"""Dreams against the model they come from, step by step and in distribution, and Gymnasium's vector contract."""

from __future__ import annotations

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode

from agents.dream import Dream, DreamConfig, DreamVectorEnv, Starts, Stepper, real_starts
from agents.sequences import Trajectories
from agents.world_model import WorldModel, WorldModelConfig
from worldvae import FrameVAE, FrameVAEConfig
from worldvae.latents import LatentEpisode

CONFIG = WorldModelConfig(latent_size=3, action_size=2, hidden=16, mixtures=4, reward=True, termination=True)
SPACE = Box(-1, 1, (2,), np.float32)


def model_of(config: WorldModelConfig = CONFIG) -> WorldModel:
    torch.manual_seed(0)
    model = WorldModel(config).eval().requires_grad_(False)
    model.reward_moments.copy_(torch.tensor([0.5, 2.0]))
    return model


@pytest.fixture
def model() -> WorldModel:
    return model_of()


def starts_of(model: WorldModel, count: int = 6) -> Starts:
    generator = torch.Generator().manual_seed(1)
    z, h, c = (torch.randn(count, n, generator=generator) for n in (3, 16, 16))
    return Starts(z, (h.tanh(), c))


def episodes(lengths: list[int]) -> Trajectories:
    random = np.random.default_rng(0)
    made = [
        LatentEpisode(
            mean=random.normal(size=(n + 1, 3)).astype(np.float32),
            logvar=np.full((n + 1, 3), -30, np.float32),
            actions=random.uniform(-1, 1, (n, 2)).astype(np.float32),
            rewards=np.ones(n, np.float32),
            visible=np.ones(n + 1, bool),
            terminated=True,
            truncated=False,
        )
        for n in lengths
    ]
    return Trajectories(made, SPACE, torch.device("cpu"))


@pytest.mark.parametrize("restart", [False, True])
def test_a_step_is_the_models_own(restart):
    """At next to no temperature a code is the middle of its likeliest Gaussian."""
    model = model_of(replace(CONFIG, restart=restart))
    model.termination_scale.copy_(torch.tensor([-0.3, 1.5]))
    stepper, starts = Stepper(model, temperature=1e-12), starts_of(model)
    for part, fresh in zip(starts.state, model.start(6), strict=True):
        part[:3] = fresh[:3]
    a_t = torch.rand(6, 2) * 2 - 1
    told = stepper(starts.z, a_t, *starts.state, torch.full((6, 4), 0.5), torch.randn(6, 3))
    expected, (h, c) = model(starts.z[:, None], a_t[:, None], starts.state)
    mixture = expected.z_tp1
    likeliest = mixture.mean.gather(-1, mixture.logits.argmax(-1, keepdim=True))[:, 0, :, 0]
    torch.testing.assert_close(told["z"], likeliest, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close((told["h"], told["c"]), (h, c), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(told["reward"], expected.reward_tp1[:, 0], atol=1e-5, rtol=1e-5)
    assert torch.equal(told["terminated"], expected.termination[:, 0] > 0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
def test_codes_are_drawn_as_the_mixture_draws_them(model, temperature):
    count = 40_000
    starts = Starts(*(lambda s: (s.z[:1], (s.state[0][:1], s.state[1][:1])))(starts_of(model)))
    dream = Dream(model, starts, count, DreamConfig(temperature))
    a_t = torch.full((count, 2), 0.3)
    _, terminated, _ = dream.step(a_t)
    expected, _ = model(starts.z[:, None], a_t[:1, None], starts.state)
    mixture = expected.z_tp1
    weights = (mixture.logits[0, 0] / temperature).softmax(-1)
    mean = (weights * mixture.mean[0, 0]).sum(-1)
    second = (weights * (temperature * (2 * mixture.log_sd[0, 0]).exp() + mixture.mean[0, 0].square())).sum(-1)
    sd = (second - mean.square()).sqrt()
    torch.testing.assert_close(dream.z.mean(0), mean, atol=0.03, rtol=0)  # five standard errors
    torch.testing.assert_close(dream.z.std(0), sd, atol=0, rtol=0.03)
    assert terminated.float().mean() == pytest.approx(expected.termination.sigmoid().item(), abs=0.013)


def test_only_those_that_are_told_begin_anew_and_each_at_a_start(model):
    starts = starts_of(model)
    dream = Dream(model, starts, 50, DreamConfig())
    assert (dream.z[:, None] == starts.z).all(-1).any(1).all()
    assert len(dream.z.unique(dim=0)) > 3, "they do not all begin at the same start"
    dream.step(torch.zeros(50, 2))
    before, where = dream.z.clone(), torch.arange(50) < 20
    dream.reset(where)
    assert torch.equal(dream.z[20:], before[20:])
    at = (dream.z[:20, None] == starts.z).all(-1)
    assert at.any(1).all()
    assert torch.equal(dream.state[0][:20], starts.state[0][at.int().argmax(1)])
    assert dream.steps.tolist() == [0] * 20 + [1] * 30


def test_the_same_seed_dreams_the_same(model):
    def dreamt(seed: int) -> torch.Tensor:
        dream = Dream(model, starts_of(model), 8, DreamConfig(), seed)
        for _ in range(5):
            dream.step(torch.zeros(8, 2))
        return dream.z

    assert torch.equal(dreamt(3), dreamt(3))
    assert not torch.equal(dreamt(3), dreamt(4))


def test_without_heads_a_step_is_worth_one_and_nothing_ends_before_the_limit():
    model = model_of(replace(CONFIG, reward=False, termination=False))
    dream = Dream(model, starts_of(model), 5, DreamConfig(most_steps=3))
    for step in range(1, 4):
        reward, terminated, truncated = dream.step(torch.zeros(5, 2))
        assert reward.tolist() == [1] * 5
        assert not terminated.any()
        assert truncated.tolist() == [step == 3] * 5


@pytest.mark.parametrize("last", [12, 2500])
def test_starts_are_real_codes_with_what_the_model_remembers_of_those_before(model, last):
    played = episodes([9, 4, last])
    first = real_starts(model, played)
    assert len(first) == 3
    assert not first.state[0].any()
    assert len(real_starts(model, played, context=5, most=3)) == 3
    later = real_starts(model, played, context=5)
    assert len(later) == (9 - 5) + 0 + (last - 5)  # none at the frame after the end
    rows = (later.z[:, None] - played.codes.mean).abs().amax(-1).argmin(1)
    for at, h in zip(rows.tolist(), later.state[0], strict=True):
        expected, _ = model.remember(played.codes.mean[None, at - 5 : at], played.actions[None, at - 5 : at])
        torch.testing.assert_close(h, expected[0, -1], atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=f"no episode has {last + 1} steps"):
        real_starts(model, played, context=last + 1)
    with pytest.raises(ValueError, match="context must be >= 0"):
        real_starts(model, played, context=-1)
    with pytest.raises(ValueError, match="starts at least 1"):
        real_starts(model, played, most=0)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_as_a_vector_environment_it_resets_as_gymnasium_does(model, mode):
    """Against Gymnasium's own, whose episodes end after three steps as these are truncated after three."""

    class Three(gymnasium.Env):
        observation_space, action_space = Box(-np.inf, np.inf, (3,), np.float32), SPACE

        def reset(self, *, seed=None, options=None):
            self.t = 0
            return np.zeros(3, np.float32), {}

        def step(self, action):
            self.t += 1
            return np.full(3, self.t, np.float32), 1.0, False, self.t == 3, {}

    plain = model_of(replace(CONFIG, reward=False, termination=False))
    env = DreamVectorEnv(plain, starts_of(plain), 2, SPACE, DreamConfig(most_steps=3), autoreset_mode=mode)
    theirs = gymnasium.vector.SyncVectorEnv([Three, Three], autoreset_mode=mode)
    assert env.observation_space == theirs.observation_space
    assert env.action_space == theirs.action_space
    assert env.metadata["autoreset_mode"] == mode
    z, _ = env.reset(seed=0)
    theirs.reset(seed=0)
    assert env.observation_space.contains(z)
    for _ in range(9):
        actions = env.action_space.sample()
        z, *ours, info = env.step(actions)
        _, *expected, told = theirs.step(actions)
        for one, other in zip(ours, expected, strict=True):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype
        assert set(info) == {key for key in told if key.endswith("final_obs")}
        if ours[2].any() and mode == AutoresetMode.SAME_STEP:
            assert info["final_obs"].shape == told["final_obs"].shape
            assert [last.shape for last in info["final_obs"]] == [(3,), (3,)]
            assert not np.array_equal(np.stack(list(info["final_obs"])), z)
        if ours[2].any() and mode == AutoresetMode.DISABLED:
            with pytest.raises(ValueError, match="must be reset first"):
                env.step(actions)
            for one in (env, theirs):
                one.reset(options={"reset_mask": np.ones(2, bool)})
    env.close()


def test_the_same_seed_and_actions_give_the_same_dreams_and_frames_are_decoded(model):
    codec = FrameVAE(FrameVAEConfig(latent_size=3)).eval()
    runs = []
    for _ in range(2):
        env = DreamVectorEnv(model, starts_of(model), 3, SPACE, codec=codec)
        env.reset(seed=5)
        env.action_space.seed(0)
        runs.append([env.step(env.action_space.sample())[0] for _ in range(4)])
        frames = env.render()
    np.testing.assert_array_equal(runs[0], runs[1])
    assert frames is not None
    np.testing.assert_array_equal(np.stack(frames), codec.decode(runs[0][-1]))


def test_discrete_actions_reach_the_model_one_hot():
    model = model_of(replace(CONFIG, termination=False))
    env = DreamVectorEnv(model, starts_of(model), 4, Discrete(2), DreamConfig(1e-12))
    z, _ = env.reset(seed=0)
    h, c = env.dream.state
    expected, _ = model(torch.from_numpy(z)[:, None], torch.eye(2)[[0, 1, 1, 0]][:, None], (h, c))
    _, reward, *_ = env.step(np.array([0, 1, 1, 0]))
    np.testing.assert_allclose(reward, expected.reward_tp1[:, 0], atol=1e-5)


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"most_steps": 0}])
def test_impossible_settings_are_refused_in_a_sentence(wrong):
    with pytest.raises(ValueError, match="must be > 0"):
        DreamConfig(**wrong)
