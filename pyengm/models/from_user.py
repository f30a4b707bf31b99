"""Models by functions of the user, as in "my_module:make_model"."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pyengm.errors import ConfigError, ModelError, PyengmError
from pyengm.models.classifier import Classifier, Output
from pyengm.models.norm import replace_batch_norm
from pyengm.utils.import_object import call_object, import_object

OPTION = "--model"


def build(
    spec: str,
    num_classes: int,
    in_channels: int,
    image_size: int,
    norm_layer: str,
    width: int | None,
    output: Output | None = None,
) -> nn.Module:
    """The model of a function that the user wrote.

    Args:
        spec: MODULE:FUNCTION. The function gets those of the following arguments that it has.
        num_classes: the number of logits.
        in_channels: the channels of the images.
        image_size: height and width of the images in pixels.
        norm_layer: "gn" replaces the BatchNorm2d layers where the function does not have this argument.
        width: for functions that have this argument.
        output: the place of the logits in what the model returns, see `Classifier`.

    Returns:
        The model, in a `Classifier` if it returns more than logits.

    Raises:
        ConfigError: the function cannot be imported or called, or does not make such a model.
    """
    options: dict[str, Any] = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    options |= {"norm_layer": norm_layer} | ({} if width is None else {"width": width})
    function = import_object(spec, OPTION)
    model = call_object(function, spec, OPTION, options)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{OPTION}: expected a torch.nn.Module from {spec}, got {type(model).__name__}")
    if width is not None and not _has(function, "width"):
        raise ConfigError(f"width is {width}, and {spec} has no such argument; leave it None")
    if norm_layer == "gn" and not _has(function, "norm_layer"):
        model = replace_batch_norm(model)
    classifier = Classifier(model, output)
    is_bare = _check(classifier, spec, num_classes, (in_channels, image_size, image_size))
    return model if is_bare else classifier


def _has(function: Callable[..., Any], name: str) -> bool:
    """Whether `call_object` gives the function that argument."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _check(model: Classifier, spec: str, num_classes: int, shape: tuple[int, int, int]) -> bool:
    """Runs the model on two images; returns whether it returns logits and no more."""
    returned: list[Any] = []
    hook = model.model.register_forward_hook(lambda module, inputs, result: returned.append(result))
    parameter = next(model.parameters(), torch.empty(0))
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            images = torch.zeros(2, *shape, device=parameter.device, dtype=parameter.dtype)
            logits = model.eval()(images)
    except ModelError as error:
        raise ConfigError(f"{OPTION}: {spec}: {error} (--output in pyengm evaluate)") from error
    except (PyengmError, RuntimeError, ValueError, TypeError, IndexError) as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"{OPTION}: the model of {spec} does not take images of shape {shape}: {text}") from error
    finally:
        hook.remove()
        for module, training in modes:
            module.training = training
    if logits.shape[1] != num_classes:
        raise ConfigError(
            f"{OPTION}: the model of {spec} has {logits.shape[1]} classes, the data have {num_classes}; a function "
            "with the argument num_classes gets that number"
        )
    return returned[-1] is logits
