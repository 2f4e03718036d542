"""The world model as an environment: thousands of dreams at once, on its own device or as a ``VectorEnv``.

A dream begins at a real code, with what M remembers of the real codes before it. Temperature belongs to
sampling alone (Ha & Schmidhuber 2018): above 1 a dream is harder to exploit. Knows nothing of who plays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from agents.observations import as_vector
from agents.sequences import Trajectories, draw
from agents.world_model import State, WorldModel, blank
from worldvae.devices import CapturedStep
from worldvae.frames import Frames
from worldvae.vae import DiagonalGaussian, FrameVAE


@dataclass(frozen=True)
class DreamConfig:
    """What kind of dreams.

    Attributes:
        temperature: of each code's mixture.
        most_steps: after which a dream is truncated.
    """

    temperature: float = 1.0
    most_steps: int = 1000

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.most_steps < 1:
            raise ValueError(f"temperature must be > 0 and most_steps >= 1: {self}")


@dataclass(frozen=True)
class Starts:
    """Where dreams may begin: codes float32 [S, Z], and M's h and c there, each [S, H]."""

    z: Tensor
    state: State

    def __len__(self) -> int:
        return len(self.z)


@torch.no_grad()
def real_starts(
    model: WorldModel, episodes: Trajectories, context: int = 0, most: int = 10_000, seed: int = 0
) -> Starts:
    """Where dreams may begin: at most so many of the episodes' frames.

    Args:
        context: real steps before a start that M takes in; 0: starts are episodes' first frames.

    Raises:
        ValueError: a negative context, no starts asked for, or no episode is as long.
    """
    if context < 0 or most < 1:
        raise ValueError(f"context must be >= 0, and starts at least 1, got {context} and {most}")
    generator = torch.Generator(episodes.device).manual_seed(seed)
    if context:
        rows = episodes.windows(context + 1)
        rows = rows[episodes.terminated[rows[:, -2]] == 0]  # nothing follows an end
    else:
        rows = torch.from_numpy(episodes.first_rows)[:, None].to(episodes.device)
    if not len(rows):
        raise ValueError(f"no episode has {context} steps: choose a shorter context, or collect longer episodes")
    rows = rows[torch.randperm(len(rows), generator=generator, device=rows.device)[:most]]
    z = draw(DiagonalGaussian(episodes.codes.mean[rows], episodes.codes.logvar[rows]), generator)
    if not context:
        return Starts(z[:, -1], model.start(len(rows)))
    pieces = zip(z[:, :-1].split(2048), episodes.actions[rows[:, :-1]].split(2048), strict=True)
    states = [model.remember(z_t, a_t)[1] for z_t, a_t in pieces]  # all at once, their h would take gigabytes
    h, c = (torch.cat(parts) for parts in zip(*states, strict=True))
    return Starts(z[:, -1], (h, c))


class Stepper:
    """One step of M on N dreams, its frozen weights laid out for that: two matrix products, and little else.

    Biases are one more row of the weights, products are written where the last step's were, the gate that wants a
    tanh is a doubled sigmoid, so that one pass serves all four, and mixtures lie Gaussian by Gaussian, so that
    choosing among them walks along latents.
    """

    def __init__(self, model: WorldModel, temperature: float):
        config, lstm = model.config, dict(model.lstm.named_parameters())
        self.latents, self.hidden, self.mixtures = config.latent_size, config.hidden, config.mixtures
        self.rewarded, self.ending = model.reward is not None, model.termination is not None
        self.restart = config.restart
        bias = lstm["bias_ih_l0"] + lstm["bias_hh_l0"]
        gates = torch.cat([lstm["weight_ih_l0"], lstm["weight_hh_l0"], bias[:, None]], 1).detach()
        gates[2 * self.hidden : 3 * self.hidden] *= 2  # the candidate: tanh(x) = 2 sigmoid(2 x) - 1
        heads = [self._by_gaussian(model, temperature)]
        mean, sd = model.reward_moments
        offset, gain = model.termination_scale
        for head, scale, shift in ((model.reward, sd, mean), (model.termination, gain, offset)):
            if head is not None:
                heads.append(torch.cat([head.weight * scale, (head.bias * scale + shift)[:, None]], 1))
        self.gates, self.heads = gates.T.contiguous(), torch.cat(heads).detach().T.contiguous()
        self._products: dict[tuple[str, int], Tensor] = {}

    @staticmethod
    def _by_gaussian(model: WorldModel, temperature: float) -> Tensor:
        """The mixture's weights and biases at a temperature, rows in the order [3, K, Z] instead of [3, Z, K]."""
        shape = (3, model.config.latent_size, model.config.mixtures)
        weight = torch.cat([model.mixture.weight, model.mixture.bias[:, None]], 1).unflatten(0, shape).clone()
        weight[0] /= temperature
        weight[2, ..., -1] += 0.5 * math.log(temperature)
        return weight.transpose(1, 2).flatten(0, 2)

    def __call__(
        self, z_t: Tensor, a_t: Tensor, h: Tensor, c: Tensor, uniform: Tensor, normal: Tensor
    ) -> dict[str, Tensor]:
        """Codes [N, Z], actions [N, A], h and c [N, H], noise [N, Z + 1] and [N, Z] -> what follows."""
        one = torch.ones_like(c[:, :1])
        seen = [z_t, a_t, blank(c), h, one] if self.restart else [z_t, a_t, h, one]
        gates = self._product("gates", torch.cat(seen, 1), self.gates).sigmoid_()
        keep_in, keep, candidate, keep_out = gates.chunk(4, 1)
        c = (keep * c).addcmul_(keep_in, candidate, value=2).sub_(keep_in)
        h = c.tanh().mul_(keep_out)
        told = self._product("heads", torch.cat([h, one], 1), self.heads)
        mixture = told[:, : 3 * self.latents * self.mixtures]
        parts = {"z": self._drawn(mixture, uniform[:, :-1], normal), "h": h, "c": c}
        if self.rewarded:
            parts["reward"] = told[:, mixture.shape[1]].clone()
        if self.ending:
            parts["terminated"] = uniform[:, -1] < told[:, -1].sigmoid()
        return parts

    def _product(self, name: str, x: Tensor, weight: Tensor) -> Tensor:
        """x @ weight, where the last one of as many rows was: fresh memory would cost a fifth of its time.

        All are kept: a captured graph writes where it did when it was captured.
        """
        where = (name, len(x))
        if where not in self._products:
            self._products[where] = x.new_empty(len(x), weight.shape[1])
        return torch.mm(x, weight, out=self._products[where])

    def _drawn(self, mixture: Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
        """As ``Mixture.sample``: of each latent first a Gaussian, then its value [N, Z]."""
        parts = mixture.unflatten(1, (3, self.mixtures, self.latents))  # [N, 3, K, Z]
        logits, gaussians = parts[:, 0], parts[:, 1:]
        weights = (logits - logits.amax(1, keepdim=True)).exp_()
        left, chosen = weights.sum(1).mul_(uniform), gaussians[:, :, 0]
        for k in range(1, self.mixtures):
            left = left - weights[:, k - 1]
            chosen = chosen.lerp(gaussians[:, :, k], (left > 0).float()[:, None])  # where() takes three times as long
        mean, log_sd = chosen.unbind(1)
        return torch.addcmul(mean, log_sd.exp(), normal)


class Dream:
    """N dreams on the model's device, stepped together; nothing in a step is read back, nor loops over dreams.

    Attributes:
        z: float32 [N, Z], the codes now.
        state: M's h and c, each float32 [N, H].
        steps: int64 [N], since each began.
    """

    def __init__(self, model: WorldModel, starts: Starts, count: int, config: DreamConfig, seed: int = 0):
        self.starts, self.config, self.device = starts, config, model.device
        self._step = CapturedStep(Stepper(model, config.temperature), model.device)
        self.generator = torch.Generator(model.device).manual_seed(seed)
        self.begin(self.draw_starts(count))

    def __len__(self) -> int:
        return len(self.z)

    def draw_starts(self, count: int) -> Tensor:
        """int64 [count]: which starts, each as likely."""
        return torch.randint(len(self.starts), (count,), generator=self.generator, device=self.device)

    def begin(self, at: Tensor) -> None:
        """As many new dreams as there are starts (int64 [N]); those before are gone."""
        h, c = self.starts.state
        self.z, self.state = self.starts.z[at], (h[at], c[at])
        self.steps = torch.zeros(len(at), dtype=torch.int64, device=self.device)

    def seen(self, remembers: bool) -> Tensor:
        """What a controller sees: z [N, Z], or z and h [N, Z + H] where it remembers."""
        return torch.cat([self.z, self.state[0]], 1) if remembers else self.z

    def reset(self, where: Tensor) -> None:
        """Begins these dreams anew (bool [N]), each at a start drawn from all."""
        rows = where.nonzero()[:, 0]
        at, (h, c) = self.draw_starts(len(rows)), self.starts.state
        for held, start in ((self.z, self.starts.z), (self.state[0], h), (self.state[1], c)):
            held[rows] = start[at]
        self.steps[rows] = 0

    def keep(self, rows: Tensor) -> None:
        """Only these dreams go on (int64 [n])."""
        self.z, self.steps = self.z[rows], self.steps[rows]
        self.state = self.state[0][rows], self.state[1][rows]

    @torch.no_grad()
    def step(self, a_t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Actions float32 [N, A] -> rewards float32 [N], terminated and truncated bool [N]; none begins anew.

        A reward is M's expectation, or 1 where it has no such head: a step alive.
        """
        count, latents = self.z.shape
        uniform = torch.rand(count, latents + 1, generator=self.generator, device=self.device)
        normal = torch.randn(count, latents, generator=self.generator, device=self.device)
        told = self._step(self.z, a_t, *self.state, uniform, normal)
        self.z, self.state, self.steps = told["z"], (told["h"], told["c"]), self.steps + 1
        reward = told["reward"] if "reward" in told else torch.ones(count, device=self.device)
        terminated = told["terminated"] if "terminated" in told else torch.zeros_like(self.steps, dtype=torch.bool)
        return reward, terminated, self.steps >= self.config.most_steps


class DreamVectorEnv(VectorEnv):
    """Dreams as a Gymnasium ``VectorEnv``: observations are codes float32 [N, Z], as ``LatentVectorObservation``'s.

    Args:
        space: of one environment's actions, the real one's.
        codec: decodes codes for ``render``, which gives a tuple of N frames.
        autoreset_mode: any of Gymnasium's three.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(
        self,
        model: WorldModel,
        starts: Starts,
        num_envs: int,
        space: gymnasium.Space,
        config: DreamConfig | None = None,
        codec: FrameVAE | None = None,
        autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP,
    ):
        self.codec, self.mode = codec, autoreset_mode
        self.num_envs, self.single_action_space = num_envs, space
        self.action_space = batch_space(space, num_envs)
        self.single_observation_space = Box(-np.inf, np.inf, (model.config.latent_size,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.metadata = {**self.metadata, "autoreset_mode": autoreset_mode}
        self.render_mode = None if codec is None else "rgb_array"
        self.dream = Dream(model, starts, num_envs, config or DreamConfig())
        self._over = np.zeros(num_envs, bool)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begins all dreams anew, or those in ``options["reset_mask"]``. One seed serves all dreams."""
        if seed is not None:
            self.dream.generator.manual_seed(int(seed if isinstance(seed, int) else seed[0] or 0))
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        self._begin(mask)
        return self._codes(), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        if self.mode == AutoresetMode.DISABLED and self._over.any():
            raise ValueError("dreams that are over must be reset first: options={'reset_mask': ...}")
        begun = self._over.copy()  # under NEXT_STEP these only begin anew
        vectors = as_vector(np.asarray(actions), self.single_action_space)
        told = self.dream.step(torch.from_numpy(vectors).to(self.dream.z.device))
        reward, terminated, truncated = (x.cpu().numpy() for x in told)
        if begun.any():
            self._begin(begun)
            reward, terminated, truncated = (
                np.where(begun, x.dtype.type(0), x) for x in (reward, terminated, truncated)
            )
        self._over = terminated | truncated
        info: dict[str, Any] = {}
        if self.mode == AutoresetMode.SAME_STEP and self._over.any():
            final_obs = np.full(self.num_envs, None, dtype=object)
            for i, z in zip(np.flatnonzero(self._over), self._codes()[self._over], strict=True):
                final_obs[i] = z
            info = {"final_obs": final_obs, "_final_obs": self._over.copy()}
            self._begin(self._over.copy())
        return self._codes(), reward.astype(np.float64), terminated, truncated, info

    def render(self) -> tuple[Frames, ...] | None:
        """What the dreams look like now: uint8 [H, W, C] each; None without a codec."""
        return None if self.codec is None else tuple(self.codec.decode(self._codes()))

    def _begin(self, mask: NDArray[np.bool_]) -> None:
        self.dream.reset(torch.from_numpy(np.asarray(mask, bool)).to(self.dream.z.device))
        self._over[mask] = False

    def _codes(self) -> NDArray[np.float32]:
        return self.dream.z.cpu().numpy().copy()
