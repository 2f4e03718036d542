"""Numbered episodes on disk, whatever they hold: one safetensors file each, with its checksum.

A finished episode is there whole or not at all, whenever the writer dies; readers verify its
checksum when they first touch it, and a damaged file never takes the others with it. Rollouts and
latents are such folders with a manifest; this knows nothing of what either means.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import safe_open

from worldvae.checkpoint import UNREADABLE, CheckpointError, write_atomically

Tensors = dict[str, NDArray[Any]]
MAPPED_FROM = 1 << 20
"""Bytes from which on a tensor is a view of its file; smaller ones are copied, as mappings are counted."""


class DamagedEpisode(CheckpointError):
    """An episode's file is not what was written; the message names it."""


@dataclass(frozen=True)
class EpisodeFolder:
    """Numbered safetensors files with checksums: what rollouts and latents share on disk."""

    path: Path
    _verified: set[int] = field(default_factory=set, compare=False, repr=False)

    def indices(self) -> list[int]:
        """The numbers of the episodes that are there, ascending."""
        matches = (re.fullmatch(r"episode-(\d+)\.safetensors", p.name) for p in self.path.iterdir())
        return sorted(int(m.group(1)) for m in matches if m)

    def file(self, index: int) -> Path:
        return self.path / f"episode-{index:06d}.safetensors"

    def write(self, index: int, tensors: Tensors, header: Mapping[str, Any]) -> None:
        """Writes one episode atomically, its checksum in the header."""
        contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        sealed_header = {
            "header": dict(header),
            "header_checksum": _checksum({}, header),
            "checksum": _checksum(contiguous, header),
        }
        metadata = {"worldvae": json.dumps(sealed_header)}  # one entry: safetensors orders several at random
        write_atomically(self.file(index), safetensors.numpy.save(contiguous, metadata))

    def header(self, index: int) -> dict[str, Any]:
        """The header alone, without reading tensors."""
        return self._open(index, names=())[1]

    def checksum(self, index: int) -> str:
        """What the episode was sealed with, without reading tensors."""
        with self._opened(index) as (_, told):
            return str(told["checksum"])

    def read(self, index: int, names: Sequence[str] | None = None) -> tuple[Tensors, dict[str, Any]]:
        """Some or all tensors and the header; the checksum is verified at the first touch.

        Large tensors are views of the file, read from disk as they are looked at; what is written to
        them stays in this process.
        """
        if index not in self._verified:
            tensors, header = self._open(index, names=None)
            self._verified.add(index)
            return {n: t for n, t in tensors.items() if names is None or n in names}, header
        return self._open(index, names)

    def peek(self, index: int, name: str) -> NDArray[Any]:
        """One tensor, unverified and without reading the others. Raises DamagedEpisode where it is not there."""
        return self._open(index, (name,))[0][name]

    def _open(self, index: int, names: Sequence[str] | None) -> tuple[Tensors, dict[str, Any]]:
        with self._opened(index) as (file, told):
            wanted = file.keys() if names is None else names
            tensors = {name: file.get_tensor(name).numpy() for name in wanted}
            if names is None and _checksum(tensors, told["header"]) != told["checksum"]:
                raise ValueError("wrong checksum")
        return {n: t if t.nbytes >= MAPPED_FROM else t.copy() for n, t in tensors.items()}, told["header"]

    @contextmanager
    def _opened(self, index: int) -> Iterator[tuple[Any, dict[str, Any]]]:
        """The file and its header, sealed. Whatever is wrong there becomes DamagedEpisode."""
        path = self.file(index)
        try:
            with safe_open(path, framework="pt") as file:  # for numpy it would copy
                told = json.loads((file.metadata() or {})["worldvae"])
                if _checksum({}, told["header"]) != told["header_checksum"]:
                    raise ValueError("wrong checksum of its header")
                yield file, told
        except (*UNREADABLE, RuntimeError) as error:
            raise DamagedEpisode(f"{path} is damaged ({error}): delete it and make it again") from error


def _checksum(tensors: Tensors, header: Mapping[str, Any]) -> str:
    digest = hashlib.blake2b(json.dumps(dict(header), sort_keys=True).encode(), digest_size=16)
    for name in sorted(tensors):
        digest.update(f"{name}{tensors[name].dtype}{tensors[name].shape}".encode())
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()
