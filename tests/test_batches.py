"""Shuffled frame batches and sequences: a pure function of store, episodes, seed and step."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Discrete
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from worldvae.batches import frame_batches, sequence_batches
from worldvae.episodes import DamagedEpisode
from worldvae.frames import Frames, FrameSpec
from worldvae.rollouts import Episode, RolloutStore

SPEC = FrameSpec(1, 2, 3)
FRAME_BYTES = 6
LENGTHS = [3, 9, 1, 6, 12, 4]
"""Decisions of the episodes in the store; those at odd positions have a blanked last frame."""


def frame(episode: int, t: int) -> NDArray[np.uint8]:
    """A frame that tells where it is from."""
    return np.array([[[episode, t, 1], [0, 0, 0]]], np.uint8)


def visible_in(episode: int) -> int:
    return LENGTHS[episode] + 1 - episode % 2


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RolloutStore:
    path = tmp_path_factory.mktemp("rollouts")
    store = RolloutStore.create(path, env_id="none", frame_spec=SPEC, action_space=Discrete(2))
    for e, length in enumerate(LENGTHS):
        frames = np.stack([frame(e, t) for t in range(length + 1)])
        visible = np.ones(length + 1, bool)
        if e % 2:
            frames[-1], visible[-1] = 0, False
        zeros = np.zeros(length)
        store.append(Episode(frames, zeros.astype(np.int64), zeros.astype(np.float32), visible, False, True, seed=e))
    return store


def names(batch: Tensor) -> list[tuple[int, int]]:
    """(episode, t) of each frame; a blanked one would be (0, 0) without its mark."""
    assert batch.dtype == torch.uint8
    assert batch.shape[1:] == SPEC.shape
    assert (batch[:, 0, 0, 2] == 1).all(), "a blanked frame"
    return [(int(e), int(t)) for e, t in batch[:, 0, 0, :2].tolist()]


subsets = st.lists(st.integers(0, len(LENGTHS) - 1), min_size=1, unique=True)
budgets = st.integers(0, 60).map(lambda frames: frames * FRAME_BYTES)
"""Some hold no episode, some a few, some all 38 frames."""


@given(episodes=subsets, batch_size=st.integers(1, 20), seed=st.integers(0, 99))
def test_an_epoch_covers_each_visible_frame_at_most_once_and_leaves_less_than_a_batch(
    store: RolloutStore, episodes: list[int], batch_size: int, seed: int
) -> None:
    total = sum(map(visible_in, episodes))
    size = min(batch_size, total)
    stream = frame_batches(store, episodes, batch_size, seed)
    for _ in range(3):
        epoch = [name for batch in islice(stream, total // size) for name in names(batch)]
        assert len(epoch) == total - total % size
        assert len(set(epoch)) == len(epoch)
        assert {e for e, _ in epoch} <= set(episodes)


@given(batch_size=st.integers(1, 20), seed=st.integers(0, 99), budget=budgets)
def test_no_batch_holds_a_frame_twice_whatever_the_budget(
    store: RolloutStore, batch_size: int, seed: int, budget: int
) -> None:
    stream = frame_batches(store, range(len(LENGTHS)), batch_size, seed, budget_bytes=budget)
    for batch in islice(stream, 30):
        assert 1 <= len(batch) <= batch_size
        assert len(set(names(batch))) == len(batch)


def test_with_batches_of_one_every_epoch_is_complete_whatever_the_budget(store: RolloutStore) -> None:
    everything = sorted((e, t) for e in range(len(LENGTHS)) for t in range(visible_in(e)))
    for budget in (0, 20 * FRAME_BYTES, 37 * FRAME_BYTES, 38 * FRAME_BYTES):
        stream = frame_batches(store, range(len(LENGTHS)), 1, seed=0, budget_bytes=budget)
        for _ in range(3):
            epoch = [names(batch)[0] for batch in islice(stream, len(everything))]
            assert sorted(epoch) == everything


@settings(max_examples=200)
@given(
    episodes=subsets, batch_size=st.integers(1, 20), seed=st.integers(0, 99), start=st.integers(0, 40), budget=budgets
)
def test_resuming_at_any_step_equals_the_unbroken_stream(
    store: RolloutStore, episodes: list[int], batch_size: int, seed: int, start: int, budget: int
) -> None:
    unbroken = frame_batches(store, episodes, batch_size, seed, budget_bytes=budget)
    resumed = frame_batches(store, episodes, batch_size, seed, start, budget)
    for one, two in zip(islice(unbroken, start, start + 8), islice(resumed, 8), strict=True):
        assert torch.equal(one, two)


@given(episodes=st.permutations(range(len(LENGTHS))), budget=budgets)
def test_the_same_seed_gives_the_same_bytes_in_whatever_order_episodes_are_listed(
    store: RolloutStore, episodes: list[int], budget: int
) -> None:
    one = frame_batches(RolloutStore(store.path), episodes, 5, 0, budget_bytes=budget)
    two = frame_batches(store, range(len(LENGTHS)), 5, 0, budget_bytes=budget)
    for batch, other in zip(islice(one, 15), islice(two, 15), strict=True):
        assert torch.equal(batch, other)


def test_seeds_and_epochs_differ_in_order(store: RolloutStore) -> None:
    def order(seed: int, epoch: int) -> list[tuple[int, int]]:
        stream = frame_batches(store, range(len(LENGTHS)), 1, seed, start=epoch * 38)
        return [names(batch)[0] for batch in islice(stream, 38)]

    assert sum(map(visible_in, range(len(LENGTHS)))) == 38
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_where_all_fits_a_batch_mixes_all_episodes(store: RolloutStore) -> None:
    # 19 of 38 frames without replacement: the longest episode (13) is in none with p = 5e-6.
    for batch in islice(frame_batches(store, range(len(LENGTHS)), 19, seed=0), 20):
        assert len({e for e, _ in names(batch)}) >= 3


def test_no_more_than_a_window_of_frames_is_mixed(store: RolloutStore) -> None:
    for batch in islice(frame_batches(store, range(len(LENGTHS)), 100, seed=0, budget_bytes=0), 30):
        assert len({e for e, _ in names(batch)}) == 1
        assert len(batch) == visible_in(names(batch)[0][0])


def plain_reference(store: RolloutStore, batch_size: int, seed: int, room: int) -> Iterator[Tensor]:
    """The same stream with windows of ``room`` frames, a frame at a time and nothing read ahead."""
    epoch = 0
    while True:
        random = np.random.default_rng((seed, epoch))
        windows: list[list[int]] = [[]]
        for e in random.permutation(len(LENGTHS)).tolist():
            if windows[-1] and sum(map(visible_in, [*windows[-1], e])) > room:
                windows.append([])
            windows[-1].append(e)
        for window in windows:
            frames = [frame(e, t) for e in sorted(window) for t in range(visible_in(e))]
            order = random.permutation(len(frames)).tolist()
            size = min(batch_size, len(frames))
            for b in range(len(frames) // size):
                yield torch.from_numpy(np.stack([frames[row] for row in order[b * size : (b + 1) * size]]))
        epoch += 1


@given(batch_size=st.integers(1, 20), seed=st.integers(0, 99), budget=st.integers(0, 60))
def test_windows_read_ahead_equal_a_plain_loop(store: RolloutStore, batch_size: int, seed: int, budget: int) -> None:
    """Kept until the end: a batch is no view of memory that the next window is read into."""
    stream = frame_batches(store, range(len(LENGTHS)), batch_size, seed, budget_bytes=budget * FRAME_BYTES)
    plain = plain_reference(store, batch_size, seed, room=budget if budget >= 38 else budget // 2)
    for batch, reference in zip(list(islice(stream, 40)), islice(plain, 40), strict=True):
        assert torch.equal(batch, reference)


class Watched(RolloutStore):
    """Notes which episodes' frames are read; each takes a moment."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.read: list[int] = []

    def visible_frames(self, i: int) -> Frames:
        self.read.append(i)
        time.sleep(0.002)
        return super().visible_frames(i)


def test_what_fits_is_read_once(store: RolloutStore) -> None:
    watched = Watched(store.path)
    for _ in islice(frame_batches(watched, range(len(LENGTHS)), 5, seed=0, budget_bytes=38 * FRAME_BYTES), 40):
        pass
    assert sorted(watched.read) == list(range(len(LENGTHS)))


@given(start=st.integers(0, 300), seed=st.integers(0, 9))
def test_resuming_reads_no_window_that_is_over(store: RolloutStore, start: int, seed: int) -> None:
    """With batches and windows of an episode each, step n is the n-th episode's."""
    watched = Watched(store.path)
    stream = frame_batches(watched, range(len(LENGTHS)), 100, seed, start, budget_bytes=0)
    ((episode, *_), *_) = names(next(stream))
    stream.close()  # type: ignore[attr-defined]
    assert watched.read[0] == episode
    assert len(watched.read) <= 2


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("frames")]


@pytest.mark.parametrize("budget", [0, 1 << 20])
@pytest.mark.parametrize("end", [None, KeyboardInterrupt()])
def test_leaving_early_ends_the_threads(store: RolloutStore, budget: int, end: BaseException | None) -> None:
    stream: Any = frame_batches(store, range(len(LENGTHS)), 5, seed=0, budget_bytes=budget)
    next(stream)
    assert reading_threads()
    if end is None:
        stream.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            stream.throw(end)
    assert not reading_threads()


def one_frame_episodes(path: Path, count: int) -> RolloutStore:
    store = RolloutStore.create(path, env_id="none", frame_spec=SPEC, action_space=Discrete(2))
    for e in range(count):
        nothing, visible = np.zeros(0, np.int64), np.ones(1, bool)
        store.append(Episode(frame(e, 0)[None], nothing, nothing.astype(np.float32), visible, False, True, seed=e))
    return store


def test_leaving_early_does_not_wait_for_the_window_that_is_read_ahead(tmp_path: Path) -> None:
    one_frame_episodes(tmp_path, 200)
    watched = Watched(tmp_path)
    stream: Any = frame_batches(watched, range(200), 4, seed=0, budget_bytes=199 * FRAME_BYTES)
    next(stream)
    stream.close()
    assert 99 <= len(watched.read) < 150


def damage(store: RolloutStore, episode: int) -> None:
    """Changes a pixel of the episode's first frame."""
    path, (first, *_) = store.episodes.file(store.indices[episode]), frame(episode, 0)
    whole = path.read_bytes()
    place = whole.rindex(first.tobytes())
    path.write_bytes(whole[:place] + b"\7" + whole[place + 1 :])


def test_a_damaged_episode_read_ahead_is_told_where_its_window_begins(tmp_path: Path) -> None:
    store = one_frame_episodes(tmp_path, 6)
    order = [names(batch)[0][0] for batch in islice(frame_batches(store, range(6), 1, 0, budget_bytes=0), 6)]
    damage(store, order[3])
    stream = frame_batches(RolloutStore(tmp_path), range(6), 1, 0, budget_bytes=0)
    assert [names(next(stream))[0][0] for _ in range(3)] == order[:3]
    with pytest.raises(DamagedEpisode, match=f"episode-{order[3]:06d}.safetensors is damaged"):
        next(stream)
    assert not reading_threads()


def test_a_damaged_episode_is_told_where_all_fits(tmp_path: Path) -> None:
    damage(one_frame_episodes(tmp_path, 6), 4)
    with pytest.raises(DamagedEpisode, match=r"episode-000004.safetensors is damaged"):
        next(frame_batches(RolloutStore(tmp_path), range(6), 1, 0))


def test_episodes_without_a_visible_frame_are_passed_over(tmp_path: Path) -> None:
    store = one_frame_episodes(tmp_path, 2)
    nothing = np.zeros(0, np.int64)
    blank = Episode(frame(0, 0)[None], nothing, nothing.astype(np.float32), np.zeros(1, bool), False, True, seed=9)
    store.append(blank)
    for budget in (0, 1 << 20):
        stream = frame_batches(store, range(3), 1, seed=0, budget_bytes=budget)
        assert {names(batch)[0][0] for batch in islice(stream, 4)} == {0, 1}
    with pytest.raises(ValueError, match="got 0 frames"):
        next(frame_batches(store, [2], 1, seed=0))


@pytest.mark.parametrize("budget", [10**6, 20 * FRAME_BYTES])
def test_in_pairs_each_frame_comes_with_the_one_before_it_in_its_episode(store: RolloutStore, budget: int) -> None:
    episodes = range(len(LENGTHS))
    singles = frame_batches(store, episodes, 5, seed=3, budget_bytes=budget)
    for single, pair in zip(
        islice(singles, 20), frame_batches(store, episodes, 5, seed=3, budget_bytes=budget, pairs=True), strict=False
    ):
        assert (pair[:, 0] == single).all()
        places = pair[:, :, 0, 0, :2].int()
        assert (places[:, 1, 0] == places[:, 0, 0]).all()
        assert (places[:, 1, 1] == (places[:, 0, 1] - 1).clamp(min=0)).all()


@pytest.mark.parametrize(("episodes", "batch_size"), [([], 4), ([0, 1], 0)])
def test_batches_of_nothing_are_refused(store: RolloutStore, episodes: list[int], batch_size: int) -> None:
    with pytest.raises(ValueError, match="batches need episodes"):
        next(frame_batches(store, episodes, batch_size, seed=0))


def places(rows: NDArray[np.int64], lengths: list[int]) -> list[list[tuple[int, int]]]:
    """(episode, t) of each row of the table in which all episodes' T + 1 frames lie end to end."""
    table = [(e, t) for e, length in enumerate(lengths) for t in range(length + 1)]
    return [[table[row] for row in piece] for piece in rows.tolist()]


episode_lengths = st.lists(st.integers(0, 12), min_size=1, max_size=8).filter(any)
sizes = {"batch_size": st.integers(1, 6), "most_steps": st.integers(1, 9), "seed": st.integers(0, 99)}


@given(lengths=episode_lengths, **sizes)
def test_an_epoch_of_sequences_has_every_transition_once_and_none_across_an_end(
    lengths: list[int], batch_size: int, most_steps: int, seed: int
) -> None:
    everything = sorted((e, t) for e, length in enumerate(lengths) for t in range(length))
    stream = sequence_batches(lengths, batch_size, most_steps, seed)
    for _ in range(3):
        epoch: list[tuple[int, int]] = []
        while len(epoch) < len(everything):
            rows, valid = next(stream)
            assert rows.shape == (len(valid), valid.shape[1] + 1)
            assert 1 <= len(rows) <= batch_size
            assert 1 <= valid.shape[1] <= most_steps
            assert valid.all(1).any(), "padded further than the longest"
            for piece, there in zip(places(rows, lengths), valid.tolist(), strict=True):
                n = sum(there)
                assert there == [True] * n + [False] * (len(there) - n)
                e, first = piece[0]
                assert piece[: n + 1] == [(e, first + t) for t in range(n + 1)]
                assert set(piece[n:]) == {piece[n]}
                epoch += piece[:n]
        assert sorted(epoch) == everything


@given(lengths=episode_lengths, start=st.integers(0, 40), **sizes)
def test_sequences_resumed_at_any_step_equal_the_unbroken_stream(
    lengths: list[int], start: int, batch_size: int, most_steps: int, seed: int
) -> None:
    unbroken = sequence_batches(lengths, batch_size, most_steps, seed)
    resumed = sequence_batches(lengths, batch_size, most_steps, seed, start)
    for one, two in zip(islice(unbroken, start, start + 8), islice(resumed, 8), strict=True):
        np.testing.assert_array_equal(one[0], two[0])
        np.testing.assert_array_equal(one[1], two[1])


def test_long_episodes_are_cut_elsewhere_in_each_epoch() -> None:
    stream = sequence_batches([1000], batch_size=100, most_steps=100, seed=0)
    cuts = [frozenset(next(stream)[0][:, 0].tolist()) for _ in range(4)]  # an epoch is a batch
    assert len(set(cuts)) == 4
    assert all(len(cut) in (10, 11) for cut in cuts)


def test_sequences_of_another_seed_come_in_another_order() -> None:
    orders = {next(sequence_batches([1] * 20, 20, 8, seed))[0].tobytes() for seed in (0, 1, 2, 0)}
    assert len(orders) == 3


@pytest.mark.parametrize(
    ("lengths", "batch_size", "most_steps"), [([], 4, 8), ([0, 0], 4, 8), ([3], 0, 8), ([3], 4, 0)]
)
def test_sequences_of_nothing_are_refused(lengths: list[int], batch_size: int, most_steps: int) -> None:
    with pytest.raises(ValueError, match="batches need transitions"):
        next(sequence_batches(lengths, batch_size, most_steps, seed=0))
