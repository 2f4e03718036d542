"""Environments as one contract: a Gymnasium ``VectorEnv`` of uint8 pixels, whoever steps it.

``make_vector_env`` hides which backend runs (Gymnasium's processes, Gymnasium in this process, or
EnvPool's threads). Every environment it makes resets only when told to (autoreset mode DISABLED,
``options={"reset_mask": ...}``), reports the emulator's steps in ``info["env_steps"]`` and nothing
else there, and tells a failure in a sentence. Knows nothing of policies or files.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from operator import itemgetter
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers import AddRenderObservation, TransformObservation
from numpy.typing import NDArray

from worldvae.failures import WORKER_DIED, Telling, Witness, in_words
from worldvae.frames import FrameSpec, to_frames

Backend = Literal["auto", "envpool", "async", "sync"]


class UnknownEnvironment(ValueError):
    """The environment cannot be made here; the message says what to install or to change."""


def make_vector_env(
    env_id: str,
    num_envs: int,
    *,
    backend: Backend = "auto",
    seed: int = 0,
    action_repeat: int = 1,
    max_episode_steps: int | None = None,
    key: str | None = None,
    frame: FrameSpec | None = None,
    env_kwargs: dict[str, Any] | None = None,
) -> VectorEnv:
    """N copies of a pixel environment behind one contract.

    Args:
        env_id: any Gymnasium id whose observations are images, hold one under ``key``, or that
            renders ``rgb_array`` (then the rendered picture is the observation).
        backend: ``auto`` takes EnvPool where it is installed and has images of the id, else processes.
        seed: EnvPool seeds at construction; the Gymnasium backends are seeded by ``reset``.
        action_repeat: each action is played so many env steps, its rewards summed.
        max_episode_steps: truncates after so many steps of the id's own environment (which may
            hide repeats) instead of its own limit.
        key: where the image lies in observations that are dictionaries; by default ``frame``'s.
        frame: what ``to_frames`` will make of the observations. Where it crops nothing, and so makes the same of
            its own frames, Gymnasium's environments make them, each in its process: no screens travel.

    Returns:
        A ``VectorEnv`` with uint8 [N, H, W, C] observations and autoreset mode DISABLED. Its
        ``reset`` and ``step`` raise ``EnvironmentFailed`` in place of what an environment raises.

    Raises:
        UnknownEnvironment: unknown id, missing extra, or observations that are not images.
    """
    if num_envs < 1 or action_repeat < 1:
        raise ValueError(f"num_envs and action_repeat must be >= 1, got {num_envs}, {action_repeat}")
    kwargs, key = dict(env_kwargs or {}), key or (frame.key if frame else None)
    if backend == "auto":
        backend = "envpool" if envpool_shows(env_id, key, kwargs) else "async"
    if backend == "envpool":
        return EnvPoolVectorEnv(env_id, num_envs, seed, action_repeat, max_episode_steps, kwargs)

    def make_one() -> gymnasium.Env:
        if multiprocessing.parent_process() is not None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's, which closes us
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        env = make_pixel_env(env_id, key, max_episode_steps, kwargs, action_repeat)
        if frame is not None and not any(frame.crop):
            env = TransformObservation(env, partial(to_frames, spec=frame), Box(0, 255, frame.shape, np.uint8))
        return Witness(env, env_id)

    one = make_one()  # an unknown id is told here, in a sentence, not inside a worker
    spec = one.spec
    one.close()
    vector_env = SyncVectorEnv if backend == "sync" else AsyncVectorEnv
    try:
        return Telling(vector_env([make_one] * num_envs, autoreset_mode=AutoresetMode.DISABLED), spec)
    except (EOFError, ConnectionError) as error:
        raise UnknownEnvironment(f"{env_id} cannot be made {num_envs} times: {WORKER_DIED}") from error


@contextmanager
def closing(env: VectorEnv) -> Iterator[VectorEnv]:
    """Closes the environment at the end; after an error or Ctrl-C without waiting for its workers,
    which may be dead, or never answer a question that was half asked."""
    try:
        yield env
    except BaseException:
        for worker in getattr(env.unwrapped, "processes", ()):
            worker.kill()
            worker.join()
            env.unwrapped.closed = True  # Gymnasium's own closing would ask the dead
        with suppress(Exception):
            env.close()
        raise
    env.close()


def make_pixel_env(
    env_id: str, key: str | None, max_episode_steps: int | None, env_kwargs: dict[str, Any], action_repeat: int = 1
) -> gymnasium.Env:
    """One Gymnasium environment whose observation is an image (or a dictionary that has one), its actions repeated."""
    try:
        env = gymnasium.make(env_id, max_episode_steps=max_episode_steps, **env_kwargs)
        renders = "rgb_array" in env.metadata.get("render_modes", ())
        rendered = key is None and renders and not is_image(env.observation_space)
        if rendered:
            env.close()
            kwargs = {**env_kwargs, "render_mode": "rgb_array"}
            env = gymnasium.make(env_id, max_episode_steps=max_episode_steps, **kwargs)
        env = ActionRepeat(env, action_repeat)
        if rendered:
            env = AddRenderObservation(env, render_only=True)  # above the repeat: drawn once each time
    except gymnasium.error.DependencyNotInstalled as error:
        raise UnknownEnvironment(f"{env_id} needs a package that is not installed: {error}") from error
    except Exception as error:
        raise UnknownEnvironment(f"Gymnasium cannot make {env_id!r}: {in_words(error)}") from error
    space = env.observation_space
    if key is not None:
        if not isinstance(space, gymnasium.spaces.Dict) or key not in space.spaces:
            env.close()
            raise UnknownEnvironment(f"{env_id}'s observations have no entry {key!r}: {space}")
        space = space[key]
        env = TransformObservation(env, itemgetter(key), space)
    if not is_image(space):
        env.close()
        raise UnknownEnvironment(f"{env_id} gives no uint8 images and renders none: {space}")
    return env


def is_image(space: gymnasium.Space) -> bool:
    """Whether the space holds uint8 [H, W] or [H, W, 1 or 3] images."""
    if not isinstance(space, Box) or space.dtype != np.uint8:
        return False
    return len(space.shape) == 2 or (len(space.shape) == 3 and space.shape[-1] in (1, 3))


class ActionRepeat(gymnasium.Wrapper):
    """Plays each action ``repeat`` env steps, sums the rewards and counts the emulator's steps.

    ``info["env_steps"]`` includes the repeats that an emulator hides (ALE's ``frameskip``). CarRacing draws a frame in
    every step, which takes nearly all of its time: here it draws those that are returned, pixel for pixel as ever. So
    does any environment whose class has an attribute ``drawn``: while it is false, ``step`` may return the frame
    before. (So where ``max_episode_steps`` cuts an action short, its last frame is a few steps old.)
    """

    def __init__(self, env: gymnasium.Env, repeat: int):
        super().__init__(env)
        self.repeat = repeat
        self.hidden_repeat = hidden_repeat(env)
        self._redraws = _draws_alone(env)
        self._game: Any = env.unwrapped if self._redraws or hasattr(env.unwrapped, "drawn") else None

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        total, steps = 0.0, 0
        terminated = truncated = False
        while steps < self.repeat and not (terminated or truncated):
            with nullcontext() if self._game is None or steps == self.repeat - 1 else _undrawn(self._game):
                observation, reward, terminated, truncated, info = self.env.step(action)
            total, steps = total + float(reward), steps + 1
        if self._redraws and steps < self.repeat:  # over before its last step
            observation = self._game.state = self._game._render("state_pixels")
        return observation, total, terminated, truncated, {**info, "env_steps": steps * self.hidden_repeat}


def _draws_alone(env: gymnasium.Env) -> bool:
    """Whether this is CarRacing, and nothing changes the frames it draws."""
    game = type(env.unwrapped)
    while isinstance(env, gymnasium.Wrapper) and not isinstance(env, gymnasium.ObservationWrapper):
        env = env.env
    return type(env) is game and (game.__module__, game.__name__) == ("gymnasium.envs.box2d.car_racing", "CarRacing")


@contextmanager
def _undrawn(game: Any) -> Iterator[None]:
    """The game's steps in here draw nothing."""
    name, value = ("drawn", False) if hasattr(game, "drawn") else ("_render", lambda mode: game.state.copy())
    setattr(game, name, value)  # over the class's own
    try:
        yield
    finally:
        delattr(game, name)


def hidden_repeat(env: gymnasium.Env | VectorEnv) -> int:
    """Emulator frames per ``step`` that the environment, or each of these, itself hides (4 for ALE/Pong-v5)."""
    kwargs = env.spec.kwargs if env.spec is not None else {}
    repeat = kwargs.get("frameskip", kwargs.get("frame_skip", 1))
    return int(max(repeat)) if isinstance(repeat, tuple | list) else int(repeat)


class EnvPoolVectorEnv(VectorEnv):
    """EnvPool behind Gymnasium's vector contract, reset only when told to.

    EnvPool is seeded at construction, environment i by ``seed + i``; ``reset(seed=...)`` cannot
    choose a track, so an evaluation on listed seeds needs a Gymnasium backend.
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        seed: int,
        action_repeat: int = 1,
        max_episode_steps: int | None = None,
        env_kwargs: dict[str, Any] | None = None,
    ):
        try:
            import envpool
        except ImportError as error:
            raise UnknownEnvironment("backend 'envpool' needs: pip install 'worldvae[fast]'") from error
        if env_id not in envpool.list_all_envs():
            raise UnknownEnvironment(f"EnvPool has no {env_id!r}; use backend 'async' or 'sync'")
        kwargs = dict(env_kwargs or {})
        if max_episode_steps is not None:
            kwargs["max_episode_steps"] = max_episode_steps
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Gymnasium warns of float64 bounds in EnvPool's spaces
            try:
                pool = envpool.make(env_id, env_type="gymnasium", num_envs=num_envs, seed=seed, **kwargs)
            except Exception as error:
                raise UnknownEnvironment(f"EnvPool cannot make {env_id!r}: {in_words(error)}") from error
            pixels, actions = pool.observation_space, pool.action_space
        self.single_observation_space = _channels_last(pixels)
        self.channels_first = self.single_observation_space.shape != pixels.shape
        if not is_image(self.single_observation_space):
            raise UnknownEnvironment(f"EnvPool's {env_id} gives no images: {pixels}")
        if isinstance(actions, Box):
            low, high = (np.broadcast_to(b, actions.shape).astype(np.float32) for b in (actions.low, actions.high))
            actions = Box(low, high, dtype=np.float32)
        self.single_action_space = actions
        self.num_envs = num_envs
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(actions, num_envs)
        self.spec = EnvSpec(env_id, kwargs={"frame_skip": getattr(pool.spec.config, "frame_skip", 1)})
        self._pool = pool
        self._repeat = action_repeat
        self._hidden_repeat = hidden_repeat(self)
        self._pixels: NDArray[np.uint8] = np.zeros((num_envs, *self.single_observation_space.shape), np.uint8)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Starts new episodes where ``options["reset_mask"]`` says so (everywhere without it)."""
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        which = np.flatnonzero(mask).astype(np.int32)
        pixels, info = self._pool.reset(which)
        self._put(info["env_id"], pixels)
        return self._pixels.copy(), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Steps all environments; one that ends during an action repeat waits for its reset."""
        rewards = np.zeros(self.num_envs, np.float64)
        terminated, truncated = np.zeros((2, self.num_envs), bool)
        steps = np.zeros(self.num_envs, np.int64)
        running = np.arange(self.num_envs, dtype=np.int32)
        actions = np.asarray(actions, self.single_action_space.dtype)
        for _ in range(self._repeat):
            pixels, reward, ended, cut, info = self._pool.step(actions[running], running)
            which = info["env_id"]
            rewards[which] += reward
            terminated[which], truncated[which] = ended, cut & ~ended
            steps[which] += self._hidden_repeat
            last_pixels = pixels
            self._put(which, last_pixels)
            running = which[~(ended | cut)].astype(np.int32)
            if len(running) == 0:
                break
        return self._pixels.copy(), rewards, terminated, truncated, {"env_steps": steps}

    def close_extras(self, **kwargs: Any) -> None:
        self._pool.close()

    def _put(self, which: NDArray[np.int32], pixels: NDArray[np.uint8]) -> None:
        self._pixels[which] = np.moveaxis(pixels, 1, -1) if self.channels_first else pixels


class CutWithoutReward(VectorWrapper):
    """Truncates an episode after ``patience`` env steps without a positive reward.

    A learner's time is not spent on a car that stands in the grass; to the critic it is a time
    limit, not an end. Only for environments that reset when told to.
    """

    def __init__(self, env: VectorEnv, patience: int):
        super().__init__(env)
        if env.metadata.get("autoreset_mode") != AutoresetMode.DISABLED:
            raise ValueError("CutWithoutReward needs an environment with autoreset mode DISABLED")
        self.patience = patience
        self._idle = np.zeros(self.num_envs, np.int64)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._idle[(options or {}).get("reset_mask", slice(None))] = 0
        return self.env.reset(seed=seed, options=options)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        observations, rewards, terminated, truncated, info = self.env.step(actions)
        self._idle = np.where(rewards > 0, 0, self._idle + info["env_steps"])
        truncated = truncated | (~terminated & (self._idle >= self.patience))
        return observations, rewards, terminated, truncated, info


def envpool_shows(env_id: str, key: str | None, env_kwargs: dict[str, Any]) -> bool:
    """Whether EnvPool is installed, knows the id, and gives the images that Gymnasium's has by default there."""
    if key is not None or env_kwargs or importlib.util.find_spec("envpool") is None:
        return False
    import envpool

    if env_id not in envpool.list_all_envs():
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Gymnasium warns of float64 bounds in EnvPool's spaces
        space = envpool.make_spec(env_id).gymnasium_observation_space
    return isinstance(space, Box) and is_image(_channels_last(space))


def _channels_last(space: Box) -> Box:
    """EnvPool's images, [C, H, W] or [H, W, C], as [H, W, C]."""
    if len(space.shape) != 3 or space.shape[-1] in (1, 3):
        return space
    return Box(0, 255, (*space.shape[1:], space.shape[0]), space.dtype.type)
