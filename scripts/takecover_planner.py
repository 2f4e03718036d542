"""How long could one live in TakeCover who is told of fireballs: of all, of those seen, of none? What the game allows.

Plans by dynamic programming over the player's place and speed along its wall, tic by tic back from when the last
fireball will have passed.
"""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import grid_sample
from tqdm import tqdm

from agents.evaluation import TEST_SEEDS, Scores
from agents.takecover import FIREBALL, TICS, TakeCover
from scripts import cli
from worldvae.checkpoint import write_record

ACTIONS = torch.tensor([-1.0, 0.0, 1.0])
"""To the right, still, to the left, where y grows."""
PUSH, FRICTION = 0.75, 0.90625
"""What a tic adds to the player's speed, in units/tic, and what is left of it afterwards."""
WALLS = 16.0, 752.0
"""The least and the greatest y of the player's middle."""
REACH, SPARE, NEAR = 22.0, 3.0, 15.0
"""Units between the middles of a player and a fireball that hits; so many more do too, to be sure; and beyond that
it is not quite safe."""
Knows = Literal["all", "once in view", "in view", "nothing"]
"""Of which fireballs a planner is told where they are and how fast: who looks remembers, or does not, or is blind."""
LONGEST = 80
"""Tics that a fireball flies at most."""
Y, V = torch.linspace(*WALLS, 185), torch.linspace(-7.5, 7.5, 31)
PARTS = torch.linspace(0, 1, 5)
"""Of a tic, in which a fireball flies up to 20 units."""


class Planner:
    """Chooses an action by what may happen until the last fireball has passed."""

    def __init__(self) -> None:
        y, v = torch.meshgrid(Y, V, indexing="ij")
        self._moved = moved(y, v)
        # Imps aim at where the player is: slow, or with less than 300 units before the wall, it ends badly.
        room = torch.where(v > 0, WALLS[1] - y, y - WALLS[0])
        self._end = 0.03 * (1 - v.abs() / V[-1]) + 0.02 * (1 - room / 300).clamp(0, 1)

    def __call__(self, fireballs: Tensor, x: float, y: float, v: float) -> float:
        """One of ``ACTIONS``. Fireballs as float [n, 4]: x, y and speed along both; x, y and v are the player's."""
        tics = torch.ceil((x - 30 - fireballs[:, 0]) / fireballs[:, 2]).clamp(0, LONGEST)
        cost = self._end
        for t in range(int(tics.max()) if len(tics) else 0, 0, -1):
            cost = read(cost + hurt(fireballs, x, t), *self._moved).amin(0)
        costs = read(cost + hurt(fireballs, x, 0), *moved(torch.tensor([[y]]), torch.tensor([[v]])))
        return float(ACTIONS[costs.argmin()])


def moved(y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Places and speeds [n, m] a tic after each of ``ACTIONS``: [3, n, m]."""
    v = v + PUSH * ACTIONS[:, None, None]
    y = y + v
    walled = (y < WALLS[0]) | (y > WALLS[1])
    return y.clamp(*WALLS), torch.where(walled, 0, v * FRICTION)


def read(cost: Tensor, y: Tensor, v: Tensor) -> Tensor:
    """Costs [Y, V] at places and speeds [3, n, m], between the grid's points too."""
    grid = torch.stack([v / V[-1], (y - Y[0]) / (Y[-1] - Y[0]) * 2 - 1], -1)
    return grid_sample(cost.expand(3, 1, -1, -1), grid, padding_mode="border", align_corners=True)[:, 0]


def hurt(fireballs: Tensor, x: float, t: int) -> Tensor:
    """What being at each of ``Y`` costs from the t-th tic to the next, [Y, 1]: a hit is 0.11."""
    path = fireballs[:, None, :2] + fireballs[:, None, 2:] * (t + PARTS[:, None])
    passing = (path[..., 0] - x).abs() < REACH + 1
    off = (path[..., 1, None] - Y).abs().masked_fill(~passing[..., None], torch.inf).amin(1) - REACH - SPARE
    return (0.1 * (off < 0) + 0.01 * (1 - off / NEAR).clamp(0, 1)).sum(0)[:, None]


def lived(seed: int, skill: int, every: int, knows: Knows = "all") -> int:
    """Tics of one episode with a decision every so many."""
    planner, env, known = Planner(), TakeCover(skill=skill), set[int]()
    import vizdoom  # without it TakeCover has said what to do

    place = [getattr(vizdoom.GameVariable, name) for name in ("POSITION_X", "POSITION_Y", "VELOCITY_Y")]
    env.game.close()
    env.game.set_objects_info_enabled(True)
    env.game.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)  # nobody looks
    env.game.init()
    env.reset(seed=seed)
    for t in range(TICS):
        if t % every == 0:
            x, y, v = map(env.game.get_game_variable, place)
            balls = [o for o in env.game.get_state().objects if o.name == FIREBALL and o.velocity_x < 0]
            known = told_of(knows, balls, x, y, known)
            told = [(o.position_x, o.position_y, o.velocity_x, o.velocity_y) for o in balls if o.id in known]
            action = planner(torch.tensor(told).reshape(-1, 4), x, y, v)
        _, _, terminated, truncated, _ = env.step(-action)  # the game's left is below 0
        if terminated or truncated:
            break
    env.close()
    return t + 1


def told_of(knows: Knows, balls: list[Any], x: float, y: float, before: set[int]) -> set[int]:
    """Ids of the fireballs that a player at x, y is told of, who was told of others before."""
    if knows == "nothing":
        return set()
    seen = {o.id for o in balls if knows == "all" or abs(o.position_y - y) < o.position_x - x}  # 90 degrees
    return seen | before if knows == "once in view" else seen


def main(
    episodes: int = 100, every: int = 4, workers: int = 2, out: Path = Path("benchmarks/takecover_planner.json")
) -> None:
    """Play so many test episodes at skill 4 and at skill 5, with a decision every so many tics."""
    seeds = tuple(range(TEST_SEEDS, TEST_SEEDS + episodes))
    rows, records = [("told of fireballs", "skill", "tics alive")], []
    for knows, skill in product(get_args(Knows), (4, 5)):
        begin = time.monotonic()
        play = partial(lived, skill=skill, every=every, knows=knows)
        with ProcessPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            played = pool.map(play, seeds)
            lengths = tuple(tqdm(played, f"{knows}, skill {skill}", episodes, unit="episode", dynamic_ncols=True))
        scores = Scores(seeds, lengths, lengths, time.monotonic() - begin)
        rows.append((knows, str(skill), str(scores)))
        records.append({"knows": knows, "skill": skill, "decision_every": every, **scores.as_json()})
    print(cli.table(rows))
    write_record(out, {**cli.provenance(), "records": records})


if __name__ == "__main__":
    cli.run(main)
