"""A committee acts by the product of its members' distributions; here against that product on a grid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from scipy.stats import norm

from agents.agent import Agent, AgentSpec
from agents.committee import Committee, as_one, members_of
from agents.controller import Controller
from agents.observations import Z_ALONE
from agents.sac import CategoricalActor, GaussianActor

SEEN = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
SPEC = AgentSpec(Z_ALONE, 5, "", Box(-1, 1, (2,), np.float32), 1, 16, actors=3)


def test_the_product_of_normal_distributions():
    torch.manual_seed(0)
    members = [GaussianActor(5, 1, 16) for _ in range(3)]
    mean, log_sd = Committee(members)(SEEN)
    x = np.linspace(-8, 8, 20_001)
    for n in range(len(SEEN)):
        told = [[part[n].item() for part in member(SEEN)] for member in members]
        density = np.prod([norm.pdf(x, m, np.exp(s)) for m, s in told], axis=0)
        density /= density.sum()
        assert mean[n].item() == pytest.approx((density * x).sum(), abs=1e-4)
        variance = (density * (x - (density * x).sum()) ** 2).sum()
        assert log_sd[n].exp().item() == pytest.approx(np.sqrt(variance), rel=1e-3)


def test_the_product_of_choices():
    torch.manual_seed(0)
    members = [CategoricalActor(5, 4, 16) for _ in range(3)]
    expected = torch.stack([member(SEEN).exp() for member in members]).prod(0)
    expected /= expected.sum(-1, keepdim=True)
    committee = Committee(members)
    torch.testing.assert_close(committee(SEEN).exp(), expected)
    assert torch.equal(committee.act(SEEN, None).argmax(-1), expected.argmax(-1))
    drawn = torch.stack([committee.act(SEEN, torch.Generator().manual_seed(i)) for i in range(2000)]).mean(0)
    torch.testing.assert_close(drawn, expected, atol=0.05, rtol=0)


def test_who_is_surer_has_more_say():
    sure, unsure = GaussianActor(5, 1, 16), GaussianActor(5, 1, 16)
    for actor, mean, raw_log_sd in ((sure, 1.0, -2.0), (unsure, -1.0, 2.0)):
        actor.net[-1].weight.data.zero_()
        actor.net[-1].bias.data = torch.tensor([mean, raw_log_sd])
    assert (Committee([sure, unsure]).act(SEEN, None) > 0.7).all()


@pytest.mark.parametrize("space", [SPEC.action_space, Discrete(4)])
def test_an_agent_of_several_actors_is_saved_and_loaded(tmp_path, space):
    agent = Agent(replace(SPEC, action_space=space)).eval()
    agent.save(tmp_path)
    loaded = Agent.load(tmp_path)
    assert loaded.spec.actors == len(members_of(loaded.actor)) == 3
    assert torch.equal(loaded.actor.act(SEEN, None), agent.actor.act(SEEN, None))


def test_one_alone_is_no_committee():
    alone = GaussianActor(5, 1, 16)
    assert as_one([alone]) is alone
    assert members_of(alone) == [alone]


def test_what_cannot_act_together_is_refused():
    with pytest.raises(ValueError, match="not a Controller"):
        Committee([Controller(5, 2), Controller(5, 2)])
    with pytest.raises(ValueError, match="actors must be >= 1"):
        replace(SPEC, actors=0)
