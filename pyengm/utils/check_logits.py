"""The form that the outputs of a classifier have."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pyengm.errors import ModelError


def check_logits(output: Any, n: int) -> Tensor:
    """Returns what a model returned for n images, if it is a float tensor (n, k) with k >= 2.

    Raises:
        ModelError: It is something else.
    """
    if not isinstance(output, Tensor):
        raise ModelError(f"expected logits, a tensor ({n}, classes), from the model, got {_describe(output)}")
    shape = tuple(output.shape)
    if not output.is_floating_point():
        raise ModelError(f"expected logits in floating point from the model, got {output.dtype} of shape {shape}")
    if output.dim() != 2 or len(output) != n:
        raise ModelError(f"expected logits of shape ({n}, classes) from the model, got shape {shape}")
    if shape[1] < 2:
        raise ModelError(
            f"expected at least two logits per image from the model, got shape {shape}; where one logit z separates "
            "label 1 from label 0, return torch.cat([torch.zeros_like(z), z], dim=1), whose softmax is its sigmoid"
        )
    return output


def _describe(output: Any) -> str:
    wrapper = "wrap the model: pyengm.models.Classifier(model, output={})"
    if isinstance(output, Mapping):
        keys = ", ".join(map(str, output))
        return f"{_named(output)} of {keys}; {wrapper.format(repr('logits') + ' or another key')}"
    if isinstance(output, (tuple, list)):
        return f"{_named(output)} of {len(output)}; {wrapper.format('0, or another position')}"
    return f"{type(output).__name__}; return the tensor alone"


def _named(output: Any) -> str:
    kind = type(output).__name__
    return f"{'an' if kind[0] in 'AEIOU' else 'a'} {kind}"
