"""Norms and clipped gradients on a small model of every family of timm, torchvision and transformers, in float64.

A slow proof: pytest -m slow tests/pergrad/test_model_zoo.py. Each model is called twice, the second time from what the
first has remembered, and its clipped gradient is compared with that of the reweighted losses.
"""

import functools
import warnings
from importlib.util import find_spec

import pytest
import torch
from helpers import hugging_face
from helpers.toy_models import norms_of
from torch import nn
from torch.nn import functional as F

from pyengm import UnsupportedOperationError, clipped_backward, per_example_grad_norms

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")
pytestmark = pytest.mark.slow

N = 3
LARGEST = 40_000_000  # parameters, so that a family takes seconds
TOLERANCE = 1e-9  # relative, float64; deep models add up rounding


SMALL = (
    "test_", "atto", "femto", "pico", "nano", "xxt", "xxs", "xt", "tiny", "xs", "mini", "small", "lite", "050", "b0",
    "s0", "18", "10", "26", "_s", "a1", "t0", "x_002",
)  # fmt: skip


@functools.cache
def smallest() -> dict[str, str]:
    """A small model of each family (a module of the library), by its name."""

    def rank(name: str) -> tuple[int, int, str]:
        return next((k for k, part in enumerate(SMALL) if part in name), len(SMALL)), len(name), name

    found: dict[str, list[str]] = {}
    for name in timm.list_models():
        found.setdefault(timm.models._registry._model_to_module[name], []).append(name)
    return {family: min(names, key=rank) for family, names in found.items()}


def make(name: str) -> tuple[nn.Module, int]:
    """The model and its image size, small where the model allows it."""
    size = timm.get_pretrained_cfg(name, allow_unregistered=True)
    fixed = size.input_size[-1] if size is not None else 224
    for wanted in (64, 96, 128):
        for options in ({"img_size": wanted}, {}):
            try:
                torch.manual_seed(0)
                model = timm.create_model(name, num_classes=5, **options).eval()
                with torch.no_grad():
                    model(torch.zeros(1, 3, wanted, wanted))
            except Exception:
                continue
            return model, wanted
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5).eval(), fixed


def logits(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Logits of a fresh graph: some models keep tables that are computed from parameters until their mode changes."""
    output = model.train().eval()(x)
    return output[0] if isinstance(output, (tuple, list)) else output


def check(model: nn.Module, size: int) -> None:
    model = model.double()
    params = [p for p in model.parameters() if p.requires_grad]
    for seed in (0, 1):
        torch.manual_seed(seed)
        x, y = torch.rand(N, 3, size, size, dtype=torch.float64), torch.randint(0, 5, (N,))
        losses = F.cross_entropy(logits(model, x), y, reduction="none")
        expected = norms_of(losses, params)
        torch.testing.assert_close(per_example_grad_norms(losses, params), expected, rtol=TOLERANCE, atol=0)
    alpha = expected.median().item()
    weights = (alpha / expected).clamp(max=1)
    wanted = gradients((losses * weights).mean(), params)
    one_by_one = [[g * (w / N) for g in gradients(loss, params)] for loss, w in zip(losses, weights, strict=True)]
    scale = max(w.abs().max() for w in wanted).item()
    # Some models compute a part in float32 (linear attention); torch's own gradients then differ by more.
    own = max((w - sum(parts)).abs().max() for w, *parts in zip(wanted, *one_by_one, strict=True)).item()
    allowed = max(TOLERANCE * scale, 4 * own)  # a few roundings more or less
    model.zero_grad()
    clipped_backward(F.cross_entropy(logits(model, x), y, reduction="none"), params, alpha)
    for p, w in zip(params, wanted, strict=True):
        found = torch.zeros_like(p) if p.grad is None else p.grad
        torch.testing.assert_close(found, w, rtol=TOLERANCE, atol=allowed)


def gradients(loss: torch.Tensor, params: list[torch.Tensor]) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True, materialize_grads=True))


REFUSED = {"csatv2"}  # attends over the batch: a coupling of 3e-19 of a norm


@pytest.mark.parametrize("family", sorted(smallest()))
def test_timm(family):
    model, size = make(smallest()[family])
    if sum(p.numel() for p in model.parameters()) > LARGEST:
        pytest.skip(f"{smallest()[family]}, a small one of {family}, is larger than {LARGEST} parameters")
    if family in REFUSED:
        with pytest.raises(UnsupportedOperationError, match="not independent"):
            check(model, size)
    else:
        check(model, size)


@pytest.mark.parametrize(
    "name",
    [
        "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "maxvit_t",
        "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "resnet18", "shufflenet_v2_x0_5",
        "squeezenet1_0", "swin_t", "swin_v2_t", "vgg11", "vit_b_32",
    ],
)  # fmt: skip
def test_torchvision(name):
    torch.manual_seed(0)
    options = {"init_weights": False, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, num_classes=5, **options).eval()
    sizes = {"inception_v3": 96, "vit_b_32": 224, "maxvit_t": 224, "alexnet": 64}
    check(model, sizes.get(name, 64))


# Functions of the user, and writes in place to views, of which no proof knows what they do. All else is proven.
PROBED_AT_EACH_CALL = {"Bloom", "DeepseekV3", "LongT5", "RecurrentGemma", "Rwkv", "Yoso"}


@pytest.mark.skipif(find_spec("transformers") is None, reason="needs transformers")
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", hugging_face.FAMILIES)
def test_hugging_face(family, attention):
    """Sequences are padded, to other lengths in the second batch."""
    try:
        model = hugging_face.make(family, attention)
    except (AttributeError, ValueError) as error:
        pytest.skip(f"this version of transformers has no {family} with {attention}: {error}")
    params = [p for p in model.parameters() if p.requires_grad]
    with warnings.catch_warnings(record=True) as given, hugging_face.Float64():
        warnings.simplefilter("always")
        for batch in (0, 1, 0):
            losses = hugging_face.losses(family, model, batch)
            expected = norms_of(losses, params)
            torch.testing.assert_close(per_example_grad_norms(losses, params), expected, rtol=TOLERANCE, atol=0)
    assert any("further passes" in str(one.message) for one in given) == (family in PROBED_AT_EACH_CALL)
    alpha = expected.median().item()
    with hugging_face.Float64():
        wanted = gradients((losses * (alpha / expected).clamp(max=1)).mean(), params)
        clipped_backward(hugging_face.losses(family, model, 0), params, alpha)
    largest = max(w.abs().max() for w in wanted).item()
    for p, w in zip(params, wanted, strict=True):
        found = torch.zeros_like(p) if p.grad is None else p.grad
        torch.testing.assert_close(found, w, rtol=TOLERANCE, atol=TOLERANCE * largest)
