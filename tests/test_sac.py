"""Soft actor-critic against torch.distributions, closed forms and small problems."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Independent, Normal, TanhTransform, TransformedDistribution

from agents.replay import Replay, TransitionBatch
from agents.sac import SAC, CategoricalActor, Ensemble, GaussianActor, SACConfig

CPU = torch.device("cpu")


def test_the_squashed_normals_entropy_term_is_torchs_log_density():
    actor, observations, alpha = GaussianActor(5, 3, 16).double(), torch.randn(7, 5).double(), torch.tensor(1.0)
    seen = []

    def q(_, actions):
        seen.append(actions)
        return torch.zeros(len(actions), 1)

    _, entropy = actor.soft_value(observations, q, alpha, torch.randn(7, 3).double())
    mean, log_sd = actor(observations)
    law = Independent(TransformedDistribution(Normal(mean, log_sd.exp()), TanhTransform(cache_size=0)), 1)
    torch.testing.assert_close(-entropy, law.log_prob(seen[0]), rtol=1e-4, atol=1e-4)


def test_the_discrete_soft_value_is_the_exact_expectation():
    actor, observations = CategoricalActor(5, 4, 16), torch.randn(7, 5)
    choices, alpha = torch.randn(7, 4), torch.tensor(0.3)
    value, entropy = actor.soft_value(observations, lambda *_: choices, alpha, torch.empty(0))
    law = Categorical(logits=actor(observations))
    torch.testing.assert_close(entropy, law.entropy())
    torch.testing.assert_close(value, (law.probs * choices).sum(1) + 0.3 * law.entropy())


def test_the_ensembles_members_are_plain_perceptrons():
    ensemble, x = Ensemble(3, 6, 8, 2), torch.randn(5, 6)
    for member, output in enumerate(ensemble(x)):
        hidden = x
        for weight, bias, norm in zip(ensemble.weights, ensemble.biases, ensemble.norms, strict=False):
            hidden = torch.relu(norm(hidden @ weight[member] + bias[member]))
        torch.testing.assert_close(output, hidden @ ensemble.weights[-1][member] + ensemble.biases[-1][member])


@pytest.mark.parametrize("discrete", [False, True])
def test_a_bandits_value_and_best_action_are_found(discrete):
    """One step, reward 1 - (a - 0.5)^2 or that of the third choice: Q is the reward itself."""
    sac = SAC(
        1,
        4 if discrete else 1,
        discrete,
        SACConfig(hidden=32, learning_rate=3e-3, target_entropy=0.05 if discrete else -3),
        0,
        CPU,
    )
    random = np.random.default_rng(0)
    replay = Replay(2000, 1, 4 if discrete else 1, CPU)
    observations = np.ones((2000, 1), np.float32)
    if discrete:
        choice = random.integers(4, size=2000)
        actions, rewards = np.eye(4, dtype=np.float32)[choice], (choice == 2).astype(np.float32)
    else:
        actions = random.uniform(-1, 1, (2000, 1)).astype(np.float32)
        rewards = 1 - (actions[:, 0] - 0.5) ** 2
    replay.add(observations, actions, rewards, np.ones(2000, bool), observations)
    for _ in range(400):
        sac.step(replay.sample(128, sac.generator))
    best = sac.act(torch.ones(1, 1), explore=False)[0]
    if discrete:
        assert best.argmax() == 2
    else:
        assert best.item() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("reward", "progress", "continues", "value"),
    [
        (1.0, 0.0, 1.0, 2.0),  # r / (1 - discount)
        (1.0, 0.0, 0.0, 1.0),
        (1.0, math.log(2), 1.0, 4 / 3),  # r / (1 - discount exp(-progress |r|))
        (-1.0, math.log(2), 1.0, -4 / 3),
        (0.0, math.log(2), 1.0, 0.0),
    ],
)
def test_a_time_limit_is_bootstrapped_an_end_is_not_and_progress_discounts(reward, progress, continues, value):
    """A state that follows itself: its value is a geometric sum, or the reward alone if it ends."""
    config = SACConfig(hidden=32, learning_rate=3e-3, discount=0.5, progress=progress, tau=0.1, initial_alpha=1e-6)
    sac, ones = SAC(1, 1, False, config, 0, CPU), torch.ones(64, 1)
    for _ in range(500):
        actions = torch.rand(64, 1) * 2 - 1
        metrics = sac.step(TransitionBatch(ones, actions, reward * ones[:, 0], continues * ones[:, 0], ones))
    assert metrics["q"].item() == pytest.approx(value, abs=0.1)


def test_the_temperature_steers_the_entropy_to_its_target():
    sac = SAC(1, 2, False, SACConfig(hidden=32, learning_rate=1e-2, target_entropy=-1.0), 0, CPU)
    ones = torch.ones(128, 1)
    for _ in range(500):
        actions = torch.rand(128, 2) * 2 - 1
        metrics = sac.step(TransitionBatch(ones, actions, 1 - actions.square().sum(1), torch.zeros(128), ones))
    assert metrics["entropy"].item() == pytest.approx(-1, abs=0.5)


@pytest.mark.parametrize("discrete", [False, True])
def test_each_part_moves_along_the_gradient_of_its_own_loss_alone(discrete):
    """Adam's first moment after one step is a tenth of the gradient: compared with the losses written out."""
    sac = SAC(3, 2, discrete, SACConfig(hidden=16), 0, CPU)
    before = copy.deepcopy(sac)
    one, two, three = (torch.rand(8, n) for n in (3, 2, 3))
    batch = TransitionBatch(one, nn.functional.one_hot(two.argmax(1)).float(), two[:, 0], two[:, 1].round(), three)
    sac.step(batch)
    noise, alpha = torch.Generator(), before.log_alpha.exp().detach()
    noise.set_state(before.generator.get_state())

    def value(critics, observations):
        def q(_, a):
            return critics(observations if discrete else torch.cat([observations, a], 1)).amin(0)

        return before.actor.soft_value(observations, q, alpha, torch.randn(8, 2, generator=noise))

    target = (batch.rewards_tp1 + 0.98 * batch.continues * value(before.critics, three)[0]).detach()
    losses = sum((q - target).square().mean() for q in before._q_taken(batch))
    critics = torch.autograd.grad(losses, list(before.critics.parameters()))
    soft, entropy = value(sac.critics, one)
    actor = torch.autograd.grad(-soft.mean(), list(before.actor.parameters()))
    expected = {sac.log_alpha: entropy.detach().mean() - sac.target_entropy}
    expected |= dict(zip(sac.critics.parameters(), critics, strict=True))
    expected |= dict(zip(sac.actor.parameters(), actor, strict=True))
    moved = {p: state["exp_avg"] for optimiser in sac.optimisers for p, state in optimiser.state.items()}
    assert moved.keys() == expected.keys()
    for parameter, gradient in expected.items():
        torch.testing.assert_close(moved[parameter], 0.1 * gradient, rtol=1e-4, atol=1e-7)


def test_a_restored_learner_takes_the_same_next_step():
    first, second = (SAC(3, 2, False, SACConfig(hidden=16), seed, CPU) for seed in (0, 1))
    random = torch.Generator().manual_seed(0)

    def batch():
        sizes = ((8, 3), (8, 2), (8,), (8,), (8, 3))
        return TransitionBatch(*(torch.rand(size, generator=random) for size in sizes))

    first.step(batch())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    following = batch()
    ours, theirs = first.step(following), second.step(following)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    for part in ("actor", "averaged"):
        for a, b in zip(getattr(first, part).parameters(), getattr(second, part).parameters(), strict=True):
            assert torch.equal(a, b)


def test_the_kept_actor_is_the_average_of_those_that_learned():
    """Its window is a tenth of the steps so far, at most 1 / averaging."""
    sac = SAC(3, 2, False, SACConfig(hidden=16, averaging=0.2), 0, CPU)
    average = [p.detach().clone() for p in sac.actor.parameters()]
    for step in range(1, 61):
        sac.step(TransitionBatch(*(torch.rand(size) for size in ((8, 3), (8, 2), (8,), (8,), (8, 3)))))
        share = max(0.2, 10 / (10 + step))
        average = [(1 - share) * a + share * p.detach() for a, p in zip(average, sac.actor.parameters(), strict=True)]
    assert share == 0.2
    for kept, expected in zip(sac.averaged.parameters(), average, strict=True):
        torch.testing.assert_close(kept, expected)
