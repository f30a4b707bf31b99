"""Training methods: how a batch becomes per-example losses."""

from pyengm.methods.base import Method, Outcome
from pyengm.methods.natural import Natural
from pyengm.methods.pgd_at import PGDAT

METHODS: dict[str, type[Method]] = {"natural": Natural, "pgd_at": PGDAT}

__all__ = ["METHODS", "PGDAT", "Method", "Natural", "Outcome"]
