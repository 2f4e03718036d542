"""Where the arithmetic runs and how: device, precision, whole steps as CUDA graphs, sentences when it cannot."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

OUT_OF_MEMORY = ("not enough memory", "can't allocate memory")
"""How the CPU's allocator says it."""


def pick_device(name: str) -> torch.device:
    """``auto`` is a GPU where there is one; under torchrun each process gets its own.

    Raises ValueError with a sentence where there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: no CUDA device here; use --device cpu")
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices here, from cuda:0 on")
    return device


def autocast(device: torch.device) -> torch.autocast:
    """Multiplications in the device's ``precision``, sums and losses in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision(device) == torch.bfloat16)


def precision(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it natively, float32 elsewhere."""
    return torch.bfloat16 if _multiplies_bf16(device) else torch.float32


@cache
def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
        if not native:
            name = torch.cuda.get_device_name(device)
            warnings.warn(f"{name} has no bfloat16: training in float32, slower", stacklevel=3)
        return native
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # what torch knows to ask
    return any(getattr(torch.cpu, name, bool)() for name in asked)


@contextlib.contextmanager
def out_of_memory_in_words(remedy: str) -> Iterator[None]:
    """Turns the allocator's failure into one sentence that names what to lower."""
    try:
        yield
    except RuntimeError as error:
        on_gpu = isinstance(error, torch.cuda.OutOfMemoryError)
        if not on_gpu and not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        raise RuntimeError(f"out of {'GPU ' if on_gpu else ''}memory: {remedy}") from error


class CapturedStep:
    """A training step that becomes one CUDA graph: no launch overhead, no Python between its kernels.

    The first calls of each batch shape run as they are (they are real steps, and warm everything up); the
    next is captured, and replayed from then on. ``step`` must be all on the device, draw no random
    numbers and synchronise nothing; its optimiser must be ``capturable``. Elsewhere than on a GPU it
    stays a plain call.
    """

    WARM_UP = 3

    def __init__(self, step: Callable[..., dict[str, Tensor]], device: torch.device):
        self._step, self._on_gpu = step, device.type == "cuda"
        self._calls: dict[Any, int] = {}
        self._graphs: dict[Any, tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], dict[str, Tensor]]] = {}

    def __call__(self, *inputs: Tensor) -> dict[str, Tensor]:
        """As ``step``, on tensors whose shapes may change from call to call."""
        if not self._on_gpu:
            return self._step(*inputs)
        shapes = tuple(x.shape for x in inputs)
        self._calls[shapes] = self._calls.get(shapes, 0) + 1
        if self._calls[shapes] <= self.WARM_UP:
            return self._on_side_stream(*inputs)
        if shapes not in self._graphs:
            self._graphs[shapes] = self._captured(*inputs)
        graph, static, outputs = self._graphs[shapes]
        for held, new in zip(static, inputs, strict=True):
            held.copy_(new)
        graph.replay()
        return {name: value.clone() for name, value in outputs.items()}  # the next replay writes over them

    def _on_side_stream(self, *inputs: Tensor) -> dict[str, Tensor]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            outputs = self._step(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        return outputs

    def _captured(self, *inputs: Tensor) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], dict[str, Tensor]]:
        graph, static = torch.cuda.CUDAGraph(), tuple(x.clone() for x in inputs)
        with torch.cuda.graph(graph):
            outputs = self._step(*static)
        return graph, static, outputs


@contextlib.contextmanager
def on_threads(count: int) -> Iterator[None]:
    """PyTorch on so many threads meanwhile. For a few frames at a time 1 is best: more take the environments' cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
