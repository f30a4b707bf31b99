"""Checks of what tensors hold: at once, or, so that the host need not wait for a device, collected and read later."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import compress

import torch
from torch import Tensor

from pyengm.errors import PyengmError


class Checks:
    """Collects the checks made within `at`, until `read` makes them."""

    def __init__(self) -> None:
        self._waiting: list[tuple[str, Tensor, Callable[..., PyengmError], tuple[Tensor, ...]]] = []
        self._place = ""

    @contextmanager
    def at(self, place: str) -> Iterator[None]:
        """Collects the checks of the code within. place: where that is, which the messages of all errors begin with.

        What else goes wrong there may follow from a check that failed: `read` has its say first.
        """
        self._place, token = place, _collecting.set(self)
        try:
            yield
        except Exception as error:
            self.read()
            if isinstance(error, PyengmError):
                raise type(error)(f"{place}: {error}") from error
            raise
        finally:
            _collecting.reset(token)

    def add(self, passed: Tensor, error: Callable[..., PyengmError], evidence: tuple[Tensor, ...]) -> None:
        self._waiting.append((self._place, passed.detach(), error, evidence))

    def passed(self) -> Tensor:
        """Whether all of them passed, a bool tensor of one element, which nobody waits for; none is left then."""
        waiting, self._waiting = self._waiting, []
        return torch.stack([passed for _, passed, *_ in waiting]).all()

    def read(self) -> None:
        """Waits for the device and raises the error of the first check that failed; none is left then."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        failed = (~torch.stack([passed for _, passed, *_ in waiting])).tolist()  # one transfer
        for place, _, error, evidence in compress(waiting, failed):
            found = error(*evidence)
            raise type(found)(f"{place}: {found}")


_collecting: ContextVar[Checks | None] = ContextVar("collecting", default=None)


def require(passed: Tensor, error: Callable[..., PyengmError], *evidence: Tensor) -> None:
    """Raises error(*evidence) unless passed, a bool tensor of one element, is true; in `Checks.at`, when they are read.

    evidence: small tensors that the message is made from; they stay as they are until then.
    """
    checks = _collecting.get()
    if checks is not None:
        checks.add(passed, error, evidence)
    elif not passed:
        raise error(*evidence)
