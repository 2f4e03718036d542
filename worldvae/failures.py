"""What an environment raised, in one sentence that leaves its worker process.

Gymnasium would send the exception itself: some cannot be pickled, and then it waits forever.
"""

from __future__ import annotations

import traceback
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv, VectorWrapper

WORKER_DIED = "a worker process died (killed, or out of memory?)"


class EnvironmentFailed(RuntimeError):
    """An environment raised, died or paid no number; the message says which, where and why."""


def in_words(error: BaseException) -> str:
    """An exception's type and text on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


class Witness(gymnasium.Wrapper):
    """Puts what the environment raises into ``info["failed"]``: words leave a worker process, some
    exceptions cannot (nor some infos: ``env_steps`` alone is let out)."""

    def __init__(self, env: gymnasium.Env, env_id: str):
        super().__init__(env)
        self._id = env_id
        self._nothing = np.zeros(env.observation_space.shape or (), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._seed, self._t = seed, 0
        try:
            return self._checked(self.env.reset(seed=seed, options=options)[0]), {}
        except (Exception, SystemExit) as error:
            return self._nothing, self._failed("reset", error)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._t += 1
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
            return self._checked(observation), reward, terminated, truncated, {"env_steps": info["env_steps"]}
        except (Exception, SystemExit) as error:
            return self._nothing, 0.0, False, True, self._failed(f"step {self._t}", error)

    def _checked(self, observation: Any) -> Any:
        if np.shape(observation) != self._nothing.shape:
            raise ValueError(f"an observation of {np.shape(observation)} where its space says {self._nothing.shape}")
        return observation

    def _failed(self, doing: str, error: BaseException) -> dict[str, Any]:
        words = f"{self._id} failed in {doing} of the episode of seed {self._seed}: {in_words(error)}"
        return {"failed": words, "traceback": traceback.format_exc()}


class Telling(VectorWrapper):
    """Raises what a ``Witness`` saw as ``EnvironmentFailed``, its traceback as a note."""

    def __init__(self, env: VectorEnv, spec: EnvSpec | None):
        super().__init__(env)
        env.spec = spec  # Gymnasium leaves it out

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self._told(self.env.reset(seed=seed, options=options))

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        return self._told(self.env.step(actions))

    def _told(self, results: Any) -> Any:
        info = results[-1]
        for i in np.flatnonzero(info.get("_failed", ())):
            failure = EnvironmentFailed(info["failed"][i])
            failure.add_note(info["traceback"][i])
            raise failure
        return results
