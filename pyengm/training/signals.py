"""Ctrl-C and SIGTERM as a request to stop after the current batch."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from pyengm.errors import PyengmError

STATUS = 75  # of a process that stopped on request and can be gone on with: EX_TEMPFAIL, "try again"


class Interrupted(PyengmError):
    """Training was asked to stop; its state is saved."""


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """While it is entered, SIGTERM raises KeyboardInterrupt, as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt) if _handlers_can_be_set() else None
    try:
        yield
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _handlers_can_be_set() -> bool:
    return threading.current_thread() is threading.main_thread()


class StopRequest:
    """While it is entered, the first signal only sets `asked`; a second Ctrl-C interrupts at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.asked = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if _handlers_can_be_set():
            self._previous = {number: signal.signal(number, self._on_signal) for number in self.SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
