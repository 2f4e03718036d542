"""Ctrl-C and SIGTERM between steps, not in the middle of one: what is saved then is whole."""

from __future__ import annotations

import signal
import threading
from typing import Any


class Interrupts:
    """While entered, the first Ctrl-C or SIGTERM waits until ``check`` is called; a second one does not wait.

    Without effect where not ``deferred``, on other threads than the main one (which alone gets
    signals), and for whichever of the two does not mean KeyboardInterrupt.
    """

    def __init__(self, deferred: bool):
        on_main_thread = threading.current_thread() is threading.main_thread()
        both = (signal.SIGINT, signal.SIGTERM) if deferred and on_main_thread else ()
        self._signals = [number for number in both if signal.getsignal(number) is signal.default_int_handler]
        self._pending = False

    def __enter__(self) -> Interrupts:
        for number in self._signals:
            signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number in self._signals:
            signal.signal(number, signal.default_int_handler)

    def check(self) -> None:
        """Raises KeyboardInterrupt where one of them has come."""
        if self._pending:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: Any) -> None:
        self.check()
        self._pending = True
