"""Ctrl-C and SIGTERM: they end a command cleanly, and a long one only after what it is writing is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """The user, or the system, ended the command. No `Exception`, so nothing takes it for an error and goes on.

    code: the exit code, 130 for Ctrl-C and 143 for SIGTERM. line: what the user is told; nothing if it is
    empty.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number
        self.line = "stopped."


class Stop:
    """What was asked for. While `later` is set, the first signal is only noted in `asked`; any other raises at once."""

    def __init__(self) -> None:
        self.later = False
        self.asked: Stopped | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The handler of both signals."""
        first, self.asked = self.asked is None, Stopped(number)
        if not (self.later and first):
            raise self.asked


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Ctrl-C and SIGTERM raise `Stopped` in the block, or do what the yielded `Stop` says."""
    stop = Stop()
    before = {}
    if threading.current_thread() is threading.main_thread():  # elsewhere Python refuses
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as in a script's background job
                before[number] = signal.signal(number, stop.handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
