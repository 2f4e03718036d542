"""Several processes that train one model, started by torchrun: each learns from its part of every batch."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

ANOTHER_DIED = (
    "another process of this training died or was stopped: see what it said; "
    "the same command goes on from the last checkpoint"
)
Module = TypeVar("Module", bound=nn.Module)
PATIENCE = timedelta(hours=1)
"""How long a process waits for the others: one of them measures and writes files meanwhile."""


@dataclass(frozen=True)
class World:
    """The processes of a training: ``size`` of them, this one is number ``rank``."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process measures, logs and writes files: one does."""
        return self.rank == 0

    def part(self, batch: Tensor, dim: int = 0) -> Tensor:
        """This process's equal part of a batch that all know.

        Raises ValueError where the batch cannot be cut into equal parts.
        """
        if batch.shape[dim] % self.size:
            raise ValueError(
                f"{self.size} processes cannot share a batch of {batch.shape[dim]} equally: change its size"
            )
        return batch.tensor_split(self.size, dim)[self.rank]

    def share(self, module: Module) -> Module | DistributedDataParallel:
        """The module, its gradients averaged over all processes from now on."""
        return DistributedDataParallel(module) if self.size > 1 else module

    def mean(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Each scalar's mean over all processes, in one exchange."""
        if self.size == 1:
            return values
        together = torch.stack(list(values.values()))
        dist.all_reduce(together)
        return dict(zip(values, together / self.size, strict=True))

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


ALONE = World()


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The world that torchrun's environment variables tell of; one process without them.

    Raises:
        RuntimeError: another process died, in a sentence.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    before = signal.signal(signal.SIGTERM, _stopped)  # torchrun's, within milliseconds of another process's death
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield World(dist.get_rank(), size)
        signal.signal(signal.SIGTERM, before)
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # this process ends: what it has to say comes first
        if isinstance(error, RuntimeError) and _is_of_the_connection(error):
            raise RuntimeError(ANOTHER_DIED) from error
        raise
    finally:
        dist.destroy_process_group()


def _stopped(*_: object) -> None:
    raise RuntimeError(ANOTHER_DIED)


def _is_of_the_connection(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "closed by peer" in str(error)
