"""Ctrl-C: once to stop in order, twice to stop at once."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from adept_tune.cli import INTERRUPTED


class Interrupt:
    """Notes a wish to stop while somebody watches for it, and is a `KeyboardInterrupt` otherwise.

    Attributes:
        asked: Whether somebody has asked to stop.
    """

    def __init__(self) -> None:
        self.asked = False
        self._watched = False

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Handle the signal for the time of a block; in a thread other than the main one, change nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """For the time of a block, somebody looks at `asked` often enough."""
        self._watched = True
        try:
            yield
        finally:
            self._watched = False

    def _handle(self, number: int, frame: FrameType | None) -> Any:
        if self.asked:
            show_cursor = "\x1b[?25h" if sys.stdout.isatty() else ""  # the live view has hidden it
            message = f"{show_cursor}stopped at once; a search goes on with --resume\n"
            os.write(2, message.encode())  # print may be what was interrupted
            os._exit(INTERRUPTED)  # Ray's processes end when they miss this one
        self.asked = True
        if not self._watched:
            raise KeyboardInterrupt
