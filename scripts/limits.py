"""What the machine can do at most, what a codec asks of it, and timing that waits for the device: for benchmarks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from worldvae.vae import FrameVAE

CPU = torch.device("cpu")


def seconds_of(work: Callable[[], Any], rounds: int, device: torch.device = CPU) -> list[float]:
    """Of each call until the device is done, the first call not counted."""
    work()
    times = []
    for _ in range(rounds):
        synchronise(device)
        begin = time.perf_counter()
        work()
        synchronise(device)
        times.append(time.perf_counter() - begin)
    return times


def median_seconds(work: Callable[[], Any], rounds: int, device: torch.device = CPU) -> float:
    return float(np.median(seconds_of(work, rounds, device)))


def synchronise(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Limits:
    """The fastest measured: multiplying matrices (FLOP/s, in ``dtype``) and copying memory (bytes/s, both ways)."""

    flops: float
    copy: float
    dtype: torch.dtype


def limits(
    device: torch.device, dtype: torch.dtype, sizes: tuple[int, ...] = (512, 1024, 2048), rounds: int = 7
) -> Limits:
    """Measures them on matrices of these sizes, and on blocks larger than caches."""
    rates = []
    for n in sizes:
        a, b, out = torch.randn(3, n, n, device=device).to(dtype)
        rates.append(2 * n**3 / median_seconds(partial(torch.mm, a, b, out=out), rounds, device))
    source = torch.zeros(max(sizes) ** 2 * 64, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = median_seconds(partial(target.copy_, source), rounds, device)
    return Limits(max(rates), 2 * len(source) / seconds, dtype)


@dataclass(frozen=True)
class LayerCost:
    """What a layer costs for one frame going forward: multiply-adds, values read and written, and weights."""

    part: str
    multiplications: int
    values: int
    weights: int


def layer_costs(vae: FrameVAE) -> list[LayerCost]:
    """Counted from the shapes of ``vae``'s convolutions and linear layers, in order."""
    costs: list[LayerCost] = []

    def count(part: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        # Each input value of a transposed convolution meets a whole kernel; elsewhere each output value does.
        meeting = inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output
        values = inputs[0].numel() + output.numel()
        costs.append(LayerCost(part, meeting.numel() * weight[0].numel(), values, weight.numel()))

    hooks = []
    for part, network in (("encoder", vae.encoder), ("decoder", vae.decoder)):
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                hooks.append(layer.register_forward_hook(partial(count, part)))
    frame = vae.config.frame
    with torch.no_grad():
        vae(
            torch.zeros(1, frame.channels, frame.height, frame.width, device=vae.device),
            torch.zeros(1, vae.latent_size, device=vae.device),
        )
    for hook in hooks:
        hook.remove()
    return costs


def flops_per_frame(vae: FrameVAE, part: str = "") -> int:
    """Forward; training takes three times as many (gradients by inputs and by weights)."""
    return sum(2 * cost.multiplications for cost in layer_costs(vae) if cost.part.startswith(part))


def training_roofline(vae: FrameVAE, batch: int, limit: Limits) -> float:
    """The fewest seconds a step can take: each layer at the limit of arithmetic or of memory, whichever is slower.

    Backward is counted as twice forward in both; values in ``limit.dtype``; Adam reads a parameter, its
    gradient and two moments and writes three of them, in float32. Activations and losses count nothing: a
    perfect compiler fuses them.
    """
    size = torch.empty(0, dtype=limit.dtype).element_size()
    seconds = 0.0
    for cost in layer_costs(vae):
        arithmetic = 2 * cost.multiplications * batch / limit.flops
        memory = size * (cost.values * batch + cost.weights) / limit.copy
        seconds += 3 * max(arithmetic, memory)
    parameters = sum(p.numel() for p in vae.parameters())
    return seconds + 7 * 4 * parameters / limit.copy


def encoding_roofline(vae: FrameVAE, batch: int, limit: Limits) -> float:
    """The same for encoding so many frames."""
    size = torch.empty(0, dtype=limit.dtype).element_size()
    encoder = [cost for cost in layer_costs(vae) if cost.part == "encoder"]
    return sum(
        max(2 * c.multiplications * batch / limit.flops, size * (c.values * batch + c.weights) / limit.copy)
        for c in encoder
    )
