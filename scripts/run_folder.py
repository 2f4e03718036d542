"""A run's folder: where each stage finds the one before, and what each has cost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from worldvae.checkpoint import only_writer, read_json, write_json


class RunFolder:
    """``rollouts/ vae/ latents/ dynamics/ agent/ evolved/ pictures/`` and ``stages.json`` with their wall seconds.

    Of a run of several rounds it is the last; earlier ones lie in ``round-0/ round-1/ ..`` and share its rollouts.
    """

    def __init__(self, path: str | Path, rollouts: Path | None = None):
        self.path = Path(path)
        self.rollouts = rollouts or self.path / "rollouts"
        self.vae = self.path / "vae"
        self.latents = self.path / "latents"
        self.dynamics = self.path / "dynamics"
        self.agent = self.path / "agent"
        self.evolved = self.path / "evolved"
        self.pictures = self.path / "pictures"

    @property
    def stages(self) -> dict[str, Any]:
        """Stage name -> {"seconds", "done"}."""
        file = self.path / "stages.json"
        return read_json(file) if file.exists() else {}

    def round(self, number: int) -> RunFolder:
        """One of the rounds before the last."""
        return RunFolder(self.path / f"round-{number}", self.rollouts)

    @property
    def earlier(self) -> list[RunFolder]:
        """The rounds before the last, so far."""
        return [self.round(i) for i in range(sum(1 for _ in self.path.glob("round-*")))]

    @property
    def best(self) -> RunFolder:
        """The round whose agent was chosen, or else the last."""
        return [*self.earlier, self][self.chosen.get("round", -1)]

    @property
    def chosen(self) -> dict[str, Any]:
        """Which round's agent played best (``round``, from 0), and all rounds' returns; empty where none was chosen."""
        file = self.path / "chosen.json"
        return read_json(file) if file.exists() else {}

    def seconds(self, *stages: str) -> float:
        """Wall seconds that these stages took, over all sittings and rounds."""
        here = sum(self.stages.get(stage, {}).get("seconds", 0.0) for stage in stages)
        return here + sum(earlier.seconds(*stages) for earlier in self.earlier)

    def is_done(self, stage: str) -> bool:
        return bool(self.stages.get(stage, {}).get("done", False))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage, over interruptions too, and marks it done when it ends well.

        Raises CheckpointError where another process is at the same stage; others may run meanwhile.
        """
        with only_writer(self.path, f".{name}.lock"):
            before, begin, done = self.stages.get(name, {}).get("seconds", 0.0), time.monotonic(), self.is_done(name)
            try:
                yield
                done = True
            finally:
                entry = {"seconds": before + time.monotonic() - begin, "done": done}
                with only_writer(self.path):
                    write_json(self.path / "stages.json", {**self.stages, name: entry})
