"""The latent dynamics model M: what follows from codes and actions, as a mixture density (MDN-RNN).

z_t, a_t, h_t -> a mixture over z_tp1 and, if asked for, the reward and whether the episode ends
there. World Models (Ha & Schmidhuber 2018), after Graves 2013 and Bishop 1994. Knows nothing of
pixels, files of episodes or training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldvae.checkpoint import CheckpointError, load_model, save_model

KIND = "world-model"
State = tuple[Tensor, Tensor]
"""The LSTM's h and c, each float32 [B, H]: all that it remembers."""


@dataclass(frozen=True)
class WorldModelConfig:
    """What M is built of.

    Attributes:
        latent_size: Z of its codec.
        action_size: A, numbers per action (one-hot where discrete).
        hidden: H, width of the LSTM.
        mixtures: K, Gaussians per latent.
        reward, termination: whether it predicts them too.
        restart: one more input, 1 where nothing is remembered yet and 0 after, as published for Doom.
    """

    latent_size: int
    action_size: int
    hidden: int = 256
    mixtures: int = 5
    reward: bool = False
    termination: bool = False
    restart: bool = False

    def __post_init__(self) -> None:
        if min(self.latent_size, self.action_size, self.hidden, self.mixtures) < 1:
            raise ValueError(f"a world model's sizes must be >= 1: {self}")


@dataclass(frozen=True)
class Mixture:
    """K Gaussians for each latent, independent of the other latents'.

    Attributes:
        logits, mean, log_sd: float [.., Z, K]
    """

    logits: Tensor
    mean: Tensor
    log_sd: Tensor

    def log_prob(self, z: Tensor) -> Tensor:
        """log density of z [.., Z], in nats per latent [.., Z]."""
        standard = (z.unsqueeze(-1) - self.mean) * (-self.log_sd).exp()
        log_weights = self.logits - self.logits.logsumexp(-1, keepdim=True)  # log_softmax is slow over so few
        joint = torch.addcmul(log_weights - self.log_sd, standard, standard, value=-0.5)
        return joint.logsumexp(-1) - 0.5 * math.log(2 * math.pi)

    def expectation(self) -> Tensor:
        """The mean of each latent [.., Z], in closed form."""
        return (self.logits.softmax(-1) * self.mean).sum(-1)

    def variance(self) -> Tensor:
        """The variance of each latent [.., Z]: within the Gaussians and between them."""
        between = (self.mean - self.expectation().unsqueeze(-1)).square()
        return (self.logits.softmax(-1) * ((2 * self.log_sd).exp() + between)).sum(-1)

    def sample(self, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """A draw [.., Z] at logits / temperature and sd * sqrt(temperature).

        Above 1 the dream is less certain than the model, below 1 more; training knows no temperature.

        Raises:
            ValueError: a temperature of 0 or less.
        """
        if temperature <= 0:
            raise ValueError(f"temperature must be > 0, got {temperature}; expectation() is the limit without noise")
        device = self.logits.device
        uniform = torch.rand(self.logits.shape, generator=generator, device=device)
        gumbel = -(-uniform.clamp(min=1e-20).log()).log()  # the largest logit + Gumbel noise is a draw of the softmax
        chosen = (self.logits / temperature + gumbel).argmax(-1, keepdim=True)
        mean, log_sd = (t.gather(-1, chosen).squeeze(-1) for t in (self.mean, self.log_sd))
        noise = torch.randn(mean.shape, generator=generator, device=device)
        return mean + log_sd.exp() * math.sqrt(temperature) * noise


@dataclass(frozen=True)
class Prediction:
    """What M expects of a step.

    Attributes:
        z_tp1: mixture over the next code.
        reward_tp1: float32 [..], its expectation; None without that head.
        termination: float32 [..], the logit that the episode ends there, calibrated; None without that head.
    """

    z_tp1: Mixture
    reward_tp1: Tensor | None
    termination: Tensor | None


def blank(c: Tensor) -> Tensor:
    """float32 [B, 1]: 1 where the LSTM's c [B, H] is as in the beginning (after a step nothing is exactly 0)."""
    return (c[:, :1] == 0).to(c.dtype)


class WorldModel(nn.Module):
    """An LSTM over (z_t, a_t) with a mixture density on top.

    With Z 32, A 3, H 256, K 5 and no further heads it has 423,392 parameters: the published 422,368
    and PyTorch's second bias vector of 4 H. For Doom (Z 64, A 1, H 512, K 5, restart, termination):
    1,680,833, the published 1,678,785 and the second bias.
    """

    reward_moments: Tensor
    termination_scale: Tensor

    def __init__(self, config: WorldModelConfig):
        super().__init__()
        self.config = config
        inputs = config.latent_size + config.action_size + config.restart
        self.lstm = nn.LSTM(inputs, config.hidden, batch_first=True)
        self.mixture = nn.Linear(config.hidden, 3 * config.latent_size * config.mixtures)
        self.reward = nn.Linear(config.hidden, 1) if config.reward else None
        self.termination = nn.Linear(config.hidden, 1) if config.termination else None
        self.register_buffer("reward_moments", torch.tensor([0.0, 1.0]))  # mean and sd, from the training data
        self.register_buffer("termination_scale", torch.tensor([0.0, 1.0]))  # shift and gain of its logit
        self.sha256 = ""

    @property
    def device(self) -> torch.device:
        return self.reward_moments.device

    def start(self, batch: int) -> State:
        """h_0 = 0 and c_0 = 0 of so many episodes."""
        zeros = torch.zeros(batch, self.config.hidden, device=self.device)
        return zeros, zeros.clone()

    def forward(self, z_t: Tensor, a_t: Tensor, state: State | None = None) -> tuple[Prediction, State]:
        """Predicts every step of sequences that begin in ``state`` (by default at h_0 = 0).

        Args:
            z_t: float32 [B, T, Z]
            a_t: float32 [B, T, A]

        Returns:
            Predictions with leading shape [B, T], float32 under autocast too, and the last state.
        """
        h_tp1, state = self.remember(z_t, a_t, state)
        return self.predict(h_tp1), state

    def remember(self, z_t: Tensor, a_t: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """The first half of ``forward``: h after each step, float [B, T, H], and the last state."""
        h, c = self.start(len(z_t)) if state is None else state
        seen = [z_t, a_t]
        if self.config.restart:
            seen.append(functional.pad(blank(c)[:, None], (0, 0, 0, z_t.shape[1] - 1)))
        with torch.autocast("cuda", enabled=False):  # there cuDNN's LSTM would be float16, whatever was asked for
            h_tp1, (h, c) = self.lstm(torch.cat(seen, -1), (h[None], c[None]))
        return h_tp1, (h[0].float(), c[0].float())

    def predict(self, h_tp1: Tensor) -> Prediction:
        """The second half: what h [.., H], which has seen z_t and a_t, says of the step."""
        shape = (*h_tp1.shape[:-1], self.config.latent_size, self.config.mixtures)
        logits, mean, log_sd = (part.reshape(shape) for part in self.mixture(h_tp1).float().chunk(3, -1))
        reward = None
        if self.reward is not None:
            reward = self.reward_moments[0] + self.reward_moments[1] * self.reward(h_tp1).float().squeeze(-1)
        termination = None
        if self.termination is not None:
            shift, gain = self.termination_scale
            termination = shift + gain * self.termination(h_tp1).float().squeeze(-1)
        return Prediction(Mixture(logits, mean, log_sd), reward, termination)

    @torch.no_grad()
    def advance(self, z_t: Tensor, a_t: Tensor, state: State) -> State:
        """One step: z_t [B, Z], a_t [B, A] and the state before them -> the state after."""
        seen = [z_t, a_t, blank(state[1])] if self.config.restart else [z_t, a_t]
        return torch.lstm_cell(torch.cat(seen, -1), state, *self.lstm.all_weights[0])  # a sequence of one takes 4 times

    @torch.no_grad()
    def imagine(
        self,
        context: Tensor,
        actions: Tensor,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Dreams on from real codes, open loop: each draw is what the next step starts from.

        Args:
            context: float32 [B, C, Z], real codes z_0 .. z_{C-1}.
            actions: float32 [B, C - 1 + S, A] from a_0 on, S of them beyond the context.

        Returns:
            float32 [B, S, Z]: z_C .. z_{C+S-1}

        Raises:
            ValueError: no code to start from, or no action beyond the context.
        """
        known = context.shape[1]
        if not 1 <= known <= actions.shape[1]:
            raise ValueError(f"a dream needs codes and an action after them, got {known} and {actions.shape[1]}")
        state = self.remember(context[:, :-1], actions[:, : known - 1])[1] if known > 1 else self.start(len(context))
        z, dreamt = context[:, -1], []
        for t in range(known - 1, actions.shape[1]):
            state = self.advance(z, actions[:, t], state)
            z = self.predict(state[0]).z_tp1.sample(generator, temperature)
            dreamt.append(z)
        return torch.stack(dreamt, 1)

    def save(self, folder: str | Path, codec_sha256: str, training: Mapping[str, Any] | None = None) -> None:
        """Writes ``model.safetensors`` and ``config.json``, tied to the codec by its hash."""
        described = {"config": asdict(self.config), "codec_sha256": codec_sha256, "training": dict(training or {})}
        save_model(Path(folder), KIND, self, described)

    @classmethod
    def load(cls, folder: str | Path, codec_sha256: str, device: str | torch.device = "cpu") -> WorldModel:
        """Reads what ``save`` wrote.

        Raises:
            CheckpointError: as ``FrameVAE.load``, or it was trained on another codec's latents.
        """
        tensors, header = load_model(Path(folder), KIND)
        try:
            model = cls(WorldModelConfig(**header["config"]))
            model.load_state_dict(tensors)
            trained_on = header["codec_sha256"]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{folder} holds no world model this version can build: {error}") from error
        if trained_on != codec_sha256:
            raise CheckpointError(
                f"{folder} was trained on codec {trained_on[:12]}, this one is {codec_sha256[:12]}: train it again"
            )
        model.sha256 = header["sha256"]
        return model.to(device).eval()
