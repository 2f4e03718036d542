"""How far is training and encoding on this device from what it could do at most?

First the loop as a reimplementer would write it: eager, float32, frames from the host, a loss read every
step. Then each of our steps switched on in turn, on the same network and batch, and the project's learner
itself. Beside each the roofline: every layer's arithmetic and memory at the measured limits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scripts import cli
from scripts.limits import Limits, encoding_roofline, limits, median_seconds, training_roofline
from scripts.pipeline import FINE
from worldvae.checkpoint import write_record
from worldvae.devices import CapturedStep, autocast, pick_device, precision
from worldvae.frames import to_unit
from worldvae.objective import negative_elbo
from worldvae.training import VAELearner, VAETrainingConfig
from worldvae.vae import Architecture, FrameVAE, FrameVAEConfig


@dataclass(frozen=True)
class Switches:
    """What is done beyond the plain loop, in the order in which it is switched on."""

    resident: bool = False
    no_sync: bool = False
    channels_last: bool = False
    bf16: bool = False
    fused: bool = False
    graph: bool = False
    compiled: bool = False

    @classmethod
    def ladder(cls) -> list[tuple[str, Switches]]:
        """From the plain loop to all of it, each with the name of what came last."""
        steps, on = [("plain: eager float32", cls())], {}
        for field in fields(cls):
            on[field.name] = True
            steps.append((f"+ {field.name.replace('_', ' ')}", cls(**on)))
        return steps


class Loop:
    """A training loop over ``frames`` uint8 [B, H, W, C] on the host, with what is switched on."""

    def __init__(self, on: Switches, architecture: Architecture, frames: Tensor, batch: int, device: torch.device):
        torch.manual_seed(0)
        self.on, self.batch, self.device = on, batch, device
        vae = FrameVAE(FrameVAEConfig(architecture=architecture))
        if not on.channels_last:
            vae = torch.nn.Module.to(vae, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.vae = vae.to(device)
        self._network = torch.compile(self.vae) if on.compiled else self.vae
        capturable = on.graph and device.type == "cuda"
        self.optimiser = torch.optim.Adam(self.vae.parameters(), 1e-3, fused=on.fused, capturable=capturable)
        self.frames = frames.to(device) if on.resident else frames
        self._learn: Callable[..., dict[str, Tensor]] = CapturedStep(self._step, device) if on.graph else self._step

    def __call__(self) -> None:
        rows = torch.randint(len(self.frames), (self.batch,), device=self.frames.device)
        frames = self.frames.index_select(0, rows).to(self.device)
        noise = torch.randn(self.batch, self.vae.latent_size, device=self.device)
        parts = self._learn(frames, noise)
        if not self.on.no_sync:
            parts["loss"].item()

    def _step(self, frames: Tensor, noise: Tensor) -> dict[str, Tensor]:
        images = to_unit(frames)
        if not self.on.channels_last:
            images = images.contiguous()
        with autocast(self.device) if self.on.bf16 else torch.autocast(self.device.type, enabled=False):
            reconstruction, posterior = self._network(images, noise)
        loss, parts = negative_elbo(reconstruction, images, posterior, FINE)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return parts


@dataclass(frozen=True)
class Setting:
    """How much is measured: batch sizes, timed steps, frames there are, frames encoded at once, and whether with a
    compiler too."""

    batches: tuple[int, ...] = (32, 1024)
    steps: int = 50
    rounds: int = 5
    frames: int = 65_536
    encode: tuple[int, ...] = (1, 256, 4096, 65_536)
    sizes: tuple[int, ...] = (2048, 4096, 8192)
    compile: bool = True


TINY = Setting(batches=(4,), steps=1, rounds=1, frames=8, encode=(1, 4), sizes=(64,))


def frames_per_second(step: Callable[[], Any], batch: int, setting: Setting, device: torch.device) -> float:
    """Median over rounds of so many steps each; what is captured or compiled is so before."""

    def steps() -> None:
        for _ in range(setting.steps):
            step()

    for _ in range(CapturedStep.WARM_UP + 1):
        step()
    return setting.steps * batch / median_seconds(steps, setting.rounds, device)


def peak_memory_mib(device: torch.device) -> float | None:
    """Since it was last asked."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated(device) / 2**20
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def training(architecture: Architecture, frames: Tensor, device: torch.device, setting: Setting, limit: Limits) -> Any:
    """Rows of the ladder and of the project's learner, by batch."""
    rows = []
    for batch in setting.batches:
        floor = training_roofline(FrameVAE(FrameVAEConfig(architecture=architecture)), batch, limit)
        work: list[tuple[str, Callable[[], Callable[[], Any]]]] = [
            (name, partial(Loop, on, architecture, frames, batch, device))
            for name, on in Switches.ladder()
            if setting.compile or not on.compiled
        ]
        base = VAETrainingConfig(
            optimiser="adam", learning_rate=1e-3, objective=FINE, batch_size=batch, device=str(device)
        )
        for name, config in (
            ("the project's learner", base),
            ("the project's learner, Muon", replace(base, optimiser="muon")),
            ("the project's learner, compiled", replace(base, compile=True)),
        ):
            if setting.compile or not config.compile:
                work.append((name, partial(_learner_step, config, architecture, frames)))
        for name, make in work:
            peak_memory_mib(device)
            rate = frames_per_second(make(), batch, setting, device)
            of_roofline = rate * floor / batch
            row = {"name": name, "batch": batch, "frames_per_second": rate, "of_roofline": of_roofline}
            rows.append({**row, "peak_memory_mib": peak_memory_mib(device)})
            print(f"{architecture} {name}, batch {batch}: {rate:,.0f} frames/s, {of_roofline:.1%} of the roofline")
    return rows


def _learner_step(config: VAETrainingConfig, architecture: Architecture, frames: Tensor) -> Callable[[], Any]:
    learner = VAELearner(config, FrameVAEConfig(architecture=architecture), steps=10**6)
    resident = frames.to(learner.device)

    def step() -> None:
        rows = torch.randint(len(resident), (config.batch_size,), device=learner.device)
        learner.step(resident.index_select(0, rows))

    return step


def encoding(architecture: Architecture, frames: Tensor, device: torch.device, setting: Setting, limit: Limits) -> Any:
    """Frames/s by batch of frames on the device: as ``encode`` is, and with bfloat16 and a compiler too."""
    vae = FrameVAE(FrameVAEConfig(architecture=architecture)).to(device).eval()
    compiled = torch.compile(vae.posterior)

    @torch.no_grad()
    def all_on(some: Tensor) -> Any:
        with autocast(device):
            return compiled(to_unit(some))

    def in_bf16(some: Tensor) -> Any:
        with autocast(device):
            return vae.encode(some)

    rows = []
    resident = frames.to(device)
    for batch in setting.encode:
        some = resident[:batch]
        floor = encoding_roofline(vae, batch, limit)
        for name, work in (("encode", vae.encode), ("+ bf16", in_bf16), ("+ compiled", all_on)):
            if name == "+ compiled" and not setting.compile:
                continue
            rate = batch / median_seconds(partial(work, some), setting.rounds * 4, device)
            rows.append({"name": name, "batch": batch, "frames_per_second": rate, "of_roofline": rate * floor / batch})
            print(f"{architecture} {name}, {batch} frames: {rate:,.0f} frames/s, {rows[-1]['of_roofline']:.1%}")
    return rows


def agreement(architecture: Architecture, frames: Tensor, device: torch.device) -> dict[str, float]:
    """One step's loss and gradient beside float64 on the CPU: relative errors (gradient: of its L2 norm)."""
    torch.manual_seed(0)
    reference = FrameVAE(FrameVAEConfig(architecture=architecture)).double()
    noise = torch.randn(len(frames), reference.latent_size, dtype=torch.float64)
    exact_loss, exact = _loss_and_gradient(
        reference, to_unit(frames).double(), noise, torch.autocast("cpu", enabled=False)
    )
    told = {}
    for name, cast in (("float32", torch.autocast(device.type, enabled=False)), ("as trained", autocast(device))):
        vae = FrameVAE(FrameVAEConfig(architecture=architecture))
        vae.load_state_dict(reference.state_dict())
        images = to_unit(frames.to(device))
        loss, gradient = _loss_and_gradient(vae.to(device), images, noise.float().to(device), cast)
        told[f"{name}: loss"] = abs(loss / exact_loss - 1)
        told[f"{name}: gradient"] = float((gradient - exact).norm() / exact.norm())
    return told


def _loss_and_gradient(vae: FrameVAE, images: Tensor, noise: Tensor, cast: torch.autocast) -> tuple[float, Tensor]:
    with cast:
        mean, logvar = vae.encoder(images)
        reconstruction = vae.decoder(mean + (logvar / 2).exp() * noise)
    error = (reconstruction.to(images.dtype) - images).square().sum() / (2 * float(FINE.sigma) ** 2)
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum()
    loss = (error + kl.to(error.dtype)) / len(images)
    loss.backward()
    gradient = torch.cat([p.grad.flatten().double().cpu() for p in vae.parameters() if p.grad is not None])
    return loss.item(), gradient


def main(
    device: str = "cuda",
    tiny: bool = False,
    compile: bool = True,
    architectures: tuple[Architecture, ...] = ("compact", "paper"),
    out: Path = Path("benchmarks/gpu.json"),
) -> None:
    """Measure training and encoding on a GPU beside the plain loop and the roofline.

    Args:
        tiny: a few frames and steps, to see that everything runs.
        device: cuda, or cpu to try the script.
        compile: with torch.compile too, which takes minutes.
    """
    where, setting = pick_device(device), replace(TINY if tiny else Setting(), compile=compile)
    limit = limits(where, precision(where), setting.sizes)
    frames = torch.randint(0, 256, (setting.frames, 64, 64, 3), dtype=torch.uint8)
    told: dict[str, Any] = {"limits": {**asdict(limit), "dtype": str(limit.dtype)}}
    for architecture in architectures:
        told[architecture] = {
            "training": training(architecture, frames, where, setting, limit),
            "encoding": encoding(architecture, frames, where, setting, limit),
            "relative_error_to_float64": agreement(architecture, frames[:64], where),
        }
        print(told[architecture]["relative_error_to_float64"])
    write_record(out, {**told, "setting": asdict(setting), **cli.provenance()})


if __name__ == "__main__":
    cli.run(main)
