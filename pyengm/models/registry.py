"""From a name to a model."""

from collections import OrderedDict
from collections.abc import Sequence
from difflib import get_close_matches
from numbers import Integral
from types import ModuleType

from torch import nn

from pyengm.errors import ConfigError
from pyengm.models import from_timm, from_torchvision
from pyengm.models.cnn import cnn4, cnn8
from pyengm.models.norm import NORMS, replace_batch_norm
from pyengm.models.normalize import Normalize
from pyengm.models.preact_resnet import preact_resnet18
from pyengm.models.resnet import resnet18, resnet50
from pyengm.models.vgg import vgg8
from pyengm.models.wide_resnet import wrn_28_10, wrn_34_10

OWN = {model.__name__: model for model in (cnn4, cnn8, vgg8, resnet18, resnet50, preact_resnet18, wrn_28_10, wrn_34_10)}
LIBRARIES = {"torchvision": from_torchvision, "timm": from_timm}


def names() -> list[str]:
    """Names of our own models; torchvision's and timm's names work in `build` as well."""
    return list(OWN)


def build(
    name: str,
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    norm: str = "bn",
    width: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Module:
    """A freshly initialised classifier, from pixels to logits.

    Shape: pixels in [0, 1] (n, in_channels, image_size, image_size) to logits (n, num_classes).

    Args:
        name: one of `names()`, else a name of torchvision, else of timm, sought in this order;
            "torchvision:resnet18" and "timm:resnet18" say which. Pretrained weights are never loaded.
        num_classes: at least 2.
        in_channels: 1 for grey, 3 for colour.
        image_size: side of the square images in pixels, at least 8. It sizes the dense layers of cnn4, cnn8 and
            vgg8, chooses the stem of resnet18 and resnet50 (ImageNet's above 64), and goes to transformers that fix it.
        norm: "bn" (batch norm) or "gn" (group norm: examples do not couple). For torchvision and timm "bn" leaves
            the network as it is, and "gn" replaces its BatchNorm2d layers.
        width: base number of channels, None for the paper's: first convolution (cnn4 32, cnn8 64, vgg8 64), stem and
            first stage (resnets 64), stem (wrn 16: the stages have 10, 20 and 40 times as many); torchvision's
            bottleneck resnets: width_per_group.
        mean, std: one number per channel, in pixel units; both or none. They become a `Normalize` layer in front.

    Raises:
        ConfigError: an unknown name, an option out of range, or one that this model cannot follow.
    """
    _check(num_classes, in_channels, image_size, norm, width)
    normalize = _normalize(mean, std, in_channels)
    source, bare = _find(name)
    if source is None:
        options = {} if width is None else {"width": width}
        network = OWN[bare](num_classes, in_channels, image_size, norm, **options)
    else:
        network = source.build(bare, num_classes, in_channels, image_size, width)
        if norm == "gn":
            network = replace_batch_norm(network)
    if normalize is None:
        return network
    return nn.Sequential(OrderedDict(normalize=normalize, network=network))


def _check(num_classes, in_channels, image_size, norm, width) -> None:
    least = [("num_classes", num_classes, 2), ("in_channels", in_channels, 1), ("image_size", image_size, 8)]
    if width is not None:
        least.append(("width", width, 1))
    for label, value, minimum in least:
        if not isinstance(value, Integral) or value < minimum:
            raise ConfigError(f"{label} must be an integer of at least {minimum}, got {value!r}")
    if norm not in NORMS:
        raise ConfigError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")


def _normalize(mean: Sequence[float] | None, std: Sequence[float] | None, in_channels: int) -> Normalize | None:
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise ConfigError(f"give both mean and std or neither, got mean={mean} and std={std}")
    layer = Normalize(mean, std)
    if len(layer.mean) != in_channels:
        raise ConfigError(f"mean and std need one number for each of {in_channels} channels, got {len(layer.mean)}")
    return layer


def _find(name: str) -> tuple[ModuleType | None, str]:
    """The library that has the model (None for our own) and the model's name there."""
    prefix, _, bare = name.rpartition(":") if isinstance(name, str) else ("", "", str(name))
    if not prefix and bare in OWN:
        return None, bare
    known = [(own, own) for own in OWN]
    for label, library in _libraries(prefix).items():  # one by one: an import of timm takes seconds
        found = library.names()
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
    hint = f" Close matches: {', '.join(full_names)}." if close else ""
    timm = "" if from_timm.installed() else f" {from_timm.INSTALL}."
    return (
        f"unknown model {name!r}.{hint} Own models: {', '.join(OWN)}. Others: torchvision:NAME with a name from "
        f"torchvision.models.list_models(), timm:NAME with a name from timm.list_models().{timm}"
    )
