"""Models by name: pyengm's own, torchvision's, timm's and those of functions of the user."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from numbers import Integral
from types import ModuleType
from typing import Any

from torch import nn

from pyengm.errors import ConfigError
from pyengm.models import from_timm, from_torchvision, from_user
from pyengm.models.classifier import Classifier, Output
from pyengm.models.cnn import cnn4, cnn8
from pyengm.models.norm import NORM_LAYERS, replace_batch_norm
from pyengm.models.normalize import Normalize
from pyengm.models.preact_resnet import preact_resnet18
from pyengm.models.resnet import resnet18, resnet50
from pyengm.models.vgg import vgg8
from pyengm.models.wide_resnet import wrn_28_10, wrn_34_10
from pyengm.utils.import_object import is_object_spec

OWN: dict[str, Callable[..., nn.Module]] = {
    model.__name__: model for model in (cnn4, cnn8, vgg8, resnet18, resnet50, preact_resnet18, wrn_28_10, wrn_34_10)
}
LIBRARIES = {"torchvision": from_torchvision, "timm": from_timm}
ZOO = "robustbench"  # its models are trained ones, see `from_robustbench`


def list_models() -> list[str]:
    """Names of pyengm's own models; `build` takes torchvision's and timm's names as well."""
    return list(OWN)


def build(
    name: str,
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    norm_layer: str = "bn",
    width: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    output: Output | None = None,
) -> nn.Module:
    """A freshly initialised classifier.

    Args:
        name: one of `list_models()`, else a name of torchvision, else of timm, sought in this order;
            "torchvision:resnet18" and "timm:resnet18" name the library. Pretrained weights are never loaded.
            "my_module:make_model" calls a function of the user, which gets those of the other arguments that it has.
        num_classes: at least 2.
        in_channels: 1 for grey, 3 for colour.
        image_size: side of the square images in pixels, at least 8. It sizes the dense layers of cnn4, cnn8 and
            vgg8, chooses the stem of resnet18 and resnet50 (ImageNet's above 64), and is an argument of transformers
            that fix it.
        norm_layer: "bn" (batch norm) or "gn" (group norm: the examples are independent). For torchvision and timm
            "bn" leaves the network as it is, and "gn" replaces its BatchNorm2d layers.
        width: base number of channels, None for the paper's: first convolution (cnn4 32, cnn8 64, vgg8 64), stem and
            first stage (resnets 64), stem (wrn 16: the stages have 10, 20 and 40 times as many); torchvision's
            bottleneck resnets: width_per_group.
        mean: one value per channel, in units of pixels in [0, 1], of a `Normalize` layer in front; None for no layer.
        std: like mean; both are given or neither.
        output: the place of the logits in what the network returns, for networks that return more, see `Classifier`.

    Returns:
        A model that maps pixels in [0, 1] (n, in_channels, image_size, image_size) to logits (n, num_classes).

    Raises:
        ConfigError: the name is unknown, an option is out of range, or this model does not support it.

    Example:
        >>> model = pyengm.models.build("cnn4", width=4, image_size=8, in_channels=1, num_classes=10)
        >>> model(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    _check(num_classes, in_channels, image_size, norm_layer, width)
    normalize = _normalize(mean, std, in_channels)
    network = _network(name, num_classes, in_channels, image_size, norm_layer, width, output)
    if normalize is None:
        return network
    return nn.Sequential(OrderedDict(normalize=normalize, network=network))


def code_of(name: object) -> str | None:
    """MODULE:FUNCTION if the name of a model is one, as `build` runs that code; None for other names."""
    return str(name) if is_object_spec(name) and str(name).partition(":")[0] not in (*LIBRARIES, ZOO) else None


def _network(
    name: str,
    num_classes: int,
    in_channels: int,
    image_size: int,
    norm_layer: str,
    width: int | None,
    output: Output | None,
) -> nn.Module:
    """The model without a layer for mean and std; arguments as for `build`."""
    if code_of(name) is not None:
        return from_user.build(name, num_classes, in_channels, image_size, norm_layer, width, output)
    library, bare = _find(name)
    if library is None:
        options: dict[str, Any] = {} if width is None else {"width": width}
        network = OWN[bare](num_classes, in_channels, image_size, norm_layer, **options)
    else:
        network = library.build(bare, num_classes, in_channels, image_size, width)
        network = replace_batch_norm(network) if norm_layer == "gn" else network
    return network if output is None else Classifier(network, output)


def _check(num_classes: int, in_channels: int, image_size: int, norm_layer: str, width: int | None) -> None:
    least = [("num_classes", num_classes, 2), ("in_channels", in_channels, 1), ("image_size", image_size, 8)]
    if width is not None:
        least.append(("width", width, 1))
    for label, value, minimum in least:
        if not isinstance(value, Integral) or value < minimum:
            raise ConfigError(f"{label} must be an integer of at least {minimum}, got {value!r}")
    if norm_layer not in NORM_LAYERS:
        raise ConfigError(f"norm_layer must be one of {', '.join(NORM_LAYERS)}, got {norm_layer!r}")


def _normalize(mean: Sequence[float] | None, std: Sequence[float] | None, in_channels: int) -> Normalize | None:
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise ConfigError(f"give both mean and std or neither, got mean={mean} and std={std}")
    layer = Normalize(mean, std)
    if len(layer.mean) != in_channels:
        raise ConfigError(f"mean and std need one value for each of {in_channels} channels, got {len(layer.mean)}")
    return layer


def _find(name: str) -> tuple[ModuleType | None, str]:
    """The library that has the model (None for pyengm's own) and the model's name there."""
    prefix, _, bare = name.rpartition(":") if isinstance(name, str) else ("", "", str(name))
    if not prefix and bare in OWN:
        return None, bare
    known = [(own, own) for own in OWN]
    for label, library in _libraries(prefix).items():  # one by one: an import of timm takes seconds
        found = library.list_models()
        if bare in found:
            return library, bare
        known += [(model, f"{label}:{model}") for model in found]
    raise ConfigError(_unknown(name, bare, known))


def _libraries(prefix: str) -> dict[str, ModuleType]:
    if prefix:
        return {label: library for label, library in LIBRARIES.items() if label == prefix}
    return {label: library for label, library in LIBRARIES.items() if library.installed()}


def _unknown(name: str, bare: str, known: list[tuple[str, str]]) -> str:
    close = get_close_matches(bare, {model for model, _ in known}, n=5)
    full_names = [full for match in close for model, full in known if model == match]
    suggestion = f" Close matches: {', '.join(full_names)}." if close else ""
    timm = "" if from_timm.installed() else f" {from_timm.INSTALL}."
    return (
        f"unknown model {name!r}.{suggestion} Own models: {', '.join(OWN)}. Others: torchvision:NAME with a name from "
        f"torchvision.models.list_models(), timm:NAME with a name from timm.list_models(), MODULE:FUNCTION for one of "
        f"your own.{timm}"
    )
