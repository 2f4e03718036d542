"""Short dreams are those of M, from moments that were lived through, and an agent can learn from them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from agents.imagination import Imagination, ImaginationConfig
from agents.learning import Learner, LearningConfig
from agents.observations import ObservationConfig
from agents.sac import SACConfig
from agents.world_model import WorldModel, WorldModelConfig
from tests.test_learning import Mortal

ALONE = ObservationConfig(stack=1, last_action=False)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return WorldModel(WorldModelConfig(3, 1, hidden=16, reward=True, termination=True)).eval()


def lived(count: int) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    z, h, c = torch.randn(3, count, 16).unbind(0)
    return z[:, :3], (h, c)


def test_dreams_begin_at_the_last_moments_and_pay_what_m_expects(model):
    imagination = Imagination(model, ALONE, ImaginationConfig(0.5, dreams=64, steps=3, moments=8))
    imagination.live(*lived(5))
    z, (h, c) = lived(8)  # as many as are kept: those before give way
    imagination.live(z, (h, c))
    steps = list(imagination.dream(lambda seen: seen[:, :1].tanh()))
    first = steps[0]
    at = (first.observations_t[:, None] == torch.cat([z, h], 1)).all(-1)
    assert (at.sum(1) == 1).all()
    assert at.any(0).sum() > 5
    rows = at.long().argmax(1)
    prediction, _ = model(z[rows][:, None], first.actions_t[:, None], (h[rows], c[rows]))
    torch.testing.assert_close(first.rewards_tp1, prediction.reward_tp1[:, 0], rtol=1e-4, atol=1e-5)
    state = model.advance(z[rows], first.actions_t, (h[rows], c[rows]))
    torch.testing.assert_close(first.observations_tp1[:, 3:], state[0], rtol=1e-4, atol=1e-5)


def test_a_dream_that_is_over_does_not_go_on(model):
    imagination = Imagination(model, ALONE, ImaginationConfig(0.5, dreams=64, steps=3))
    imagination.live(*lived(20))
    steps = list(imagination.dream(lambda seen: seen[:, :1].tanh()))
    for step, following in itertools.pairwise(steps):
        terminated = step.continues == 0
        assert 0 < terminated.sum() < len(terminated)
        torch.testing.assert_close(following.observations_t, step.observations_tp1[~terminated])


@pytest.mark.parametrize(
    ("memory", "observation", "words"),
    [
        (None, ALONE, "memory trained"),
        (WorldModel(WorldModelConfig(3, 1, hidden=4)), ALONE, "reward head"),
        (WorldModel(WorldModelConfig(3, 1, hidden=4, reward=True)), ObservationConfig(), "stack to 1"),
    ],
)
def test_what_cannot_be_dreamt_is_refused(memory, observation, words):
    with pytest.raises(ValueError, match=words):
        Imagination(memory, observation, ImaginationConfig(0.5))


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))],
)
def test_a_share_of_each_batch_is_dreamt(model, device):
    """Real rewards are 1; those that this M expects are all about 3."""
    model.reward_moments.copy_(torch.tensor([3.0, 1e-6]))
    env = SyncVectorEnv([Mortal] * 8, autoreset_mode=AutoresetMode.DISABLED)
    config = LearningConfig(
        warm_up=2,
        updates=1,
        batch_size=40,
        reward_scale=1.0,
        observation=ALONE,
        imagination=ImaginationConfig(0.25, dreams=16, steps=2),
        sac=SACConfig(hidden=8),
        device=device,
    )
    batch = next(iter(Learner(env, config, memory=model).batches(0)))
    np.testing.assert_allclose(batch.rewards_tp1.cpu().numpy().round(3), [1.0] * 30 + [3.0] * 10)
    alone = next(iter(Learner(env, replace(config, imagination=ImaginationConfig()), memory=model).batches(0)))
    np.testing.assert_allclose(alone.rewards_tp1.cpu().numpy(), np.ones(40))
