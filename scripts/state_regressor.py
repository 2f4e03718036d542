"""Features for comparing sets of frames: a small network that was trained to read the known state off a frame.

Its features keep what the state is made of, on frames like its training's, and little else. Distances between
them are 'in state-regressor features', and comparable between codecs judged by the same one alone.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from scripts.frame_sets import FrameSet, States
from worldvae.checkpoint import CheckpointError, load_model, save_model
from worldvae.frames import Frames, FrameSpec, to_unit
from worldvae.measures.samples import Features
from worldvae.networks import CompactEncoder
from worldvae.training import rising_then_falling

KIND = "state-regressor"
FEATURES = 64


class StateRegressor(nn.Module):
    """Frames -> features -> standardised states."""

    mean: Tensor
    sd: Tensor

    def __init__(self, frame: FrameSpec, states: int):
        super().__init__()
        self.encoder = CompactEncoder(frame, FEATURES)
        self.head = nn.Linear(FEATURES, states)
        self.register_buffer("mean", torch.zeros(states))
        self.register_buffer("sd", torch.ones(states))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """float [B, C, H, W] -> features float [B, 64], standardised states float [B, S]."""
        features = nn.functional.silu(self.encoder(images)[0])
        return features, self.head(features)

    @torch.no_grad()
    def read(self, frames: Frames) -> tuple[Features, States]:
        """Frames uint8 [B, H, W, C] -> features float32 [B, 64], states float32 [B, S]."""
        told = [self(to_unit(chunk)) for chunk in torch.from_numpy(np.ascontiguousarray(frames)).split(256)]
        features, states = (torch.cat(part) for part in zip(*told, strict=True))
        return features.numpy(), (states * self.sd + self.mean).numpy()


def fitted_regressor(known: FrameSet, folder: Path, steps: int = 3000, batch_size: int = 64) -> StateRegressor:
    """The regressor in ``folder``, trained first where there is none.

    Raises:
        CheckpointError: that one was trained for another number of steps, or is damaged.
    """
    torch.manual_seed(0)
    model = StateRegressor(known.spec, known.train_states.shape[1])
    if not (folder / "model.safetensors").exists():
        _fit(model, known, steps, batch_size)
        save_model(folder, KIND, model, {"config": {"frame": asdict(known.spec), "steps": steps}})
    tensors, header = load_model(folder, KIND)
    if header["config"]["steps"] != steps:
        raise CheckpointError(
            f"{folder} was trained for {header['config']['steps']} steps, not {steps}: choose another"
        )
    model.load_state_dict(tensors)
    return model.requires_grad_(False).eval()


def _fit(model: StateRegressor, known: FrameSet, steps: int, batch_size: int) -> None:
    frames, states = torch.from_numpy(known.train), torch.from_numpy(known.train_states)
    model.mean.copy_(states.mean(0))
    model.sd.copy_(states.std(0).clamp(min=1e-3))
    states = (states - model.mean) / model.sd
    optimiser = torch.optim.Adam(model.parameters(), 3e-3, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rising_then_falling(step, steps, 100))
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = torch.randint(len(frames), (batch_size,), generator=generator)
        error = (model(to_unit(frames[chosen]))[1] - states[chosen]).square().mean()
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        schedule.step()


def r_squared(model: StateRegressor, frames: Frames, states: States) -> list[float]:
    """Of each known state, on frames it was not fitted to: 1 is exact, 0 the mean."""
    _, read = model.read(frames)
    left = np.square(read - states).mean(0) / np.maximum(states.var(0), 1e-9)
    return [round(float(1 - share), 4) for share in left]
