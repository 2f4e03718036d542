"""Who is told of the fireballs: its model of the player against the running game, and what it does with it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from agents.takecover import TakeCover
from scripts.takecover_planner import ACTIONS, REACH, WALLS, Planner, lived, moved, told_of

vizdoom = pytest.importorskip("vizdoom")

X, MIDDLE = -416.0, 384.0


def test_the_player_moves_as_in_the_game():
    env = TakeCover()
    env.reset(seed=0)
    for _ in range(20):  # before that it does not stir
        env.step([0.0])
    chance = np.random.default_rng(0)
    y, v = torch.tensor([[MIDDLE]]), torch.tensor([[0.0]])
    for _ in range(20):
        i = int(chance.integers(3))
        env.step([-float(ACTIONS[i])])
        y, v = (one[i] for one in moved(y, v))
        place = env.game.get_game_variable(vizdoom.GameVariable.POSITION_Y)
        speed = env.game.get_game_variable(vizdoom.GameVariable.VELOCITY_Y)
        assert (float(y), float(v)) == pytest.approx((place, speed), abs=0.01)
    env.close()


@pytest.mark.parametrize("speed", [-10.0, -20.0])
@pytest.mark.parametrize("y", [40.0, MIDDLE, 730.0])
def test_it_gets_out_of_the_way(y, speed):
    """Of a fireball that comes straight on: 20 tics away it has moved further than the fireball reaches."""
    planner, here, still = Planner(), torch.tensor([[y]]), torch.tensor([[0.0]])
    for t in range(20):
        fireball = torch.tensor([[X - speed * (20 - t), y, speed, 0.0]])
        action = planner(fireball, X, float(here), float(still))
        here, still = (one[int(action) + 1] for one in moved(here, still))
    assert abs(float(here) - y) > REACH
    assert WALLS[0] <= float(here) <= WALLS[1]


def test_it_outlives_random_actions_many_times():
    """76 tics at skill 5, or 98 where each action lasts four."""
    assert np.mean([lived(seed, skill=5, every=4) for seed in range(2)]) > 300


def test_who_looks_sees_a_quarter_of_the_way_round():
    """A fireball straight ahead and one as far to the side as ahead, and more: of the last only memory tells."""
    ahead, aside = (
        SimpleNamespace(id=i, position_x=X + 100, position_y=MIDDLE + off) for i, off in enumerate((0, 101))
    )
    told = {knows: told_of(knows, [ahead, aside], X, MIDDLE, {1}) for knows in ("all", "once in view", "in view")}
    assert told == {"all": {0, 1}, "once in view": {0, 1}, "in view": {0}}
    assert told_of("nothing", [ahead, aside], X, MIDDLE, {1}) == set()
