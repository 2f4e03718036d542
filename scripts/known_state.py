"""What is known of each frame of a store: from a file, or by playing its episodes again.

An episode of a deterministic environment is its seed and actions: Gymnasium plays it again, and the state that
no frame shows is read from the environment itself. The frames must come out as recorded, so episodes of another
renderer (EnvPool's) or version are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from worldvae.checkpoint import CheckpointError
from worldvae.clips import Clips, clips
from worldvae.environments import make_pixel_env
from worldvae.frames import FrameSpec, to_frames
from worldvae.rollouts import Episode, RolloutStore

AHEAD = 10
"""Tiles of CarRacing's track over which its curve is summed: 35 units, as far as a frame shows."""


NEAR = 15.0
"""Units off the middle of the track (itself 13 wide) up to which a frame, 60 wide, surely shows it."""


def car_racing(env: gymnasium.Env) -> dict[str, float]:
    """Speed (units/s), the front wheels' angle and, where the track is near enough to be seen: how far right of
    its middle the car is (units), its angle to the track and the track's curve ahead (radians, left is positive)."""
    game: Any = env.unwrapped
    car, track = game.car, np.array(game.track)  # rows: angle on the circle, heading, x, y
    position = np.array(car.hull.position)
    nearest = int(np.square(track[:, 2:] - position).sum(1).argmin())
    heading, ahead = track[nearest, 1], track[(nearest + AHEAD) % len(track), 1]
    right = (position - track[nearest, 2:]) @ (np.cos(heading), np.sin(heading))  # it runs along (-sin, cos)
    seen = abs(right) < NEAR
    return {
        "speed": float(np.linalg.norm(car.hull.linearVelocity)),
        "steering": float(car.wheels[0].joint.angle),
        "off centre": float(right) if seen else np.nan,
        "angle to track": _turned(car.hull.angle - heading) if seen else np.nan,
        "curve ahead": _turned(ahead - heading) if seen else np.nan,
    }


READERS: dict[str, Callable[[gymnasium.Env], dict[str, float]]] = {"CarRacing-v3": car_racing}
"""Environment id -> what can be read of its state after a step."""


def _turned(angle: float) -> float:
    """The same angle within -pi..pi."""
    return float((angle + np.pi) % (2 * np.pi) - np.pi)


def replayed(store: RolloutStore, most: int) -> tuple[Clips, dict[str, NDArray[np.float64]]]:
    """At most so many frames of episodes that can be played again, and their state, name -> float64 [B].

    Raises:
        ValueError: nobody wrote down how to read this environment's state, or no episode comes out as recorded.
    """
    env_id = store.manifest["env_id"]
    if env_id not in READERS:
        raise ValueError(f"no reader of {env_id}'s state (there are: {', '.join(READERS)}): give it by --state FILE")
    env = make_pixel_env(
        env_id, store.frame_spec.key, None, store.manifest["env_kwargs"], store.manifest["action_repeat"]
    )
    begins = [i for i, e in enumerate(store) if _same(e, 0, env.reset(seed=e.seed)[0], store.frame_spec)]
    if not begins:
        raise ValueError(f"no episode of {store.path} comes out as recorded: Gymnasium draws {env_id} differently now")
    seen = clips(store, begins, most)
    told: dict[str, list[float]] = {}
    for run in seen.runs:
        for name, values in _played_again(env, store, int(seen.episode[run][0]), seen.t[run].tolist()).items():
            told.setdefault(name, []).extend(values)
    env.close()
    return seen, {name: np.array(values) for name, values in told.items()}


def _played_again(env: gymnasium.Env, store: RolloutStore, i: int, times: list[int]) -> dict[str, list[float]]:
    """The state at some times of one episode, NaN from where its frames come out differently."""
    episode, read = store[i], READERS[store.manifest["env_id"]]
    told: dict[str, list[float]] = {}
    observation, _ = env.reset(seed=episode.seed)
    matches = True
    for t in range(times[-1] + 1):
        if t:
            observation, *_ = env.step(episode.actions[t - 1])
        if t in times:
            matches = matches and _same(episode, t, observation, store.frame_spec)
            for name, value in read(env).items():
                told.setdefault(name, []).append(value if matches else np.nan)
    return told


def _same(episode: Episode, t: int, observation: Any, spec: FrameSpec) -> bool:
    return np.array_equal(to_frames(observation, spec), episode.frames[t])


def from_file(path: Path, store: RolloutStore, seen: Clips) -> tuple[dict[str, NDArray[Any]], NDArray[np.bool_] | None]:
    """State of each frame of clips, name -> [B], and the objects' pixels bool [B, H, W] where the file has them.

    Args:
        path: safetensors with, for all frames of the store's episodes end to end, one number a name, and
            perhaps ``mask`` [frames, H, W].

    Raises:
        CheckpointError: it cannot be read. ValueError: not of as many frames as the store has.
    """
    try:
        arrays = safetensors.numpy.load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read the known state in {path}: {error}") from error
    lengths = [store.header(i)["length"] + 1 for i in range(len(store))]
    wrong = {name: len(values) for name, values in arrays.items() if len(values) != sum(lengths)}
    if wrong:
        raise ValueError(f"{path} must hold a row for each of the store's {sum(lengths)} frames, not {wrong}")
    rows = np.cumsum([0, *lengths])[seen.episode] + seen.t
    states = {name: values[rows] for name, values in arrays.items()}
    mask = states.pop("mask", None)
    return states, None if mask is None else mask.astype(bool)
