"""Environments whose observations are latents: for any agent that takes a vector.

An observation is the posterior mean unless a sample is asked for; the codec never learns here.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Dict
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from worldvae.environments import is_image
from worldvae.frames import Frames, to_frames
from worldvae.vae import FrameVAE


class LatentObservation(gymnasium.ObservationWrapper, RecordConstructorArgs):
    """An environment seen through a codec: ``Box(Z,) float32``.

    Args:
        env: observations are images (or dictionaries holding one under the codec's key); for an
            environment that only renders, wrap it in Gymnasium's ``AddRenderObservation`` first.
        vae: any trained codec, on any device.
        sample: observe a draw from the posterior instead of its mean, seeded by ``reset``.
        keep_frame: put the environment's own observation into ``info["frame"]``.

    Raises:
        ValueError: observations that are no uint8 images [H, W] or [H, W, 1 or 3].
    """

    def __init__(self, env: gymnasium.Env, vae: FrameVAE, *, sample: bool = False, keep_frame: bool = False):
        RecordConstructorArgs.__init__(self, _disable_deepcopy=True, vae=vae, sample=sample, keep_frame=keep_frame)
        gymnasium.ObservationWrapper.__init__(self, env)
        _check_images(env.observation_space, vae)
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
        return self._codec.encode(self._codec.frames(observation))

    def _with_frame(self, info: dict[str, Any], observation: Any) -> dict[str, Any]:
        return {**info, "frame": observation} if self._keep_frame else info


class LatentVectorObservation(VectorWrapper):
    """A vector environment seen through a codec: float32 [N, Z], one batched encode a step.

    Handles all three autoreset modes: under SAME_STEP the images in ``info["final_obs"]`` are
    encoded too. Arguments as in ``LatentObservation``.
    """

    def __init__(self, env: VectorEnv, vae: FrameVAE, *, sample: bool = False, keep_frame: bool = False):
        super().__init__(env)
        _check_images(env.single_observation_space, vae)
        self.single_observation_space = latent_space(vae)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self._codec = _Codec(vae, sample)
        self._keep_frame = keep_frame
        self._latents = np.zeros((env.num_envs, vae.latent_size), np.float32)

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        mask = np.array((options or {}).get("reset_mask", np.ones(self.num_envs, bool)))
        if mask.all():
            self._codec.seed(seed if seed is None or isinstance(seed, int) else seed[0])
        observations, info = self.env.reset(seed=seed, options=options)
        fresh = self._codec.frames(observations)[mask]  # the others show what they showed before
        self._latents[mask] = self._codec.encode(fresh)
        return self._latents.copy(), self._with_frame(info, observations)

    def step(self, actions: Any) -> tuple[NDArray[np.float32], Any, Any, Any, dict[str, Any]]:
        observations, rewards, terminated, truncated, info = self.env.step(actions)
        frames = self._codec.frames(observations)
        ended = np.flatnonzero(np.asarray(terminated) | np.asarray(truncated))
        if self.env.metadata.get("autoreset_mode") == AutoresetMode.SAME_STEP and len(ended):
            last = [self._codec.frames(info["final_obs"][i]) for i in ended]
            codes = self._codec.encode(np.concatenate([frames, np.stack(last)]))
            final_obs = np.full(self.num_envs, None, dtype=object)
            for i, z in zip(ended, codes[self.num_envs :], strict=True):
                final_obs[i] = z
            info = {**info, "final_obs": final_obs}
        else:
            codes = self._codec.encode(frames)
        self._latents = codes[: self.num_envs]
        return self._latents.copy(), rewards, terminated, truncated, self._with_frame(info, observations)

    def _with_frame(self, info: dict[str, Any], observations: Any) -> dict[str, Any]:
        return {**info, "frame": observations} if self._keep_frame else info


def latent_space(vae: FrameVAE) -> Box:
    """Box(Z,) float32, unbounded: a Gaussian code has no limits."""
    return Box(-np.inf, np.inf, (vae.latent_size,), np.float32)


def _check_images(space: gymnasium.Space, vae: FrameVAE) -> None:
    key = vae.config.frame.key
    seen = space.spaces.get(key or "") if isinstance(space, Dict) else space
    if seen is None or not is_image(seen):
        raise ValueError(f"no uint8 images [H, W] or [H, W, 1 or 3]{f' under {key!r}' if key else ''} in {space}")


class _Codec:
    """Raw pixels -> codes as numpy: what both wrappers share."""

    def __init__(self, vae: FrameVAE, sample: bool):
        self._vae = vae
        self._sample = sample
        self._generator = torch.Generator().manual_seed(0)

    def seed(self, seed: int | None) -> None:
        if seed is not None:
            self._generator.manual_seed(seed)

    def frames(self, pixels: Any) -> Frames:
        return to_frames(pixels, self._vae.config.frame)

    def encode(self, frames: Frames) -> NDArray[np.float32]:
        posterior = self._vae.encode(frames)
        z = posterior.sample(self._generator) if self._sample else posterior.mean
        return z.cpu().numpy()
