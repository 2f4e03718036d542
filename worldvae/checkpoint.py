"""Tensors and settings on disk: safetensors + JSON, written whole or not at all, never pickle.

Each file carries its checksum, each folder has one writer at a time. Knows nothing of what the
tensors mean. A nested tree of dictionaries, lists, tensors and JSON
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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from torch import Tensor

FORMAT_VERSION = 1
UNREADABLE = (SafetensorError, KeyError, ValueError, TypeError, AttributeError, OSError, struct.error, RecursionError)
"""What reading a damaged safetensors file may raise (AttributeError: a dtype that NumPy lacks)."""
TREE = "tree"
"""The kind of file that ``save_tree`` writes."""


class CheckpointError(RuntimeError):
    """A file cannot be read or written; the message says which, why and what to do."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around whatever writes ``path``: raises CheckpointError, in a sentence, where the system refuses."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise CheckpointError(f"no space left for {path}: free some and resume") from error
        raise CheckpointError(f"cannot write {path}: {error.strerror}") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Writes to a temporary name, flushes to disk, renames: the file is there whole or not at all.

    Raises:
        CheckpointError: the disk is full, or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _flush_folder(path.parent)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def _flush_folder(folder: Path) -> None:
    """Makes a rename survive a power cut, where the system can flush folders (Windows cannot)."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def only_writer(folder: Path, name: str = ".lock", patience: float = 5.0) -> Iterator[None]:
    """Holds ``folder`` (made if need be) for writing; clears away what killed writers left half-written
    there and below.

    The kernel frees the lock when its holder dies, however that happens. Reading needs none.

    Args:
        name: of the file that is locked: writers under different names do not exclude each other.
        patience: seconds to wait; a killed writer's children may hold its lock for a moment.

    Raises:
        CheckpointError: another process is writing, or the folder cannot be written.
    """
    lock = FileLock(folder / name, timeout=patience)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout as error:
            raise CheckpointError(f"another process is writing to {folder}: wait for it or stop it") from error
    try:
        _clear_temporaries(folder)
        yield
    finally:
        lock.release()


def _clear_temporaries(folder: Path) -> None:
    for path in folder.rglob(".*.tmp"):
        match = re.fullmatch(r"\..+\.(\d{1,9})\.tmp", path.name)
        if match and not _is_alive(int(match.group(1))):
            with contextlib.suppress(OSError):
                path.unlink()


def _is_alive(pid: int) -> bool:
    if os.name != "posix":
        return True  # who knows: there os.kill would end it
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Atomically, indented, for ``read_json``; the key "checksum" is added and belongs to the file."""
    write_atomically(path, _pretty(sealed(value)))


def write_record(path: Path, value: Any) -> None:
    """The same for any JSON value and without a checksum: a result for people and other programs."""
    write_atomically(path, _pretty(value))


def read_json(path: Path) -> dict[str, Any]:
    """What ``write_json`` wrote, without its checksum. Raises CheckpointError where it is missing or another."""
    try:
        return unsealed(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(
            f"{path} is damaged, edited by hand or of an older worldvae ({error}): restore it or make it again"
        ) from error


def _pretty(value: Any) -> bytes:
    """Indented JSON with a final newline; lists of numbers stay on one line."""
    text = json.dumps(value, indent=2)
    text = re.sub(r"\[\n[^][{}\"]*\]", lambda match: " ".join(match.group().split()), text)
    return (text + "\n").encode()


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """The value as JSON gives it back, and its checksum under the key "checksum"."""
    content = json.loads(json.dumps(dict(value)))
    content.pop("checksum", None)
    return {**content, "checksum": _json_checksum(content)}


def unsealed(text: bytes) -> dict[str, Any]:
    """What was sealed, from its JSON. Raises ValueError where that is damaged."""
    try:
        value = json.loads(text.decode())
        if not isinstance(value, dict):
            raise ValueError("no JSON object")
        if value.pop("checksum", None) != _json_checksum(value):
            raise ValueError("wrong checksum")
    except RecursionError as error:
        raise ValueError("nested without end") from error
    return value


def _json_checksum(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def save_model(folder: Path, kind: str, model: torch.nn.Module, config: Mapping[str, Any]) -> None:
    """Writes ``model.safetensors``, which is enough to load it, and ``config.json``, for people.

    Args:
        config: what it takes to build the model; its entry ``training`` is in config.json alone, so
            that the same training gives the same bytes, however long it took.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    header = {"format_version": FORMAT_VERSION, "kind": kind, **config}
    data = _packed(tensors, {name: value for name, value in header.items() if name != "training"})
    write_atomically(folder / "model.safetensors", data)
    write_json(folder / "config.json", {**header, "sha256": hashlib.sha256(data).hexdigest()})


def load_model(folder: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and config (without ``training``) that ``save_model`` wrote, and the file's ``sha256``.

    Raises:
        CheckpointError: nothing there, another kind, a future format, or a damaged file.
    """
    path = folder / "model.safetensors"
    if not path.exists():
        raise CheckpointError(f"no {kind} in {folder}: there is no {path.name}")
    tensors, header = _unpacked(path)
    _check_kind(path, header, kind)
    return tensors, {**header, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def read_manifest(path: Path, kind: str) -> dict[str, Any]:
    """The JSON that says what a folder holds.

    Raises CheckpointError where it is missing, damaged, of another kind or a newer format.
    """
    if not path.exists():
        raise CheckpointError(f"no {kind} in {path.parent}: there is no {path.name}")
    manifest = read_json(path)
    _check_kind(path, manifest, kind)
    return manifest


def _check_kind(path: Path, header: Mapping[str, Any], kind: str) -> None:
    version = header.get("format_version")
    if header.get("kind") != kind:
        raise CheckpointError(f"{path} is not of kind {kind} but: {header.get('kind', 'unknown')}")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format {version}, this worldvae reads up to {FORMAT_VERSION}: upgrade worldvae"
        )


def save_tree(path: Path, tree: Any) -> None:
    """A nested tree of dicts, lists, tensors and JSON values -> one safetensors file."""
    tensors: dict[str, Tensor] = {}
    skeleton = _flatten(tree, tensors)
    write_atomically(path, _packed(tensors, {"format_version": FORMAT_VERSION, "kind": TREE, "tree": skeleton}))


def load_tree(path: Path) -> Any:
    """The tree that ``save_tree`` wrote. Raises CheckpointError where it cannot be read."""
    tensors, header = _unpacked(path)
    _check_kind(path, header, TREE)
    return _unflatten(header["tree"], tensors)


def _packed(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> bytes:
    """A safetensors file; all else is one entry of its metadata (it writes several in random order)."""
    text = json.dumps(header)
    sealed_header = json.dumps({"header": text, "checksum": _checksum(text, tensors)})
    return safetensors.torch.save(dict(tensors), {"worldvae": sealed_header})


def _unpacked(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            told = json.loads((file.metadata() or {})["worldvae"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if _checksum(told["header"], tensors) != told["checksum"]:
            raise ValueError("wrong checksum")
        return tensors, json.loads(told["header"])
    except UNREADABLE as error:
        raise CheckpointError(f"{path} is missing, damaged or of another kind: {error}") from error


def _checksum(header: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(header.encode())
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
