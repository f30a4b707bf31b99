"""Ops with native kernels. Each takes backend=None (by device), "reference", "cpu" or "cuda"."""

from pyengm.ops._register import BACKENDS, CPU_MODULE, CUDA_MODULE
from pyengm.ops.clip_weights import clip_weights
from pyengm.ops.pgd_linf_step import pgd_linf_step_
from pyengm.ops.philox import Key, Purpose, philox_normal, philox_uniform

__all__ = [
    "Key",
    "Purpose",
    "available_backends",
    "clip_weights",
    "pgd_linf_step_",
    "philox_normal",
    "philox_uniform",
]


def available_backends() -> tuple[str, ...]:
    """The backends that this installation was built with."""
    built = {"reference": True, "cpu": CPU_MODULE is not None, "cuda": CUDA_MODULE is not None}
    return tuple(name for name in BACKENDS if built[name])
