"""Ctrl-C between steps, not in the middle of one: what is saved then is whole."""

from __future__ import annotations

import signal
import threading
from typing import Any


class Interrupts:
    """While entered, the first Ctrl-C waits until ``check`` is called; a second one does not wait.

    Without effect where not ``deferred``, on other threads than the main one (which alone gets
    signals), and where Ctrl-C does not mean KeyboardInterrupt.
    """

    def __init__(self, deferred: bool):
        on_main_thread = threading.current_thread() is threading.main_thread()
        self._deferred = deferred and on_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        self._pending = False

    def __enter__(self) -> Interrupts:
        if self._deferred:
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._deferred:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def check(self) -> None:
        """Raises KeyboardInterrupt where Ctrl-C was pressed."""
        if self._pending:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: Any) -> None:
        self.check()
        self._pending = True
