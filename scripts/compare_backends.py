"""EnvPool's CarRacing-v3 beside Gymnasium's: do frames, rewards and physics agree?

They share no tracks, so distributions are compared: over replayed actions, and over laps of a
driver that sees pixels alone.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from scripts import cli
from worldvae.checkpoint import write_record
from worldvae.environments import Backend, make_vector_env
from worldvae.frames import Frames, FrameSpec, to_frames
from worldvae.record import record
from worldvae.rollouts import Episode

BACKENDS: dict[str, Backend] = {"gymnasium": "async", "envpool": "envpool"}
Drive = Callable[[int, Frames], tuple[float, float, float]]  # env step, pixels -> steering, gas, brake


class Alone:
    """A ``BehaviourPolicy`` that drives each environment by itself."""

    def __init__(self, env: VectorEnv, drive: Drive):
        self._drive, self._t = drive, np.zeros(env.num_envs, np.int64)

    def reset(self, mask: NDArray[np.bool_]) -> None:
        self._t[mask] = 0

    def act(self, observations: Frames) -> NDArray[np.float32]:
        self._t += 1
        return np.array([self._drive(int(t) - 1, o) for t, o in zip(self._t, observations, strict=True)], np.float32)


def follow_road(t: int, pixels: Frames) -> tuple[float, float, float]:
    """Steers to the middle of the grey ahead at up to 70 units/s, slower where it bends."""
    if t < 50:  # the camera still zooms in
        return 0, 0.3 if t < 35 else 0.05, 0
    centres = [47.5]
    for row in pixels[[62, 56, 50, 44]].astype(int):
        grey = (np.ptp(row, -1) < 12) & (abs(row[:, 0] - 107) < 23)
        near = np.flatnonzero(grey & (abs(np.arange(96) - centres[-1]) < 20))
        centres.append(float(near.mean()) if len(near) > 3 else centres[-1])
    steering = float(np.clip((np.mean(centres[1:]) - 47.5) / 20, -1, 1))
    speed, limit = speed_bar(pixels), 70 * (1 - 0.6 * min(1, abs(centres[-1] - 47.5) / 32))
    return steering, 0.4 if speed < limit else 0, 0.3 if speed > limit + 15 else 0


def speed_bar(frames: Frames) -> float:
    """Mean speed in units/s by the dashboard's white bar, in whole pixels of 21 as EnvPool draws it."""
    return float((frames[..., 84:94, 13, :].mean(-1) > 127).sum(-1).mean()) / 0.048


DRIVES: dict[str, tuple[int, Drive]] = {  # env steps at most, and who drives
    "gas, brake": (140, lambda t, _: (0, t < 80, t >= 80)),
    "steer": (150, lambda t, _: (0.5 * (t >= 50), 0.5 if t < 50 else 0.1, 0)),
    "leave": (600, lambda t, _: (0, 0.2, 0)),
    "laps": (1500, follow_road),
}


def measure(episode: Episode) -> dict[str, float]:
    """What can be compared of an episode with raw pixels as frames."""
    inside = episode.rewards[episode.rewards > -50] + 0.1  # leaving the playfield costs 100
    tile = float(inside[inside > 0.5].min())
    tiles, seen = np.cumsum(inside) / tile, episode.frames[60::10]
    small = to_frames(seen, FrameSpec(crop=(0, 12, 0, 0)))
    return {
        "tiles in the track": 1000 / tile,
        **{f"tiles by step {t}": tiles[min(t, len(tiles)) - 1] for t in (1, 50, 100, 140)},
        "rewards of 100 steps": float(episode.rewards[:100].sum()),
        "reward without a tile": float(np.median(inside[inside < 0.5])) - 0.1,
        "last reward": float(episode.rewards[-1]),
        "return": float(episode.rewards.sum()),
        "length": len(episode),
        "terminated": episode.terminated,
        "speed as the bar is drawn": speed_bar(episode.frames[:140]),
        "frame: distinct colours (antialiasing)": float(
            np.mean([len(np.unique(f[:84].reshape(-1, 3), axis=0)) for f in seen])
        ),
        "frame: % black (tyre marks)": 100 * float((seen[:, :84].max(-1) < 30).mean()),
        **{
            f"frame: mean {name}, 64x64": float(small[..., i].mean()) for i, name in enumerate(("red", "green", "blue"))
        },
        "frame: sd of pixels, 64x64": float(small.std()),
    }


def play(name: str, drive: str, seeds: range) -> list[Episode]:
    """One episode a seed, in their order, with raw pixels as frames."""
    steps, act = DRIVES[drive]
    n = len(seeds) if name == "envpool" else min(len(seeds), 4)
    env = make_vector_env("CarRacing-v3", n, backend=BACKENDS[name], seed=seeds[0], max_episode_steps=steps)
    episodes = list(record(env, Alone(env, act), FrameSpec(96, 96), seeds))
    env.close()
    return sorted(episodes, key=lambda episode: episode.seed)


def colours(episodes: list[Episode]) -> dict[str, float]:
    """The eight commonest colours above the dashboard and their shares."""
    pixels = np.concatenate([episode.frames[60::40, :84].reshape(-1, 3) for episode in episodes])
    shown, counts = np.unique(pixels, axis=0, return_counts=True)
    return {str(shown[i]): round(counts[i] / len(pixels), 4) for i in counts.argsort()[:-9:-1]}


def main(seed: int = 0, episodes: int = 8, out: Path = Path("benchmarks/backends.json")) -> None:
    """Compare EnvPool's CarRacing-v3 with Gymnasium's on so many episodes of each drive."""
    if episodes < 2:
        raise ValueError("--episodes must be at least 2: a difference is judged by how episodes scatter")
    rows: list[tuple[Any, ...]] = [("drive: measure", "gymnasium", "sd", "envpool", "sd", "verdict")]
    for drive in DRIVES:  # the laps come last: frames are judged on them
        played = {name: play(name, drive, range(seed, seed + episodes)) for name in BACKENDS}
        ours, theirs = ([measure(e) for e in played[name]] for name in BACKENDS)
        for what in (w for w in ours[0] if drive == "laps" or not w.startswith("frame")):
            a, b = (np.array([numbers[what] for numbers in side], float) for side in (ours, theirs))
            differs = abs(a.mean() - b.mean()) > max(4 * np.hypot(a.std(), b.std()) / episodes**0.5, 1e-3)
            numbers = (round(float(x), 4) for x in (a.mean(), a.std(), b.mean(), b.std()))
            rows.append((f"{drive}: {what}", *numbers, "differs" if differs else "agrees"))
    print(cli.table(rows))
    shown = {name: colours(played[name]) for name in BACKENDS}
    for name, shares in shown.items():
        print(f"{name} shows: " + ", ".join(f"{colour} {share:.1%}" for colour, share in shares.items()))
    tracks = [[round(numbers["tiles in the track"]) for numbers in side] for side in (ours, theirs)]
    print(f"tiles in the tracks of the same seeds: {tracks[0]} and {tracks[1]}")
    print("differing by more than 4 standard errors: " + "; ".join(row[0] for row in rows if row[-1] == "differs"))
    versions = [f"{name} {version(name)}" for name in BACKENDS]
    write_record(out, {**cli.provenance(), "versions": versions, "tracks": tracks, "colours": shown, "rows": rows})


if __name__ == "__main__":
    cli.run(main)
