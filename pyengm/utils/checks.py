"""Checks of the values of tensors, made at once or collected, so that the host need not wait for a device."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import compress

import torch
from torch import Tensor

from pyengm.errors import PyengmError


class Checks:
    """Collects the checks made in the context `at`, until `read` makes them."""

    def __init__(self) -> None:
        self._pending: list[tuple[str, Tensor, Callable[..., PyengmError], tuple[Tensor, ...]]] = []
        self._location = ""

    @contextmanager
    def at(self, location: str) -> Iterator[None]:
        """A context in which `require` adds to these checks.

        An error in the context may follow from a check that failed, so the collected checks are read first.

        Args:
            location: where the checked code is, with which the messages of all errors begin.

        Raises:
            PyengmError: any that the code raised, with the location in its message.
        """
        self._location, token = location, _collecting.set(self)
        try:
            yield
        except Exception as error:
            self.read()
            if isinstance(error, PyengmError):
                raise type(error)(f"{location}: {error}") from error
            raise
        finally:
            _collecting.reset(token)

    def add(self, passed: Tensor, error: Callable[..., PyengmError], evidence: tuple[Tensor, ...]) -> None:
        """Adds a check, as `require` describes it."""
        self._pending.append((self._location, passed.detach(), error, evidence))

    def passed(self) -> Tensor:
        """Whether all of the checks passed, a bool tensor of one element on the device; clears them."""
        pending, self._pending = self._pending, []
        return torch.stack([passed for _, passed, *_ in pending]).all()

    def read(self) -> None:
        """Waits for the device and raises the error of the first check that failed; clears the checks."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        failed = (~torch.stack([passed for _, passed, *_ in pending])).tolist()  # one transfer
        for location, _, make_error, evidence in compress(pending, failed):
            error = make_error(*evidence)
            raise type(error)(f"{location}: {error}")


_collecting: ContextVar[Checks | None] = ContextVar("collecting", default=None)


def are_collected() -> bool:
    """Whether `require` collects the checks for later (`Checks.at`), so that the host waits for no device."""
    return _collecting.get() is not None


def require(passed: Tensor, error: Callable[..., PyengmError], *evidence: Tensor) -> None:
    """Raises an error unless a check passed; in `Checks.at`, not before the checks are read.

    Args:
        passed: a bool tensor of one element.
        error: makes the error from the evidence.
        evidence: small tensors for the message, which must not change before the checks are read.
    """
    checks = _collecting.get()
    if checks is not None:
        checks.add(passed, error, evidence)
    elif not passed:
        raise error(*evidence)
