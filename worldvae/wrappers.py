"""Environments whose observations are latents: for any agent that takes a vector.

An observation is the posterior mean unless a sample is asked for; the codec never learns here.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from worldvae.frames import to_frames
from worldvae.record import successors
from worldvae.vae import FrameVAE


class LatentObservation(gymnasium.ObservationWrapper, RecordConstructorArgs):
    """An environment seen through a codec: ``Box(Z,) float32``.

    Args:
        env: observations are images (or dictionaries holding one under the codec's key); for an
            environment that only renders, wrap it in Gymnasium's ``AddRenderObservation`` first.
        vae: any trained codec, on any device.
        sample: observe a draw from the posterior instead of its mean, seeded by ``reset``.
        keep_frame: put the codec's frame, uint8 [H, W, C], into ``info["frame"]``.
    """

    def __init__(self, env: gymnasium.Env, vae: FrameVAE, *, sample: bool = False, keep_frame: bool = False):
        RecordConstructorArgs.__init__(self, _disable_deepcopy=True, vae=vae, sample=sample, keep_frame=keep_frame)
        gymnasium.ObservationWrapper.__init__(self, env)
        self.observation_space = latent_space(vae)
        self._codec = _Codec(vae, sample)
        self._keep_frame = keep_frame

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        self._codec.seed(seed)
        observation, info = self.env.reset(seed=seed, options=options)
        return self.observation(observation), self._with_frame(info, observation)

    def step(self, action: Any) -> tuple[NDArray[np.float32], Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self.observation(observation), reward, terminated, truncated, self._with_frame(info, observation)

    def observation(self, observation: Any) -> NDArray[np.float32]:
        """One image -> float32 [Z]."""
        return self._codec(observation)

    def _with_frame(self, info: dict[str, Any], observation: Any) -> dict[str, Any]:
        return {**info, "frame": self._codec.frames(observation)} if self._keep_frame else info


class LatentVectorObservation(VectorWrapper):
    """A vector environment seen through a codec: float32 [N, Z], one batched encode a step.

    Handles all three autoreset modes: under SAME_STEP the images in ``info["final_obs"]`` are
    encoded too. Arguments as in ``LatentObservation``; ``info["frame"]`` is uint8 [N, H, W, C].
    """

    def __init__(self, env: VectorEnv, vae: FrameVAE, *, sample: bool = False, keep_frame: bool = False):
        super().__init__(env)
        self.single_observation_space = latent_space(vae)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self._codec = _Codec(vae, sample)
        self._keep_frame = keep_frame
        self._latents = np.zeros((env.num_envs, vae.latent_size), np.float32)

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        self._codec.seed(seed if isinstance(seed, int) else None)
        mask = np.array((options or {}).get("reset_mask", np.ones(self.num_envs, bool)))
        observations, info = self.env.reset(seed=seed, options=options)
        self._latents[mask] = self._codec(observations[mask])  # the others show what they showed before
        return self._latents.copy(), self._with_frame(info, observations)

    def step(self, actions: Any) -> tuple[NDArray[np.float32], Any, Any, Any, dict[str, Any]]:
        observations, rewards, terminated, truncated, info = self.env.step(actions)
        done = np.asarray(terminated) | np.asarray(truncated)
        if self.env.metadata.get("autoreset_mode") == AutoresetMode.SAME_STEP and done.any():
            last = successors(observations, done, info, AutoresetMode.SAME_STEP)[done]
            final_obs = np.full(self.num_envs, None, dtype=object)
            both = self._codec(np.concatenate([observations, last]))
            self._latents = both[: self.num_envs]
            for i, z in zip(np.flatnonzero(done), both[self.num_envs :], strict=True):
                final_obs[i] = z
            info = {**info, "final_obs": final_obs}
        else:
            self._latents = self._codec(observations)
        return self._latents.copy(), rewards, terminated, truncated, self._with_frame(info, observations)

    def _with_frame(self, info: dict[str, Any], observations: Any) -> dict[str, Any]:
        return {**info, "frame": self._codec.frames(observations)} if self._keep_frame else info


def latent_space(vae: FrameVAE) -> Box:
    """Box(Z,) float32, unbounded: a Gaussian code has no limits."""
    return Box(-np.inf, np.inf, (vae.latent_size,), np.float32)


class _Codec:
    """Raw pixels -> codes as numpy: what both wrappers share."""

    def __init__(self, vae: FrameVAE, sample: bool):
        self._vae = vae
        self._sample = sample
        self._generator = torch.Generator().manual_seed(0)

    def seed(self, seed: int | None) -> None:
        if seed is not None:
            self._generator.manual_seed(seed)

    def frames(self, pixels: Any) -> NDArray[np.uint8]:
        return to_frames(pixels, self._vae.config.frame)

    def __call__(self, pixels: Any) -> NDArray[np.float32]:
        posterior = self._vae.encode(self.frames(pixels))
        z = posterior.sample(self._generator) if self._sample else posterior.mean
        return z.cpu().numpy()
