"""Environments that tell where their small objects are: rollouts with ground truth, without downloads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import safetensors.numpy

from worldvae.checkpoint import write_atomically
from worldvae.environments import UnknownEnvironment
from worldvae.frames import Frames, FrameSpec, to_frames
from worldvae.measures.objects import Points
from worldvae.rollouts import Episode, RolloutStore


@dataclass(frozen=True)
class Source:
    """An environment and its small object.

    Attributes:
        env: its name in results.
        object: what the object is.
        make: the environment.
        locate: (environment, info) -> the objects' middles on its screen, float [n, 2]: x and y in pixels.
        episodes: that are played at random, or at times by ``player``.
        passes: of training, the same for all objectives.
        most_steps: of an episode.
        action_repeat: env steps a frame.
        player: environment -> action, where random play alone leaves much of the screen unseen.
    """

    env: str
    object: str
    make: Callable[[], gymnasium.Env]
    locate: Callable[[gymnasium.Env, dict[str, Any]], Any]
    episodes: int
    passes: float = 4.0
    most_steps: int = 1000
    action_repeat: int = 1
    player: Callable[[gymnasium.Env], Any] | None = None


PLAYED = 0.6
"""Share of the steps that a source's player takes."""


def atari(game: str) -> gymnasium.Env:
    try:
        import ale_py
    except ImportError as error:
        raise UnknownEnvironment(f"{game} needs: pip install 'worldvae[atari]'") from error
    gymnasium.register_envs(ale_py)
    return gymnasium.make(f"ALE/{game}-v5")


def ram(env: gymnasium.Env) -> Any:
    return env.unwrapped.ale.getRAM()  # type: ignore[attr-defined]


def ball(env: gymnasium.Env, x: int, y: int, left: int, top: int, last: int) -> list[tuple[float, float]]:
    """The Atari ball, 2 pixels wide and 4 high, from two bytes of RAM; it is away at 0 and beyond ``last``."""
    told = ram(env)
    return [(float(told[x]) + left + 1, float(told[y]) + top + 2)] if 0 < told[y] <= last else []


def returns_the_ball(env: gymnasium.Env) -> int:
    """Pong's action that brings the paddle's middle to the ball's height: random play seldom sends balls back."""
    below = int(ram(env)[54]) - int(ram(env)[51]) - 7
    return 0 if abs(below) < 3 else 3 if below > 0 else 2


def take_cover() -> gymnasium.Env:
    return gymnasium.make("agents.takecover:TakeCover-v0", objects=True)


def dots() -> gymnasium.Env:
    return gymnasium.make("tests.moving_dots:tests/MovingDots-v0")


def told(env: gymnasium.Env, info: dict[str, Any]) -> Any:
    return info["objects"]


SOURCES = {
    "pong": Source(
        "ALE/Pong-v5",
        "ball",
        lambda: atari("Pong"),
        lambda e, _: ball(e, 49, 54, -49, -14, 255),
        episodes=60,
        most_steps=800,
        action_repeat=4,
        player=returns_the_ball,
    ),
    "breakout": Source(
        "ALE/Breakout-v5",
        "ball",
        lambda: atari("Breakout"),
        lambda e, _: ball(e, 99, 101, -49, 9, 179),
        episodes=40,
        most_steps=200,
        action_repeat=4,
    ),
    "takecover": Source("TakeCover", "fireball", take_cover, told, episodes=1800),
    "dots": Source("MovingDots", "dot", dots, told, episodes=40, most_steps=100),
}


def scenes(source: Source, spec: FrameSpec, seed: int) -> Iterator[tuple[Episode, list[Points]]]:
    """Episodes of random play, at times the player's, and the objects in each of their T + 1 frames."""
    env, random = source.make(), np.random.default_rng(seed)
    height, width = env.observation_space.shape[:2]  # type: ignore[index]
    scale = np.array([spec.width / width, spec.height / height])

    def seen(observation: Any, info: dict[str, Any]) -> tuple[Frames, Points]:
        middles = np.array(source.locate(env, info), np.float32).reshape(-1, 2) * scale
        return to_frames(observation, spec), middles.astype(np.float32)

    for episode_seed in range(10_000 * seed, 10_000 * seed + source.episodes):
        shown = [seen(*env.reset(seed=episode_seed))]
        actions: list[Any] = []
        rewards: list[float] = []
        env.action_space.seed(int(random.integers(2**31)))
        ends = (False, False)
        while not any(ends) and len(rewards) < source.most_steps:
            play = source.player if random.random() < PLAYED else None
            actions.append(play(env) if play else env.action_space.sample())
            observation, reward, *ends, info = env.step(actions[-1])  # type: ignore[assignment]
            shown.append(seen(observation, info))
            rewards.append(float(reward))
        frames = np.stack([frame for frame, _ in shown])
        visible = np.ones(len(frames), bool)
        visible[-1] = frames[-1].any()
        episode = Episode(
            frames,
            np.array(actions),
            np.array(rewards, np.float32),
            visible,
            terminated=ends[0],
            truncated=not ends[0],
            seed=episode_seed,
            policy="random" if source.player is None else f"{source.player.__name__} at {PLAYED:.0%} of the steps",
            env_steps=source.action_repeat * len(rewards),
        )
        yield episode, [points for _, points in shown]
    env.close()


def collect(source: Source, folder: Path, seed: int) -> tuple[RolloutStore, list[list[Points]]]:
    """The source's rollouts in ``folder`` and, of each episode, the objects in its visible frames.

    Collects what is not there yet.
    """
    spec = FrameSpec()
    if not (folder / "objects.safetensors").exists():
        env = source.make()
        store = RolloutStore.create(folder, env_id=source.env, frame_spec=spec, action_space=env.action_space)
        env.close()
        objects: dict[str, Any] = {}
        for i, (episode, points) in enumerate(scenes(source, spec, seed)):
            if i >= len(store):
                store.append(episode)
            objects[f"points {i}"] = np.concatenate(points)
            objects[f"counts {i}"] = np.array([len(p) for p in points])
        write_atomically(folder / "objects.safetensors", safetensors.numpy.save(objects))
    store = RolloutStore(folder)
    told = safetensors.numpy.load_file(folder / "objects.safetensors")
    split = [np.split(told[f"points {i}"], np.cumsum(told[f"counts {i}"])[:-1]) for i in range(len(store))]
    return store, [[p for p, v in zip(points, store[i].visible, strict=True) if v] for i, points in enumerate(split)]
