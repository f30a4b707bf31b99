"""Triton kernels. Everything else works without Triton: ask HAS_TRITON before importing a kernel's module."""

from importlib.util import find_spec

HAS_TRITON = find_spec("triton") is not None
