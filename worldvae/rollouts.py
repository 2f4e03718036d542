"""Recorded episodes and their store: a folder of them with a manifest that says of what.

Several processes may append at once and read all the while. Knows nothing of environments or networks.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from numpy.typing import NDArray

from worldvae.checkpoint import FORMAT_VERSION, CheckpointError, only_writer, read_manifest, write_json
from worldvae.episodes import DamagedEpisode, EpisodeFolder
from worldvae.frames import Frames, FrameSpec


@dataclass(frozen=True)
class Episode:
    """One episode of T decisions, with T + 1 frames.

    Attributes:
        frames: uint8 [T+1, H, W, C]
        actions: [T, A] or [T] of the action space's dtype
        rewards: float32 [T]
        visible: bool [T+1]; false where the environment blanked the frame (not to be learned from)
        terminated: the last transition ended the task.
        truncated: the last transition ended by a time limit.
        seed: the seed the episode was listed under (exact on the Gymnasium backends).
        policy: who acted, in a word.
        env_steps: emulator steps that the episode cost.
    """

    frames: Frames
    actions: NDArray[Any]
    rewards: NDArray[np.float32]
    visible: NDArray[np.bool_]
    terminated: bool
    truncated: bool
    seed: int
    policy: str = "unknown"
    env_steps: int = 0

    def __post_init__(self) -> None:
        length = len(self.rewards)
        if self.frames.dtype != np.uint8 or self.frames.ndim != 4:
            raise ValueError(f"frames must be uint8 [T+1, H, W, C], not {self.frames.dtype} {self.frames.shape}")
        if not len(self.frames) == len(self.visible) == length + 1 == len(self.actions) + 1:
            raise ValueError(
                f"T+1 frames and T actions and rewards, not {len(self.frames)}, {len(self.actions)}, {length}"
            )
        if not np.isfinite(self.rewards).all():
            raise ValueError(f"episode of seed {self.seed}: a reward is not a finite number")

    def __len__(self) -> int:
        """T, the number of decisions."""
        return len(self.rewards)


class RolloutStore:
    """A folder of episodes from one environment with one frame spec.

    Usage: ``RolloutStore.create(path, ...)`` once, ``RolloutStore(path)`` ever after; ``append``
    and ``store[i]``. Appending again after a crash goes on where the last whole episode ended.
    """

    KIND = "rollouts"

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.manifest = read_manifest(self.path / "rollouts.json", self.KIND)
        self.episodes = EpisodeFolder(self.path)
        self.indices = self.episodes.indices()

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        env_id: str,
        frame_spec: FrameSpec,
        action_space: gymnasium.Space,
        action_repeat: int = 1,
        env_kwargs: dict[str, Any] | None = None,
    ) -> RolloutStore:
        """Makes the folder, or opens it if it already holds rollouts of the same kind.

        Raises:
            CheckpointError: the folder holds rollouts of another environment or frame spec.
        """
        path = Path(path)
        manifest = {
            "format_version": FORMAT_VERSION,
            "kind": cls.KIND,
            "env_id": env_id,
            "env_kwargs": json.loads(json.dumps(env_kwargs or {})),
            "action_space": describe_space(action_space),
            "action_repeat": action_repeat,
            "frame_spec": json.loads(json.dumps(asdict(frame_spec))),
        }
        file = path / "rollouts.json"
        if not file.exists():
            with only_writer(path):
                if not file.exists():  # another process may have made it by now
                    write_json(file, manifest)
        store = cls(path)
        differing = [key for key, value in manifest.items() if store.manifest.get(key) != value]
        if differing:
            raise CheckpointError(f"{path} holds other rollouts (different {', '.join(differing)})")
        return store

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Episode]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> Episode:
        """The i-th episode, verified. Raises DamagedEpisode."""
        index = self.indices[i]
        tensors, header = self.episodes.read(index)
        fields: dict[str, Any] = {**tensors, **header}
        fields.pop("length", None)
        try:
            return Episode(**fields)
        except (TypeError, ValueError, AttributeError) as error:
            raise DamagedEpisode(f"{self.episodes.file(index)} is no episode of rollouts: {error}") from error

    def append(self, episode: Episode) -> None:
        """Adds one finished episode after the last that is there; when this returns, it is on disk.

        Other processes may append too: each episode gets a number of its own.
        """
        if episode.frames.shape[1:] != self.frame_spec.shape:
            raise ValueError(f"frames {episode.frames.shape[1:]} are not of the store's {self.frame_spec.shape}")
        tensors = {
            "frames": episode.frames,
            "actions": episode.actions,
            "rewards": episode.rewards.astype(np.float32),
            "visible": episode.visible,
        }
        header = {k: v for k, v in vars(episode).items() if k not in tensors}
        with only_writer(self.path, patience=60):
            index = max(self.episodes.indices(), default=-1) + 1
            self.episodes.write(index, tensors, {**header, "length": len(episode)})
        self.indices.append(index)

    def append_all(self, episodes: Iterable[Episode], most_waiting: int = 64) -> Iterator[Episode]:
        """Appends episodes on another thread while the next are made; yields each once on disk.

        At most ``most_waiting`` wait in memory. When it is left early (Ctrl-C, an error), those that
        wait are written first.
        """
        waiting: deque[tuple[Episode, Future[None]]] = deque()
        with ThreadPoolExecutor(1) as thread:
            for episode in episodes:
                waiting.append((episode, thread.submit(self.append, episode)))
                while waiting and (waiting[0][1].done() or len(waiting) > most_waiting):
                    yield _written(*waiting.popleft())
            while waiting:
                yield _written(*waiting.popleft())

    def visible_frames(self, i: int) -> Frames:
        """uint8 [<= T+1, H, W, C]: the i-th episode's frames without those that were blanked."""
        tensors, _ = self.episodes.read(self.indices[i], ("frames", "visible"))
        frames, visible = tensors["frames"], tensors["visible"]
        return frames if visible.all() else frames[visible]

    def visible_counts(self, episodes: Iterable[int]) -> list[int]:
        """How many frames of each episode are visible, told without reading frames.

        A damaged mask is found when the frames are read, or here where it hides them all. Raises DamagedEpisode.
        """
        indices = [self.indices[i] for i in episodes]
        counts = [int(np.count_nonzero(self.episodes.peek(index, "visible"))) for index in indices]
        for index, count in zip(indices, counts, strict=True):
            if count == 0:
                self.episodes.read(index)  # which verifies
        return counts

    def header(self, i: int) -> dict[str, Any]:
        """Length, seed, policy, ends and env steps of the i-th episode, without its frames."""
        header = self.episodes.header(self.indices[i])
        if "env_steps" not in header:
            raise DamagedEpisode(f"{self.episodes.file(self.indices[i])} is no episode of rollouts")
        return header

    @property
    def seeds(self) -> set[int]:
        """The seeds that are already recorded."""
        return {self.header(i)["seed"] for i in range(len(self))}

    @property
    def env_steps(self) -> int:
        """What all episodes together cost at the emulator."""
        return sum(self.header(i)["env_steps"] for i in range(len(self)))

    @property
    def frame_spec(self) -> FrameSpec:
        spec = self.manifest["frame_spec"]
        return FrameSpec(**{**spec, "crop": tuple(spec["crop"])})

    @property
    def action_space(self) -> gymnasium.Space:
        return space_from(self.manifest["action_space"])


def _written(episode: Episode, writing: Future[None]) -> Episode:
    writing.result()
    return episode


def split_episodes(count: int, held_out: float, seed: int) -> tuple[list[int], list[int]]:
    """Positions of training and held-out episodes; at least one of each where there are two.

    Whole episodes are held out: neighbouring frames are nearly equal, and would leak. They are spread evenly, and
    (but for fewer than 1 / held_out) stay the same when episodes are added: what training has seen in an earlier round
    would be known by heart.
    """
    if count < 2:
        raise ValueError(f"holding out whole episodes needs at least 2, there are {count}")
    begin = np.random.default_rng(seed).random()
    passed = np.floor(begin + held_out * np.arange(count + 1))
    chosen = np.diff(passed) > 0
    if chosen.all() or not chosen.any():
        chosen[int(begin * count)] ^= True
    return np.flatnonzero(~chosen).tolist(), np.flatnonzero(chosen).tolist()


def describe_space(space: gymnasium.Space) -> dict[str, Any]:
    """A JSON description of a Box, Discrete or MultiDiscrete action space."""
    if isinstance(space, Box):
        bounds = {"low": space.low.tolist(), "high": space.high.tolist()}
        return {"type": "Box", **bounds, "dtype": str(space.dtype)}
    if isinstance(space, Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, MultiDiscrete):
        return {"type": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": space.start.tolist()}
    raise ValueError(f"actions must be Box, Discrete or MultiDiscrete, not {space}")


def space_from(description: Mapping[str, Any]) -> gymnasium.Space:
    """The action space that ``describe_space`` described."""
    if description["type"] == "Box":
        dtype = np.dtype(description["dtype"]).type
        return Box(np.array(description["low"], dtype), np.array(description["high"], dtype), dtype=dtype)
    if description["type"] == "Discrete":
        return Discrete(description["n"], start=description["start"])
    return MultiDiscrete(description["nvec"], start=description["start"])
