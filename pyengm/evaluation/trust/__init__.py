"""Can a robust accuracy be trusted? Checks for models that hide their gradients from attacks, one idea per file."""

from pyengm.evaluation.trust.block import trust_block
from pyengm.evaluation.trust.check import Check, is_stronger

__all__ = ["Check", "is_stronger", "trust_block"]
