"""Ctrl-C and SIGTERM as a request to stop after the current batch."""

import signal
import threading
from types import FrameType, TracebackType

from pyengm.errors import PyengmError


class Interrupted(PyengmError):
    """Training was asked to stop; its state is saved."""


class StopRequest:
    """While it is entered, the first signal only sets `asked`; a second Ctrl-C interrupts at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.asked = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # only there can handlers be set
            self._previous = {number: signal.signal(number, self._on_signal) for number in self.SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
