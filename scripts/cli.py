"""What every command line here shares: arguments from a function, errors as one sentence."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Annotated, Any, TypeVar

import gymnasium
import torch
import tyro
from tyro.constructors import PrimitiveConstructorSpec

from agents.evaluation import commit, machine

MISTAKES = (
    *(ValueError, RuntimeError, OSError, LookupError, ImportError, FloatingPointError),
    gymnasium.error.Error,  # where an environment lacks what it needs
)
"""Of the user's or the machine's, told in a sentence."""
Config = TypeVar("Config")
Flat = Annotated[Config, tyro.conf.arg(name="")]
"""A dataclass whose fields are flags of their own."""
Run = Annotated[Path, tyro.conf.Positional]
"""The run's folder, the first word on the command line."""
OptionalRun = Annotated[Path | None, tyro.conf.Positional]
"""The same where there may be none."""


def _some_paths(words: list[str]) -> tuple[Path, ...]:
    if not words:
        raise ValueError("name at least one run's folder")
    return tuple(Path(word) for word in words)


Runs = Annotated[
    tuple[Path, ...],
    tyro.conf.Positional,
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="RUN ...",
        instance_from_str=_some_paths,
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [str(path) for path in value],
    ),
]
"""One run's folder or several, the first words on the command line."""


def _json_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f'expected a JSON object such as {{"lap": 1}}, got {text}')
    return value


JSON = Annotated[
    dict[str, Any],
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="JSON",
        instance_from_str=lambda words: _json_object(words[0]),
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [json.dumps(value)],
    ),
]
"""Named values of any kind, as one JSON object (tyro gives an empty dictionary no flag at all)."""


def run(main: Callable[..., Any]) -> None:
    """Calls ``main`` with its arguments from the command line (tyro).

    A mistake of the user's or the machine's ends with one sentence and exit code 1, Ctrl-C and SIGTERM (a
    cluster's) with 130. WORLDVAE_DEBUG=1 shows the traceback instead.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # a shell's background jobs do not hear Ctrl-C
            signal.signal(number, signal.default_int_handler)
    torch.backends.cuda.matmul.allow_tf32 = True  # as its convolutions do: dreams are 1.7 times as fast
    try:
        tyro.cli(main)
        _only_leave()
    except KeyboardInterrupt:
        _only_leave()
        sys.exit(130)
    except MISTAKES as error:
        if os.environ.get("WORLDVAE_DEBUG"):
            raise
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        if " " not in text:  # no sentence of ours
            text = f"{type(error).__name__} {text} (WORLDVAE_DEBUG=1 shows where)"
        sys.exit(f"error: {text}")


def _only_leave() -> None:
    """All is done and saved: Ctrl-C changes nothing any more, and SIGTERM ends at once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def provenance() -> dict[str, str]:
    """What a benchmark's record says of where it came from: command, machine, date, commit."""
    main = sys.modules["__main__"].__spec__
    command = shlex.join(["python", "-m", main.name if main else sys.argv[0], *sys.argv[1:]])
    return {"command": command, "machine": machine(), "date": date.today().isoformat(), "commit": commit()}


def table(rows: list[tuple[Any, ...]]) -> str:
    """Rows of values as aligned columns: the first to the left, the others to the right."""
    cells = [[f"{value:.4g}" if isinstance(value, float) else str(value) for value in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join(
        "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    )
