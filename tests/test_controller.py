"""Controllers: few weights in one flat vector, one or many at once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from agents.controller import Controller


def layers(n_in, hidden, n_out):
    """The same network by torch's own layers."""
    if hidden:
        return nn.Sequential(nn.Linear(n_in, hidden), nn.Tanh(), nn.Linear(hidden, n_out), nn.Tanh())
    return nn.Sequential(nn.Linear(n_in, n_out), nn.Tanh())


def test_car_racings_controller_has_the_papers_867_parameters():
    assert Controller(32 + 256, 3).weights.shape == (867,)


@pytest.mark.parametrize("hidden", [1, 16, 40])
def test_a_hidden_layer_has_as_many_parameters_as_its_two_matrices(hidden):
    assert Controller(288, 3, hidden).weights.shape == ((288 + 1) * hidden + (hidden + 1) * 3,)


@pytest.mark.parametrize("hidden", [0, 7])
def test_it_acts_as_torchs_linear_layers_do(hidden):
    reference, controller = layers(5, hidden, 3), Controller(5, 3, hidden)
    controller.weights.data = nn.utils.parameters_to_vector(reference.parameters()).detach()
    observations = torch.randn(11, 5)
    torch.testing.assert_close(controller.act(observations), reference(observations).detach())


@pytest.mark.parametrize("hidden", [0, 7])
def test_many_candidates_at_once_act_as_one_after_the_other(hidden):
    controller = Controller(5, 3, hidden)
    weights, observations = torch.randn(4, len(controller.weights)), torch.randn(4, 6, 5)
    together = controller.act_all(weights, observations)
    assert together.shape == (4, 6, 3)
    for candidate, seen, actions in zip(weights, observations, together, strict=True):
        reference = layers(5, hidden, 3)
        nn.utils.vector_to_parameters(candidate, reference.parameters())
        torch.testing.assert_close(actions, reference(seen).detach())


def test_candidates_share_a_vector_environments_observations_in_blocks():
    controller = Controller(5, 3)
    weights, observations = torch.randn(4, len(controller.weights)), torch.randn(4, 6, 5)
    together = controller.act_all(weights, observations)
    controller.weights = nn.Parameter(weights, requires_grad=False)
    torch.testing.assert_close(controller.act(observations.flatten(0, 1)), together.flatten(0, 1))


def test_actions_are_within_bounds_and_zero_before_evolution():
    controller = Controller(5, 3)
    assert (controller.act(torch.randn(8, 5)) == 0).all()
    controller.weights.data = 100 * torch.randn(len(controller.weights))
    assert controller.act(torch.randn(8, 5)).abs().max() <= 1
