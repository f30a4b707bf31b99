"""Models: shapes, published parameter counts, options, and names from torchvision and timm."""

import importlib.util
import sys

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pyengm.errors import ConfigError, DataError
from pyengm.models import Normalize, build, code_of, list_models
from pyengm.models.norm import group_norm, replace_batch_norm

# Small widths keep real forward passes fast; wrn multiplies its width by 10, 20 and 40.
SMALL = {name: 1 if name.startswith("wrn") else 8 for name in list_models()}


def meta(name, **options):
    """A model without memory behind it: shapes and counts at no cost."""
    with torch.device("meta"):
        return build(name, **options)


def count(model):
    return sum(p.numel() for p in model.parameters())


def small(name, **options):
    torch.manual_seed(0)
    return build(name, **({"in_channels": 1, "image_size": 8, "width": SMALL[name]} | options))


def pixels(n=4, channels=1, size=8, seed=1):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


def test_names():
    expected = {"cnn4", "cnn8", "vgg8", "resnet18", "preact_resnet18", "resnet50", "wrn_28_10", "wrn_34_10"}
    assert set(list_models()) == expected


@pytest.mark.parametrize("name", list_models())
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 32), (3, 33), (3, 64), (3, 96)])
def test_shapes(name, channels, size):
    model = meta(name, num_classes=7, in_channels=channels, image_size=size)
    assert model(torch.empty(2, channels, size, size, device="meta")).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("resnet18", {}, 11_173_962),
        ("resnet18", {"num_classes": 1000, "image_size": 224}, 11_689_512),  # torchvision
        ("resnet50", {}, 23_520_842),
        ("resnet50", {"num_classes": 1000, "image_size": 224}, 25_557_032),  # torchvision
        ("preact_resnet18", {}, 11_172_170),
        ("wrn_28_10", {}, 36_479_194),
        ("wrn_34_10", {}, 46_160_474),
        # By hand: convolutions, two values a norm channel, dense layers.
        ("cnn4", {"in_channels": 1, "image_size": 28}, 9 * 32 * 65 + 2 * 96 + 3136 * 128 + 128 + 1290),
        (
            "cnn8",
            {},
            9 * (3 * 64 + 64 * 64 + 64 * 128 + 128 * 128 + 128 * 196 + 196 * 196)
            + 2 * 2 * (64 + 128 + 196)
            + (16 * 196 * 256 + 256)
            + 2570,
        ),
        (
            "vgg8",
            {},
            9 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512 * 512)
            + 2 * (64 + 128 + 256 + 512 + 512)
            + 2 * (512 * 512 + 512)
            + 5130,
        ),
    ],
)
def test_parameter_counts(name, options, parameters):
    assert count(meta(name, **options)) == parameters


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_agrees_with_torchvision(name):
    """Above 64 pixels the network is torchvision's: the same weights give the same logits."""
    ours, theirs = meta(name, image_size=72), build(f"torchvision:{name}", image_size=72)
    weights = dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True))
    ours.load_state_dict(weights, assign=True)
    x = pixels(2, 3, 72)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("name", list_models())
def test_group_norm(name):
    modules = list(meta(name, norm_layer="gn").modules())
    assert not any(isinstance(m, _BatchNorm) for m in modules)
    assert any(isinstance(m, nn.GroupNorm) for m in modules)
    assert count(meta(name, norm_layer="gn")) == count(meta(name))


@pytest.mark.parametrize("channels", [1, 7, 8, 16, 24, 64, 160, 196, 512, 640])
def test_groups_hold_enough_channels(channels):
    """A group of few channels on a 1x1 map would have no gradient."""
    norm = group_norm(channels)
    assert norm.num_channels == channels
    assert norm.num_groups == 1 or (norm.num_groups <= 32 and channels // norm.num_groups >= 8)


@pytest.mark.parametrize("name", list_models())
@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_independence_of_the_examples(name, norm):
    """In training mode the examples are independent with group norm, not with batch norm."""
    model = small(name, norm_layer=norm).train()
    x = pixels()
    other = torch.cat([x[:1], pixels(3, seed=2)])
    with torch.no_grad():
        same = torch.allclose(model(x)[0], model(other)[0], rtol=1e-5, atol=1e-6)
    assert same == (norm == "gn")


@pytest.mark.parametrize("name", list_models())
@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_gradient_flows(name, norm):
    """Every parameter and every example gets a finite gradient that is not zero, at 8x8 too."""
    model = small(name, norm_layer=norm)
    x = pixels().requires_grad_()
    nn.functional.cross_entropy(model(x), torch.arange(4)).backward()
    assert x.grad.flatten(1).norm(dim=1).min() > 0
    for label, p in model.named_parameters():
        assert p.grad.isfinite().all(), label
        assert p.grad.abs().max() > 0, label


@pytest.mark.parametrize("name", list_models())
def test_state_dict_and_seed(name):
    """The same seed draws the same weights; a state dict carries everything, normalisation included."""
    constants = {"mean": [0.3], "std": [0.2]}
    model = small(name, **constants)
    for key, value in small(name, **constants).state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    model.train()(pixels())  # moves the running statistics
    torch.manual_seed(9)
    copy = build(name, in_channels=1, image_size=8, width=SMALL[name], mean=[0.0], std=[1.0])
    copy.load_state_dict(model.state_dict())
    assert torch.equal(copy.eval()(pixels()), model.eval()(pixels()))


@pytest.mark.parametrize("name", list_models())
def test_width(name):
    """Width is the number of channels of the first convolution, in every model."""
    model = meta(name, width=6)
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    assert first.out_channels == 6
    assert count(model) < count(meta(name))


def test_wrn_width_is_multiplied_by_ten():
    assert meta("wrn_28_10", width=4).head.in_features == 4 * 10 * 4


def test_normalize():
    x = pixels(2, 3)
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    expected = torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    layer = Normalize(mean, std)
    torch.testing.assert_close(layer(x), expected)
    assert set(layer.state_dict()) == {"mean", "std"}

    torch.manual_seed(0)
    plain = build("cnn4", image_size=8)
    torch.manual_seed(0)
    model = build("cnn4", image_size=8, mean=mean, std=std)
    torch.testing.assert_close(model.eval()(x), plain.eval()(expected))
    assert not any(isinstance(m, Normalize) for m in plain.modules())


def test_normalize_rejects_what_would_broadcast():
    layer = Normalize([0.1, 0.2, 0.3], [1, 1, 1])
    with pytest.raises(DataError, match=r"\(2, 1, 8, 8\)"):
        layer(pixels(2, 1))
    with pytest.raises(DataError, match="uint8"):
        layer(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, "num_classes must be an integer of at least 2"),
        ({"in_channels": 0}, "in_channels"),
        ({"image_size": 7}, "image_size must be an integer of at least 8, got 7"),
        ({"image_size": 32.0}, "image_size"),
        ({"width": 0}, "width"),
        ({"norm_layer": "ln"}, "norm_layer must be one of bn, gn"),
        ({"mean": [0.5] * 3}, "both mean and std"),
        ({"mean": [0.5], "std": [0.5]}, "3 channels, got 1"),
        ({"mean": [0.5] * 3, "std": [0.5, 0.5, 0.0]}, "positive"),
        ({"mean": 0.5, "std": 0.5}, "sequence"),
        ({"mean": [0.5] * 3, "std": [0.5] * 2}, "got 3 and 2"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ConfigError, match=message):
        build("cnn4", **options)


def test_unknown_name_lists_names():
    with pytest.raises(ConfigError) as error:
        build("resnet81")
    for name in [*list_models(), "torchvision:resnet18"]:
        assert name in str(error.value)
    assert "Close matches: resnet18" in str(error.value)


@pytest.mark.parametrize("name", ["robustbench:a", "torchvision:cnn4", "timm/resnet18", "", ":resnet18x", None, 3])
def test_unknown_names(name):
    with pytest.raises(ConfigError, match="unknown model"):
        build(name)


def test_torchvision():
    model = build("torchvision:resnet18", num_classes=7, in_channels=1, norm_layer="gn")
    assert model.fc.out_features == 7
    assert model.conv1.in_channels == 1
    assert not any(isinstance(m, _BatchNorm) for m in model.modules())
    assert model(pixels(1, 1, 32)).shape == (1, 7)
    # A bare name that is not ours is torchvision's; image_size reaches its transformers.
    assert count(meta("resnet34", num_classes=1000)) == 21_797_672
    assert meta("vit_b_16", image_size=64).image_size == 64


def test_torchvision_stem_keeps_the_variance_of_its_output():
    torch.manual_seed(0)
    old, new = build("torchvision:resnet18"), build("torchvision:resnet18", in_channels=12)
    old_weight, new_weight = old.conv1.weight, new.conv1.weight
    assert new_weight.shape == (64, 12, 7, 7)
    # 64 * 3 * 49 draws behind the scale: the estimate's relative deviation is 1 / sqrt(2 * 9408), 0.7 %.
    assert new_weight.std().item() == pytest.approx(old_weight.std().item() / 2, rel=0.05)


def test_torchvision_width():
    assert meta("torchvision:resnet50", width=32).layer1[0].conv2.out_channels == 32
    with pytest.raises(ConfigError, match="BasicBlock"):
        meta("torchvision:resnet34", width=32)
    with pytest.raises(ConfigError, match="resnets only"):
        meta("torchvision:squeezenet1_1", width=32)


def test_torchvision_refusals():
    with pytest.raises(ConfigError, match="has none"):
        meta("torchvision:squeezenet1_1", norm_layer="gn")
    with pytest.raises(ConfigError, match="indivisible by patch size"):
        meta("torchvision:vit_b_16", image_size=33)


def test_group_norm_of_a_shared_layer_and_of_other_types():
    shared = nn.BatchNorm2d(4)
    network = replace_batch_norm(nn.Sequential(shared, nn.Sequential(shared)))
    assert not any(isinstance(m, _BatchNorm) for m in network.modules())
    bare = replace_batch_norm(nn.Sequential(nn.BatchNorm2d(4, affine=False)))
    assert not list(bare.parameters())
    assert bare(pixels(2, 4)).shape == (2, 4, 8, 8)
    with pytest.raises(ConfigError, match="0 is a BatchNorm1d"):
        replace_batch_norm(nn.Sequential(nn.BatchNorm1d(4)))


def test_timm():
    pytest.importorskip("timm")
    model = build("vit_tiny_patch16_224", num_classes=7, in_channels=1, image_size=64)  # older ones fail on meta
    assert model(torch.rand(2, 1, 64, 64)).shape == (2, 7)
    assert count(meta("timm:resnet18", num_classes=1000)) == 11_689_512
    assert meta("timm:hrnet_w18_small")(torch.empty(1, 3, 64, 64, device="meta")).shape == (1, 10)
    with pytest.raises(ConfigError, match="width"):
        meta("timm:resnet18", width=32)
    with pytest.raises(ConfigError, match="has none"):
        build("timm:vit_tiny_patch16_224", norm_layer="gn")
    with pytest.raises(ConfigError, match="vit_tiny_patch16_224"):
        build("timm:vit_tinny_patch16_224")


def test_timm_group_norm_keeps_fused_activations():
    layers = pytest.importorskip("timm.layers")
    bn, gn = meta("timm:mobilenetv3_small_100"), meta("timm:mobilenetv3_small_100", norm_layer="gn")
    fused = [(path, m) for path, m in bn.named_modules() if isinstance(m, layers.BatchNormAct2d)]
    assert fused
    for path, module in fused:
        assert type(gn.get_submodule(path).act) is type(module.act)


def test_missing_timm(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("pyengm.models.from_timm.find_spec", lambda name: None if name == "timm" else find_spec(name))
    for name in ["timm:vit_tiny_patch16_224", "vit_tiny_patch16_224"]:
        with pytest.raises(ConfigError, match=r'pip install "pyengm\[timm\]"'):
            build(name)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module of the user, and returns the name of a function in it as the name of a model."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(text, function="make_model"):
        (tmp_path / "module_of_models.py").write_text("import torch\nfrom torch import nn\n" + text)
        monkeypatch.delitem(sys.modules, "module_of_models", raising=False)
        return f"module_of_models:{function}"

    yield write
    sys.modules.pop("module_of_models", None)


LINEAR = """
def make_model(num_classes, image_size):
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.LazyLinear(num_classes))
"""


def test_models_of_the_user(module):
    model = build(module(LINEAR), num_classes=7, image_size=12)
    assert model(torch.rand(2, 3, 12, 12)).shape == (2, 7)
    assert model.training
    normalized = build("module_of_models:make_model", mean=(0.5,) * 3, std=(0.25,) * 3, norm_layer="gn")
    assert isinstance(normalized.normalize, Normalize)
    assert isinstance(normalized.network[1], nn.GroupNorm)
    assert code_of("module_of_models:make_model") == "module_of_models:make_model"
    assert not any(map(code_of, ("resnet18", "timm:resnet18", "torchvision:x", "robustbench:x", None)))


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        ("def make_mode(): pass", {}, r"no function or class 'make_model' \(did you mean make_mode\?\)"),
        ("def make_model(): return 3", {}, "expected a torch.nn.Module from module_of_models:make_model, got int"),
        ("def make_model(depth): pass", {}, "'depth'; the arguments that it can have: num_classes, in_channels"),
        ("def make_model(): return 1 / 0", {}, "failed with ZeroDivisionError"),
        (LINEAR, {"width": 8}, "width is 8, and module_of_models:make_model has no such argument"),
        (LINEAR, {"in_channels": 1}, r"does not take images of shape \(1, 32, 32\)"),
        ("def make_model(): return nn.Flatten()", {}, "has 3072 classes, the data have 10; a function with"),
        ("def make_model(): return nn.Identity()", {}, r"expected logits of shape \(2, classes\)"),
    ],
)
def test_models_of_the_user_that_do_not_fit(module, text, options, says):
    with pytest.raises(ConfigError, match=says):
        build(module(text), **options)
