"""What a model returns, checked in one place for every attack and every training method."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyengm.errors import DataError
from pyengm.utils.check_logits import check_logits
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


def _parameter_dtype(model: Model) -> torch.dtype | None:
    """The type of the first floating-point parameter; None for models without one."""
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    return next((p.dtype for p in parameters if p.is_floating_point()), None)
