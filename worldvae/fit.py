"""One training loop for everything: the VAE, latent dynamics, agents.

``fit`` calls ``step`` on batches, writes metrics and checkpoints, shows progress, and can be
interrupted and resumed to the same result. What a step does and what a state holds is the
caller's; this module knows nothing of models.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from worldvae.checkpoint import load_tree, save_tree

Batch = TypeVar("Batch")
Metrics = dict[str, float]


class State(Protocol):
    """All that training changes: ``state_dict`` is a tree of tensors and JSON values."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class FitConfig:
    """When to log, to checkpoint and to stop.

    Attributes:
        steps: how many steps there are.
        log_every, checkpoint_every: in steps.
        seconds: stop earlier after so much training (such a run is not reproducible to the byte).
    """

    steps: int
    log_every: int = 100
    checkpoint_every: int = 1000
    seconds: float | None = None


def fit(
    step: Callable[[Batch], dict[str, Tensor]],
    batches: Callable[[int], Iterator[Batch]],
    state: State,
    config: FitConfig,
    folder: Path,
    *,
    name: str = "training",
    observe: Callable[[], Metrics] | None = None,
) -> list[Metrics]:
    """Trains until ``config.steps``, going on from ``folder``'s checkpoint if there is one.

    Args:
        step: learns from one batch, returns scalar tensors (read only when logged: no sync).
        batches: from a step number to the batches from there on.
        folder: gets ``metrics.jsonl``, TensorBoard events where installed, and the checkpoint.
        observe: more numbers for each log entry, such as a held-out measurement.

    Returns:
        The log: one dictionary an entry, each with ``step`` and ``seconds``.

    Raises:
        FloatingPointError: the loss is no longer finite.
        KeyboardInterrupt: after a checkpoint was written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, log = folder / "training.safetensors", _Log(folder)
    done, elapsed = 0, 0.0
    if checkpoint.exists():
        saved = load_tree(checkpoint)
        done, elapsed = saved["step"], saved["seconds"]
        state.load_state_dict(saved["state"])
    log.keep_until(done)
    begin = time.monotonic() - elapsed

    def save(at: int) -> None:
        save_tree(checkpoint, {"step": at, "seconds": time.monotonic() - begin, "state": state.state_dict()})

    sums: dict[str, Tensor] = {}
    since = done
    stream = batches(done) if done < config.steps else iter(())
    bar = tqdm(total=config.steps, initial=done, desc=name, unit="step", dynamic_ncols=True, mininterval=1)
    finished = done >= config.steps
    try:
        while not finished:
            for key, value in step(next(stream)).items():
                sums[key] = sums[key] + value if key in sums else value
            done += 1
            bar.update()
            finished = done == config.steps or _out_of_time(config, begin)
            if done % config.log_every == 0 or finished:
                means = {key: (total / (done - since)).item() for key, total in sums.items()}
                _check_finite(means, done)
                seconds = time.monotonic() - begin
                entry = {"step": done, "seconds": seconds, **means, **(observe() if observe else {})}
                log.add(entry)
                bar.set_postfix({key: f"{value:.4g}" for key, value in entry.items() if key not in ("step", "seconds")})
                sums, since = {}, done
            if done % config.checkpoint_every == 0:
                save(done)
    except KeyboardInterrupt:
        save(done)
        bar.write(f"interrupted at step {done}; the same command goes on from there")
        raise
    finally:
        bar.close()
        log.close()
    save(done)
    return log.entries


def load_optimiser(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restores an optimiser; its moments get their parameter's memory layout back.

    Files keep tensors contiguous, but fused optimisers walk parameter and moments in memory order:
    beside channels-last weights a contiguous moment would silently belong to another weight.
    """
    optimiser.load_state_dict(state)
    for parameter, moments in optimiser.state.items():
        for name, value in moments.items():
            if value.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter).copy_(value)


def pick_device(name: str) -> torch.device:
    """``auto`` is a GPU where there is one. Raises ValueError with a sentence where there is none."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: no CUDA device here; use --device cpu")
    return torch.device(name)


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 where the hardware multiplies it natively, float32 elsewhere."""
    if device.type == "cuda":
        enabled = torch.cuda.is_bf16_supported()
    else:
        native = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # what torch knows to ask
        enabled = any(getattr(torch.cpu, name, bool)() for name in native)
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def _out_of_time(config: FitConfig, begin: float) -> bool:
    return config.seconds is not None and time.monotonic() - begin > config.seconds


def _check_finite(means: Metrics, step: int) -> None:
    broken = [key for key, value in means.items() if value != value or abs(value) == float("inf")]
    if broken:
        raise FloatingPointError(
            f"{', '.join(broken)} is no longer finite at step {step}: lower the learning rate; "
            "the last checkpoint is from before"
        )


class _Log:
    """metrics.jsonl, and TensorBoard events where tensorboard is installed."""

    def __init__(self, folder: Path):
        self.path = folder / "metrics.jsonl"
        self.entries: list[Metrics] = []
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._board = None
        else:
            self._board = SummaryWriter(str(folder))

    def keep_until(self, step: int) -> None:
        """Drops what was logged after the checkpoint: it is about to be lived again."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                break  # a killed writer's last line
            if entry["step"] <= step:
                self.entries.append(entry)
        self.path.write_text("".join(json.dumps(entry) + "\n" for entry in self.entries))

    def add(self, entry: Metrics) -> None:
        self.entries.append(entry)
        with open(self.path, "a") as file:
            file.write(json.dumps(entry) + "\n")
        if self._board is not None:
            for key, value in entry.items():
                self._board.add_scalar(key, value, int(entry["step"]))

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
