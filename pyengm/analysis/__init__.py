"""Measurements of a model or a method that show whether its results can be trusted."""

from pyengm.analysis.norm_errors import NormErrors, norm_errors

__all__ = ["NormErrors", "norm_errors"]
