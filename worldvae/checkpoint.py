"""Tensors and settings on disk: safetensors + JSON, written whole or not at all, never pickle.

Knows nothing of what the tensors mean. A nested tree of dictionaries, lists, tensors and JSON
values (an optimiser's state, a generator's) goes into one safetensors file, the values in its
header.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

FORMAT_VERSION = 1


class CheckpointError(RuntimeError):
    """A file cannot be read or written; the message says which, why and what to do."""


def write_atomically(path: Path, data: bytes) -> None:
    """Writes to a temporary name, flushes to disk, renames: the file is there whole or not at all.

    Raises:
        CheckpointError: the disk is full, or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise CheckpointError(f"no space left for {path} ({len(data)} bytes): free some and resume") from error
        raise CheckpointError(f"cannot write {path}: {error.strerror}") from error


def _flush_folder(folder: Path) -> None:
    """Makes a rename survive a power cut, where the system can flush folders (Windows cannot)."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Atomically, indented, with a final newline; lists of numbers stay on one line."""
    text = json.dumps(value, indent=2)
    text = re.sub(r"\[[^][{}\"]*\]", lambda match: " ".join(match.group().split()), text)
    write_atomically(path, (text + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Raises CheckpointError where there is no such file, or it is not a JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged, not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged: expected a JSON object")
    return value


def save_model(folder: Path, kind: str, model: torch.nn.Module, config: Mapping[str, Any]) -> None:
    """Writes ``model.safetensors`` and ``config.json`` (which names the kind and the format)."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    data = safetensors.torch.save(tensors, {"kind": kind})
    write_atomically(folder / "model.safetensors", data)
    checksum = hashlib.sha256(data).hexdigest()
    header = {"format_version": FORMAT_VERSION, "kind": kind, "sha256": checksum}
    write_json(folder / "config.json", {**header, **config})


def load_model(folder: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and config that ``save_model`` wrote.

    Raises:
        CheckpointError: nothing there, another kind, a future format, or damaged files.
    """
    config = read_manifest(folder / "config.json", kind)
    path = folder / "model.safetensors"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != config.get("sha256"):
        raise CheckpointError(f"{path} is damaged or not the file that config.json describes; copy it again")
    return safetensors.torch.load(data), config


def read_manifest(path: Path, kind: str) -> dict[str, Any]:
    """The JSON that says what a folder holds.

    Raises CheckpointError where it is missing, damaged, of another kind or a newer format.
    """
    if not path.exists():
        raise CheckpointError(f"no {kind} in {path.parent}: there is no {path.name}")
    manifest = read_json(path)
    version = manifest.get("format_version")
    if manifest.get("kind") != kind:
        raise CheckpointError(f"{path} is not of kind {kind} but: {manifest.get('kind', 'unknown')}")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format {version}, this worldvae reads up to {FORMAT_VERSION}: upgrade worldvae"
        )
    return manifest


def save_tree(path: Path, tree: Any) -> None:
    """A nested tree of dicts, lists, tensors and JSON values -> one safetensors file."""
    tensors: dict[str, Tensor] = {}
    skeleton = json.dumps({"format_version": FORMAT_VERSION, "tree": _flatten(tree, tensors)})
    checksum = _tree_checksum(skeleton, tensors)
    write_atomically(path, safetensors.torch.save(tensors, {"skeleton": skeleton, "sha256": checksum}))


def load_tree(path: Path) -> Any:
    """The tree that ``save_tree`` wrote. Raises CheckpointError where it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            skeleton = json.loads(metadata["skeleton"])
            if skeleton["format_version"] > FORMAT_VERSION:
                raise CheckpointError(f"{path} was written by a newer worldvae: upgrade")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if _tree_checksum(metadata["skeleton"], tensors) != metadata["sha256"]:
                raise ValueError("wrong checksum")
            return _unflatten(skeleton["tree"], tensors)
    except (SafetensorError, KeyError, ValueError, TypeError, OSError, struct.error) as error:
        raise CheckpointError(f"{path} is missing, damaged or of another kind: {error}") from error


def _tree_checksum(skeleton: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(skeleton.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _flatten(node: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, Tensor):
        name = str(len(tensors))  # a path of keys could be two tensors' name: a/b, and b in a
        tensors[name] = node.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(node, Mapping):
        items = [[key, _flatten(value, tensors)] for key, value in node.items()]
        return {"dict": items}  # pairs, since JSON would turn an optimiser's integer keys to text
    if isinstance(node, list | tuple):
        return {"list": [_flatten(value, tensors) for value in node]}
    return {"value": node}


def _unflatten(node: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    ((kind, content),) = node.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unflatten(value, tensors) for key, value in content}
    if kind == "list":
        return [_unflatten(value, tensors) for value in content]
    return content
