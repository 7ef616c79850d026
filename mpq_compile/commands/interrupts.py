"""Ctrl-C, also where native code turns the exception it raises into another one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """Whether Ctrl-C came."""

    came = False

    def note(self, number: int, frame: FrameType | None) -> None:
        """Remember it, and do what Python does: raise ``KeyboardInterrupt``."""
        self.came = True
        signal.default_int_handler(number, frame)


@contextmanager
def noted_interrupts() -> Iterator[Interrupts]:
    """Note each Ctrl-C that would raise ``KeyboardInterrupt``.

    TVM's FFI replaces an exception of a callback by an empty ``RuntimeError``, so the kind of an
    exception does not tell.
    """
    interrupts = Interrupts()
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not usual or threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    signal.signal(signal.SIGINT, interrupts.note)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
