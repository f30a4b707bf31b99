"""Fresh memory that shows when a kernel does not write it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def nan_in_fresh_memory() -> Iterator[None]:
    """Memory of torch.empty starts as nan, or as the largest integer."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
