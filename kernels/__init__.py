"""Triton kernels. All else works without Triton: check HAS_TRITON before importing the module of a kernel."""

from importlib.util import find_spec

HAS_TRITON = find_spec("triton") is not None
