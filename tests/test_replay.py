"""The ring of transitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agents.replay import Replay

CPU = torch.device("cpu")


def add(replay: Replay, first: int, count: int) -> None:
    ids = np.arange(first, first + count, dtype=np.float32)
    replay.add(ids[:, None], -ids[:, None], ids * 2, ids % 2 == 0, ids[:, None] + 1)


def test_a_sampled_transition_is_one_that_was_added():
    replay = Replay(100, 1, 1, CPU)
    add(replay, 0, 30)
    batch = replay.sample(500, torch.Generator().manual_seed(0))
    ids = batch.observations_t[:, 0]
    assert set(ids.tolist()) == set(range(30))
    torch.testing.assert_close(batch.actions_t[:, 0], -ids)
    torch.testing.assert_close(batch.rewards_tp1, ids * 2)
    torch.testing.assert_close(batch.observations_tp1[:, 0], ids + 1)
    torch.testing.assert_close(batch.continues, ids % 2)  # even ones terminated


def test_the_oldest_give_way():
    replay = Replay(10, 1, 1, CPU)
    for first in range(0, 28, 4):
        add(replay, first, 4)
    assert len(replay) == 10
    ids = set(replay.sample(500, torch.Generator().manual_seed(0)).observations_t[:, 0].tolist())
    assert ids == set(range(18, 28))


def test_a_restored_replay_goes_on_as_the_first_one():
    first, second = Replay(10, 1, 1, CPU), Replay(10, 1, 1, CPU)
    add(first, 0, 7)
    second.load_state_dict(first.state_dict())
    for replay in (first, second):
        add(replay, 7, 5)
    ours, theirs = (replay.sample(50, torch.Generator().manual_seed(1)) for replay in (first, second))
    for name, column in vars(ours).items():
        assert torch.equal(column, getattr(theirs, name))


def test_an_empty_replay_says_so():
    with pytest.raises(ValueError, match="empty"):
        Replay(10, 1, 1, CPU).sample(1, torch.Generator())
