"""Ops with native kernels, each with backend=None (by device), "reference", "cpu" or "cuda"."""

from pyengm.ops._register import BACKENDS, CPU_MODULE, CUDA_MODULE
from pyengm.ops.atas_step import atas_step_
from pyengm.ops.clip_weights import clip_weights
from pyengm.ops.conv_sqnorm import (
    conv_direct_sqnorm,
    conv_gradients,
    conv_gram_sqnorm,
)
from pyengm.ops.crop_flip import crop_flip
from pyengm.ops.fosc import fosc, fosc_step_
from pyengm.ops.pgd_l2_step import pgd_l2_step_
from pyengm.ops.pgd_linf_step import pgd_linf_step_
from pyengm.ops.philox import Key, Purpose, philox_normal, philox_uniform
from pyengm.ops.regression_weights import regression_fit, regression_statistics, regression_weights
from pyengm.ops.row_norms import row_norms
from pyengm.ops.row_sums import row_sums

__all__ = [
    "Key",
    "Purpose",
    "atas_step_",
    "available_backends",
    "clip_weights",
    "conv_direct_sqnorm",
    "conv_gradients",
    "conv_gram_sqnorm",
    "crop_flip",
    "fosc",
    "fosc_step_",
    "pgd_l2_step_",
    "pgd_linf_step_",
    "philox_normal",
    "philox_uniform",
    "regression_fit",
    "regression_statistics",
    "regression_weights",
    "row_norms",
    "row_sums",
]


def available_backends() -> tuple[str, ...]:
    """The backends that this installation was built with; cuda where the driver, if there is one, runs its kernels."""
    built = {"reference": True, "cpu": CPU_MODULE is not None, "cuda": CUDA_MODULE is not None}
    return tuple(name for name in BACKENDS if built[name])
