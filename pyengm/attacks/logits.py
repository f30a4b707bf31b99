"""What a model returns, checked in one place for every attack and every training method."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyengm.errors import DataError, ModelError
from pyengm.utils.checks import are_collected

Model = nn.Module | Callable[[Tensor], Any]  # maps images (n, ...) in [0, 1] to logits (n, k)


class CheckedModel:
    """A model whose outputs are checked at every call: it returns logits (n, k), with a class for every label.

    Images in float32 are cast to the type of the model's parameters, so that a model in half precision takes them.

    Args:
        model: A module or a function.
        y: Labels (n,) whose largest is compared with k. It is read here, which waits for the device. Where checks are
            collected (`pyengm.utils.checks`), the caller has made sure of the labels, and it is not read.
    """

    def __init__(self, model: Model, y: Tensor | None = None):
        self.model = model
        self.input_dtype = _parameter_dtype(model)
        self.dtype = getattr(model, "dtype", None)  # in which a model under autocast computes, see `input_grad`
        self.highest_label = -1 if y is None else _highest_label(y)

    def __call__(self, x: Tensor) -> Tensor:
        """The logits (n, k) of images x (n, ...).

        Raises:
            ModelError: The model returns something else.
            DataError: A label has no logit.
        """
        if self.input_dtype is not None and x.dtype == torch.float32:
            x = x.to(self.input_dtype)
        logits = check_logits(self.model(x), len(x))
        _check_classes(logits, self.highest_label)
        return logits


def logits_of(model: Model, x: Tensor, y: Tensor | None = None) -> Tensor:
    """The logits (n, k) of images x (n, ...) with labels y (n,); arguments and errors as for `CheckedModel`."""
    return CheckedModel(model, y)(x)


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


def check_labels(logits: Tensor, y: Tensor) -> None:
    """Checks that every label y (n,) has a logit, unless checks are collected, as for `CheckedModel`.

    Raises:
        DataError: A label has none.
    """
    _check_classes(logits, _highest_label(y))


def _highest_label(y: Tensor) -> int:
    """-1 where it is not read."""
    return -1 if y.numel() == 0 or y.is_floating_point() or are_collected() else int(y.max())


def _check_classes(logits: Tensor, highest_label: int) -> None:
    classes = logits.shape[1]
    if highest_label >= classes:
        raise DataError(
            f"expected labels from 0 to {classes - 1}, as the model has {classes} classes, got {highest_label}"
        )


def _describe(output: Any) -> str:
    wrapper = "wrap the model: pyengm.models.Classifier(model, output={})"
    if isinstance(output, Mapping):
        keys = ", ".join(map(str, output))
        return f"a {type(output).__name__} of {keys}; {wrapper.format(repr('logits') + ' or another key')}"
    if isinstance(output, (tuple, list)):
        return f"a {type(output).__name__} of {len(output)}; {wrapper.format('0, or another position')}"
    return f"{type(output).__name__}; return the tensor alone"


def _parameter_dtype(model: Model) -> torch.dtype | None:
    """The type of the first floating-point parameter; None for models without one."""
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    return next((p.dtype for p in parameters if p.is_floating_point()), None)
