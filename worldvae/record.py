"""Stepping environments: the one loop that collecting, training agents and evaluating share.

``interact`` plays a policy in a vector environment and yields whole transitions, whichever of
Gymnasium's autoreset modes the environment has; ``record`` gathers them into episodes. Knows
nothing of files or networks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from worldvae.failures import WORKER_DIED, EnvironmentFailed, in_words
from worldvae.frames import Frames, FrameSpec, to_frames
from worldvae.policies import BehaviourPolicy
from worldvae.rollouts import Episode


@dataclass(frozen=True)
class Transitions:
    """One step of N environments.

    Attributes:
        observations_t: [N, ..]
        actions_t: [N, ..]
        rewards_tp1: float64 [N]
        terminated, truncated: bool [N]
        observations_tp1: [N, ..] the true successors: at an end the last observation, not the
            next episode's first.
        started: bool [N]; observations_t is the first of its episode.
        recorded: bool [N]; false for a transition that never happened (the dead step of NEXT_STEP
            autoreset) or that nobody asked for (an environment left without a seed).
        seeds: int [N], the seed each episode is listed under.
        env_steps: int [N], emulator steps taken.
    """

    observations_t: NDArray[Any]
    actions_t: NDArray[Any]
    rewards_tp1: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    observations_tp1: NDArray[Any]
    started: NDArray[np.bool_]
    recorded: NDArray[np.bool_]
    seeds: NDArray[np.int64]
    env_steps: NDArray[np.int64]

    @property
    def done(self) -> NDArray[np.bool_]:
        return self.terminated | self.truncated


def interact(env: VectorEnv, policy: BehaviourPolicy, seeds: Iterable[int] | None = None) -> Iterator[Transitions]:
    """Plays exactly the listed seeds, one ``reset(seed=...)`` each, and ends with the last episode.

    Every seed is played to its end, so short episodes are not favoured. In the two modes where the
    environment resets itself it also chooses its seeds after the first; they are then mere labels.
    Without ``seeds`` it never ends.

    Raises:
        RuntimeError: an observation dictionary, or a vector environment without an autoreset mode or that overwrites
            its observations.
        EnvironmentFailed: the environment raised, a worker process died, or a reward is not a finite
            float32.
    """
    mode = env.metadata.get("autoreset_mode")
    if not isinstance(mode, AutoresetMode):
        raise RuntimeError(f"{env} does not say its autoreset mode in metadata['autoreset_mode']")
    if isinstance(env.single_observation_space, gymnasium.spaces.Dict):
        raise RuntimeError(f"{env} gives dictionaries: take the image out of them (make_vector_env(key=...))")
    if getattr(env.unwrapped, "copy", True) is False:
        raise RuntimeError(f"{env} overwrites the observations that it gave: make it with copy=True")
    queue = iter(count() if seeds is None else seeds)
    n = env.num_envs
    seed_of = np.zeros(n, np.int64)
    recorded = np.zeros(n, bool)
    started = np.ones(n, bool)
    dead = np.zeros(n, bool)
    t = np.zeros(n, np.int64)

    def next_seeds(mask: NDArray[np.bool_]) -> None:
        for i in np.flatnonzero(mask):
            seed = next(queue, None)
            recorded[i] = seed is not None
            seed_of[i] = seed_of[i] if seed is None else seed

    next_seeds(started)
    with _told(env, "reset", seed_of[recorded]):
        observations_t, _ = env.reset(seed=seed_of.tolist())  # type: ignore[arg-type]
    while recorded.any():
        policy.reset(started)
        actions_t = policy.act(observations_t)
        with _told(env, "step", seed_of[recorded]):
            following, rewards, terminated, truncated, info = env.step(actions_t)
        t = np.where(started, 1, t + 1)
        _check_rewards(env, np.where(recorded & ~dead, rewards, 0), t, seed_of)
        terminated, truncated = np.asarray(terminated, bool) & ~dead, np.asarray(truncated, bool) & ~dead
        done = terminated | truncated
        yield Transitions(
            observations_t=observations_t,
            actions_t=actions_t,
            rewards_tp1=np.asarray(rewards, np.float64),
            terminated=terminated,
            truncated=truncated,
            observations_tp1=_successors(following, done, info, mode),
            started=started,
            recorded=recorded & ~dead,
            seeds=seed_of.copy(),
            env_steps=_env_steps(info, done, mode),
        )
        started = dead if mode == AutoresetMode.NEXT_STEP else done
        if started.any():
            next_seeds(started)
            if mode == AutoresetMode.DISABLED:
                mask = {"reset_mask": started.copy()}
                with _told(env, "reset", seed_of[started]):
                    following, _ = env.reset(seed=seed_of.tolist(), options=mask)  # type: ignore[arg-type]
        if mode == AutoresetMode.NEXT_STEP:
            dead = done
        observations_t = following


@contextmanager
def _told(env: VectorEnv, doing: str, seeds: NDArray[np.int64]) -> Iterator[None]:
    """Whatever ``env`` raises becomes one sentence, unless it is one."""
    try:
        yield
    except EnvironmentFailed:
        raise
    except Exception as error:
        lost = isinstance(error, EOFError | ConnectionError) and hasattr(env.unwrapped, "processes")
        why, played = WORKER_DIED if lost else in_words(error), ", ".join(map(str, seeds))
        raise EnvironmentFailed(f"{_name(env)} failed in {doing} while it played seeds {played}: {why}") from error


def _check_rewards(env: VectorEnv, rewards: NDArray[Any], t: NDArray[np.int64], seeds: NDArray[np.int64]) -> None:
    """Rewards [N] are kept as float32: one that is not finite there would poison all that learns."""
    for i in np.flatnonzero(~(np.abs(rewards) <= np.finfo(np.float32).max)):
        raise EnvironmentFailed(
            f"{_name(env)} failed in step {t[i]} of the episode of seed {seeds[i]}: "
            f"a reward is not a finite number: {rewards[i]}"
        )


def _name(env: VectorEnv) -> str:
    return env.spec.id if env.spec is not None else str(env)


def _env_steps(info: dict[str, Any], done: NDArray[np.bool_], mode: AutoresetMode) -> NDArray[np.int64]:
    """Emulator steps taken, 1 where nobody counts; SAME_STEP keeps an ended episode's in ``final_info``."""
    one = np.ones(len(done), np.int64)
    steps = np.array(info.get("env_steps", one), np.int64)
    if mode == AutoresetMode.SAME_STEP and done.any():
        steps[done] = np.asarray(info.get("final_info", {}).get("env_steps", one))[done]
    return steps


def _successors(
    following: NDArray[Any], done: NDArray[np.bool_], info: dict[str, Any], mode: AutoresetMode
) -> NDArray[Any]:
    """What really followed each action: under SAME_STEP an episode's last is in ``final_obs``."""
    if mode != AutoresetMode.SAME_STEP or not done.any():
        return following
    following = following.copy()
    following[done] = np.stack(list(info["final_obs"][done]))
    return following


def record(
    env: VectorEnv,
    policy: BehaviourPolicy,
    frame_spec: FrameSpec,
    seeds: Iterable[int],
    policy_name: str = "unknown",
) -> Iterator[Episode]:
    """Plays the listed seeds and yields each episode when it ends.

    The policy sees what the environment shows; the episode keeps frames of ``frame_spec``, made on
    another thread while the environments take their next step. Memory holds the running episodes
    alone. Raises as ``interact``; episodes that had ended before are yielded first.
    """
    running = [_Running(np.empty(0, np.uint8)) for _ in range(env.num_envs)]

    def finished(step: Transitions, frames: Future[tuple[Frames | None, Frames]]) -> Iterator[Episode]:
        frames_t, frames_tp1 = frames.result()
        for i in np.flatnonzero(step.recorded):
            if frames_t is not None and step.started[i]:
                running[i] = _Running(frames_t[i].copy())  # views would keep the other environments' frames too
            running[i].add(step, frames_tp1[i].copy(), int(i))
            if step.done[i]:
                yield running[i].finish(step, int(i), policy_name)

    with ThreadPoolExecutor(1) as thread:
        behind = failure = None
        try:
            for step in interact(env, policy, seeds):
                ahead = step, thread.submit(_frames_of, step, frame_spec)
                if behind is not None:
                    yield from finished(*behind)
                behind = ahead
        except EnvironmentFailed as error:
            failure = error
        if behind is not None:
            yield from finished(*behind)
        if failure is not None:
            raise failure


def _frames_of(step: Transitions, spec: FrameSpec) -> tuple[Frames | None, Frames]:
    """Frames before (only where an episode started) and after a step, each uint8 [N, H, W, C]."""
    before = to_frames(step.observations_t, spec) if step.started.any() else None
    return before, to_frames(step.observations_tp1, spec)


class _Running:
    """An episode that has not ended."""

    def __init__(self, first_frame: Frames):
        self.frames = [first_frame]
        self.actions: list[NDArray[Any]] = []
        self.rewards: list[float] = []
        self.env_steps = 0

    def add(self, step: Transitions, frame_tp1: Frames, i: int) -> None:
        self.frames.append(frame_tp1)
        self.actions.append(step.actions_t[i])
        self.rewards.append(float(step.rewards_tp1[i]))
        self.env_steps += int(step.env_steps[i])

    def finish(self, step: Transitions, i: int, policy_name: str) -> Episode:
        frames = np.stack(self.frames)
        visible = np.ones(len(frames), bool)
        visible[-1] = frames[-1].any() or not frames[-2].any()  # blanked at the end, not always black
        return Episode(
            frames=frames,
            actions=np.stack(self.actions),
            rewards=np.array(self.rewards, np.float32),
            visible=visible,
            terminated=bool(step.terminated[i]),
            truncated=bool(step.truncated[i]),
            seed=int(step.seeds[i]),
            policy=policy_name,
            env_steps=self.env_steps,
        )
