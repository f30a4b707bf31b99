"""What one wants to know about a model or a method before trusting it."""

from pyengm.analysis.norm_errors import NormErrors, norm_errors

__all__ = ["NormErrors", "norm_errors"]
