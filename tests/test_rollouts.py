"""Episodes on disk: whole or not at all, verified, and independent of each other."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from hypothesis import given
from hypothesis import strategies as st

from worldvae.checkpoint import CheckpointError, read_json, write_json
from worldvae.episodes import DamagedEpisode, EpisodeFolder
from worldvae.frames import FrameSpec
from worldvae.rollouts import Episode, RolloutStore, describe_space, space_from, split_episodes

ROOT = Path(__file__).parents[1]
SPEC = FrameSpec(6, 5, 3)
ACTIONS = Box(-1, 1, (2,), np.float32)


def episode(seed: int, length: int = 4, spec: FrameSpec = SPEC) -> Episode:
    """Noise that the seed determines."""
    rng = np.random.default_rng(seed)
    return Episode(
        frames=rng.integers(0, 256, (length + 1, *spec.shape), dtype=np.uint8),
        actions=rng.uniform(-1, 1, (length, 2)).astype(np.float32),
        rewards=rng.normal(size=length).astype(np.float32),
        visible=np.arange(length + 1) < length,
        terminated=bool(seed % 2),
        truncated=not seed % 2,
        seed=seed,
        policy="noise",
        env_steps=4 * length,
    )


def create(path: Path, **changes: Any) -> RolloutStore:
    given = {"env_id": "tests/Dot-v0", "frame_spec": SPEC, "action_space": ACTIONS, **changes}
    return RolloutStore.create(path, **given)


def assert_same(one: Episode, two: Episode) -> None:
    for field in dataclasses.fields(Episode):
        a, b = getattr(one, field.name), getattr(two, field.name)
        assert type(a) is type(b), field.name
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype, field.name
            np.testing.assert_array_equal(a, b, field.name)
        else:
            assert a == b, field.name


def run_python(code: str, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_episodes_come_back_as_they_were(tmp_path: Path) -> None:
    store = create(tmp_path)
    written = [episode(seed, length=seed + 1) for seed in range(4)]
    for e in written:
        store.append(e)
    for opened in (store, RolloutStore(tmp_path)):
        assert len(opened) == 4
        for e, back in zip(written, opened, strict=True):
            assert len(back) == len(e)
            assert_same(back, e)


@given(
    length=st.integers(1, 5),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    channels=st.sampled_from([1, 3]),
    space=st.sampled_from([Box(-1, 1, (2, 2), np.float64), Discrete(3), MultiDiscrete([2, 3])]),
    seed=st.integers(0, 10**6),
)
def test_frames_and_actions_of_any_shape_and_type_are_kept(
    tmp_path_factory: pytest.TempPathFactory,
    length: int,
    size: tuple[int, int],
    channels: int,
    space: gymnasium.Space,
    seed: int,
) -> None:
    path = tmp_path_factory.mktemp("rollouts")
    spec = FrameSpec(*size, channels)  # type: ignore[arg-type]
    space.seed(seed)
    actions = np.stack([space.sample() for _ in range(length)])
    e = dataclasses.replace(episode(seed, length, spec), actions=actions)
    create(path, frame_spec=spec, action_space=space).append(e)
    store = RolloutStore(path)
    assert store.frame_spec == spec
    assert store.action_space == space
    assert_same(store[0], e)


def test_headers_tell_length_seed_and_cost_without_reading_frames(tmp_path: Path) -> None:
    store = create(tmp_path)
    for seed in (7, 3):
        store.append(episode(seed, length=seed))
    assert store.seeds == {3, 7}
    assert store.env_steps == 4 * (3 + 7)
    assert store.header(0) == {
        "terminated": True,
        "truncated": False,
        "seed": 7,
        "policy": "noise",
        "env_steps": 28,
        "length": 7,
    }


def test_blanked_frames_are_left_out_of_the_visible_ones(tmp_path: Path) -> None:
    store = create(tmp_path)
    blanked, all_visible = episode(0), dataclasses.replace(episode(1), visible=np.ones(5, bool))
    store.append(blanked)
    store.append(all_visible)
    np.testing.assert_array_equal(store.visible_frames(0), blanked.frames[:-1])
    np.testing.assert_array_equal(store.visible_frames(1), all_visible.frames)


def test_visible_frames_are_counted_without_reading_the_frames(tmp_path: Path) -> None:
    store = create(tmp_path)
    for e in (episode(0), dataclasses.replace(episode(1), visible=np.ones(5, bool))):
        store.append(e)
    frames = store[0].frames.tobytes()
    damaged = store.episodes.file(0).read_bytes().replace(frames, bytes(len(frames)))
    store.episodes.file(0).write_bytes(damaged)
    opened = RolloutStore(tmp_path)
    assert opened.visible_counts([1, 0]) == [5, 4]
    with pytest.raises(DamagedEpisode, match="episode-000000"):
        opened.visible_frames(0)


@given(flipped=st.integers(0, 4), value=st.integers(2, 255))
def test_a_damaged_mask_is_told_at_the_latest_when_frames_are_read(tmp_path: Path, flipped: int, value: int) -> None:
    store = create(tmp_path)
    if len(store) == 0:
        store.append(episode(0))
    file = store.episodes.file(0)
    whole = file.read_bytes()
    place = whole.rindex(bytes([1, 1, 1, 1, 0])) + flipped
    file.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
    opened = RolloutStore(tmp_path)
    assert opened.visible_counts([0]) in ([4], [5])
    with pytest.raises(DamagedEpisode, match="episode-000000"):
        opened.visible_frames(0)
    file.write_bytes(whole)


def test_a_mask_damaged_until_it_hides_all_is_told_when_frames_are_counted(tmp_path: Path) -> None:
    store = create(tmp_path)
    store.append(episode(0))
    file = store.episodes.file(0)
    head, mask, tail = file.read_bytes().rpartition(bytes([1, 1, 1, 1, 0]))
    file.write_bytes(head + bytes(len(mask)) + tail)
    with pytest.raises(DamagedEpisode, match="episode-000000"):
        RolloutStore(tmp_path).visible_counts([0])


def test_a_missing_mask_is_told_by_the_files_name(tmp_path: Path) -> None:
    store = create(tmp_path)
    store.append(episode(0))
    store.episodes.write(0, {"frames": episode(0).frames}, {})
    with pytest.raises(DamagedEpisode, match="episode-000000"):
        store.visible_counts([0])


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no list of mappings here")
def test_frames_of_large_episodes_are_mapped_and_small_arrays_copied(tmp_path: Path) -> None:
    store = create(tmp_path, frame_spec=BIG)
    store.append(dataclasses.replace(episode(0, 20, BIG), visible=np.ones(21, bool)))

    def mapped(array: np.ndarray) -> bool:
        """Whether the array's memory is the episode's file."""
        lines = Path("/proc/self/maps").read_text().splitlines()
        ranges = [line.split()[0].split("-") for line in lines if line.endswith(str(store.episodes.file(0)))]
        return any(int(begin, 16) <= array.ctypes.data < int(end, 16) for begin, end in ranges)

    for opened in (store, RolloutStore(tmp_path)):
        e = opened[0]
        assert mapped(e.frames)
        assert not any(mapped(array) for array in (e.actions, e.rewards, e.visible))
        assert mapped(opened.visible_frames(0))


def test_what_is_written_into_an_episodes_frames_never_reaches_its_file(tmp_path: Path) -> None:
    store = create(tmp_path, frame_spec=BIG)
    store.append(episode(0, 20, BIG))
    store[0].frames[:] = 0
    assert_same(RolloutStore(tmp_path)[0], episode(0, 20, BIG))


@pytest.mark.parametrize("dtype", ["u2", "u4", "u8", "i1", "i8", "f2", "f4", "f8", "?"])
@pytest.mark.parametrize("shape", [(0,), (3, 2), (1 << 20,)])
def test_actions_of_every_numpy_type_are_kept_mapped_or_not(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    actions = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    folder = EpisodeFolder(tmp_path)
    folder.write(0, {"actions": actions}, {})
    for _ in range(2):
        back = folder.read(0)[0]["actions"]
        assert back.dtype == actions.dtype
        np.testing.assert_array_equal(back, actions)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": np.zeros((5, 6, 5, 3), np.float32)}, "uint8"),
        ({"frames": np.zeros((5, 6, 5), np.uint8)}, r"\[T\+1, H, W, C\]"),
        ({"frames": np.zeros((4, 6, 5, 3), np.uint8)}, r"T\+1 frames"),
        ({"actions": np.zeros((5, 2), np.float32)}, r"T\+1 frames"),
        ({"visible": np.ones(4, bool)}, r"T\+1 frames"),
        ({"rewards": np.zeros(5, np.float32)}, r"T\+1 frames"),
        ({"rewards": np.array([0, np.nan, 0, 0], np.float32)}, "seed 5: a reward is not a finite number"),
        ({"rewards": np.array([0, np.inf, 0, 0], np.float32)}, "seed 5: a reward is not a finite number"),
    ],
)
def test_an_episode_that_does_not_add_up_cannot_be_made(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(episode(5), **changes)


def test_frames_of_another_shape_are_refused(tmp_path: Path) -> None:
    store = create(tmp_path)
    with pytest.raises(ValueError, match="not of the store's"):
        store.append(episode(0, spec=FrameSpec(5, 6, 3)))
    assert len(RolloutStore(tmp_path)) == 0


def test_creating_again_opens_what_is_there_and_appending_goes_on(tmp_path: Path) -> None:
    create(tmp_path).append(episode(0))
    again = create(tmp_path)
    again.append(episode(1))
    assert [e.seed for e in RolloutStore(tmp_path)] == [0, 1]


@pytest.mark.parametrize("kwargs", [{"size": (3, 4)}, {"levels": {1: 2}}, {"lap_complete_percent": 0.95}])
def test_any_environment_arguments_let_collection_go_on(tmp_path: Path, kwargs: dict[str, Any]) -> None:
    create(tmp_path, env_kwargs=kwargs).append(episode(0))
    assert len(create(tmp_path, env_kwargs=kwargs)) == 1


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"env_id": "tests/Other-v0"}, "env_id"),
        ({"frame_spec": FrameSpec(6, 5, 3, crop=(0, 1, 0, 0))}, "frame_spec"),
        ({"action_space": Discrete(3)}, "action_space"),
        ({"action_repeat": 2}, "action_repeat"),
        ({"env_kwargs": {"length": 3}}, "env_kwargs"),
    ],
)
def test_rollouts_of_another_kind_are_never_mixed_in(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    create(tmp_path)
    with pytest.raises(CheckpointError, match=f"holds other rollouts .different {named}"):
        create(tmp_path, **changes)


def test_a_folder_without_rollouts_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no rollouts in"):
        RolloutStore(tmp_path)


def test_a_newer_format_asks_for_an_upgrade(tmp_path: Path) -> None:
    manifest = create(tmp_path).manifest
    write_json(tmp_path / "rollouts.json", {**manifest, "format_version": manifest["format_version"] + 1})
    with pytest.raises(CheckpointError, match="upgrade"):
        RolloutStore(tmp_path)


def test_after_a_damaged_episode_is_deleted_the_others_keep_their_order(tmp_path: Path) -> None:
    store = create(tmp_path)
    for seed in range(3):
        store.append(episode(seed))
    store.episodes.file(1).unlink()
    opened = RolloutStore(tmp_path)
    opened.append(episode(9))
    assert [e.seed for e in RolloutStore(tmp_path)] == [0, 2, 9]


WRITE_FOREVER = """
import builtins, io, sys, time
from pathlib import Path
from tests.test_rollouts import BIG, create, episode

class SlowDisk(io.FileIO):
    def write(self, data):
        for start in range(0, len(data), 1 << 16):
            super().write(data[start : start + (1 << 16)])
            time.sleep(0.001)
        return len(data)

store = create(Path(sys.argv[1]), frame_spec=BIG)
builtins.open = lambda path, mode: SlowDisk(path, mode)
while True:
    store.append(episode(len(store), 20, BIG))
    print(len(store), flush=True)
"""
BIG = FrameSpec(200, 200, 3)


def test_a_killed_writer_loses_no_finished_episode(tmp_path: Path) -> None:
    for _ in range(3):
        writer = run_python(WRITE_FOREVER, tmp_path)
        assert writer.stdout is not None
        told = [int(writer.stdout.readline()) for _ in range(2)]
        names = os.listdir(tmp_path)
        while set(os.listdir(tmp_path)) <= set(names):
            pass  # until the next file appears: its bytes are being written now
        os.kill(writer.pid, signal.SIGKILL)
        rest = writer.communicate()[0]
        told += [int(line) for line in rest.split()]  # each told once its episode was on disk
        store = RolloutStore(tmp_path)
        assert len(store) >= max(told)
        for i, e in enumerate(store):
            assert_same(e, episode(i, 20, BIG))
    last = RolloutStore(tmp_path)
    last.append(episode(len(last), 20, BIG))
    assert [e.seed for e in RolloutStore(tmp_path)] == list(range(len(last)))


@given(
    st.sampled_from(
        [
            Box(-1, 1, (3,), np.float32),
            Box(np.array([-1, 0, 0], np.float32), np.array([1, 1, 1], np.float32)),
            Box(-np.inf, np.inf, (2,), np.float64),
            Box(0, 255, (2, 2), np.uint8),
            Discrete(4),
            Discrete(4, start=-2),
            MultiDiscrete([2, 5]),
            MultiDiscrete([2, 5], start=[1, -1]),
        ]
    )
)
def test_an_action_space_comes_back_from_its_description(
    tmp_path_factory: pytest.TempPathFactory, space: gymnasium.Space
) -> None:
    path = tmp_path_factory.mktemp("space") / "space.json"
    write_json(path, describe_space(space))
    assert space_from(read_json(path)) == space


def test_an_action_space_that_cannot_be_stored_is_refused() -> None:
    with pytest.raises(ValueError, match="actions must be Box, Discrete or MultiDiscrete"):
        describe_space(gymnasium.spaces.MultiBinary(3))


@given(count=st.integers(2, 200), held_out=st.floats(0, 1), seed=st.integers(0, 99))
def test_a_split_holds_out_whole_episodes_and_loses_none(count: int, held_out: float, seed: int) -> None:
    train, test = split_episodes(count, held_out, seed)
    assert sorted(train + test) == list(range(count))
    assert train
    assert test
    assert abs(len(test) - held_out * count) <= 1
    assert split_episodes(count, held_out, seed) == (train, test)


def test_what_is_held_out_stays_so_when_episodes_are_added() -> None:
    """Else a model that goes on in the next round would have learned what it is measured on."""
    splits = [split_episodes(count, 0.1, 3) for count in (20, 400, 500, 607)]
    for (train, held_out), (more_train, more_held_out) in itertools.pairwise(splits):
        assert set(train) < set(more_train)
        assert set(held_out) < set(more_held_out)
    assert [len(held_out) for _, held_out in splits] == pytest.approx([2, 40, 50, 60.7], abs=1)
    assert len({tuple(split_episodes(100, 0.1, seed)[1]) for seed in range(20)}) > 5


def test_one_episode_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        split_episodes(1, 0.1, 0)
