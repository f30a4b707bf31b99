"""What models may return, what images may be, and the modes of torch that attacks work in."""

import copy
import warnings
from inspect import signature
from types import SimpleNamespace

import pytest
import torch
from helpers.attacked import batch, network
from torch import nn

from pyengm.attacks import CW, FGSM, FOSCPGD, PGD, AutoAttack, DeepFool, ThreatModel, fosc_of
from pyengm.attacks.autoattack import MEMBERS
from pyengm.attacks.half_precision import in_float32
from pyengm.attacks.logits import CheckedModel
from pyengm.attacks.losses import cross_entropy
from pyengm.attacks.validation import ROUNDING
from pyengm.data import ImageDataset
from pyengm.errors import ConfigError, DataError, ModelError, PyengmError
from pyengm.evaluation import accuracy, run_autoattack
from pyengm.methods import METHODS, DatasetSpec, Natural
from pyengm.ops import Key
from pyengm.utils.checks import Checks

CPU = torch.device("cpu")
ATTACKS = {
    "PGD": PGD(0.1, 0.05, 2),
    "PGD, kl": PGD(0.1, 0.05, 2, loss="kl"),
    "PGD, restarts": PGD(0.1, 0.05, 2, restarts=2),
    "FGSM": FGSM(0.1),
    "CW": CW(0.1, steps=2),
    "FOSCPGD": FOSCPGD(0.1, 0.05, 2),
    "DeepFool": DeepFool(),
    "AutoAttack": AutoAttack(0.1, attacks="apgd-ce"),
    "fosc_of": lambda model, x, y: fosc_of(model, x, x, y, ThreatModel("linf", 0.1)),
}
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)


class Returns(nn.Module):
    """A model that returns a function of another one's logits."""

    def __init__(self, net, function):
        super().__init__()
        self.net, self.function = net, function

    def forward(self, x):
        return self.function(self.net(x))


WRONG = {
    "tuple": (lambda z: (z, z), r"got a tuple of 2; wrap the model: pyengm.models.Classifier\(model, output=0"),
    "dict": (lambda z: {"logits": z}, r"got a dict of logits; wrap the model: .*output='logits'"),
    "object": (lambda z: SimpleNamespace(logits=z), "got SimpleNamespace"),
    "one logit": (lambda z: z[:, :1], r"at least two logits per image from the model, got shape \(\d+, 1\).*torch.cat"),
    "a vector": (lambda z: z[:, 0], r"shape \(\d+, classes\) from the model, got shape \(\d+,\)"),
    "a map": (lambda z: z[:, :, None], r"got shape \(\d+, 10, 1\)"),
    "other images": (lambda z: z[1:], r"shape \(\d+, classes\) from the model, got shape \(\d+, 10\)"),
    "integers": (lambda z: z.long(), "floating point from the model, got torch.int64"),
    "few classes": (lambda z: z[:, :3], "expected labels from 0 to 2, as the model has 3 classes, got 7"),
}


@every_attack
@pytest.mark.parametrize(("function", "says"), WRONG.values(), ids=WRONG)
def test_every_attack_refuses_what_are_no_logits(attack, function, says):
    x, y = batch()
    y[1] = 7
    with pytest.raises(DataError if "labels" in says else ModelError, match=says):
        attack(Returns(network(), function), x, y)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("function", "says"), WRONG.values(), ids=WRONG)
def test_every_method_refuses_what_are_no_logits(name, function, says):
    options = {"eps": 0.1, "epochs": 10, "norm": "linf"}
    method = METHODS[name](
        **{key: value for key, value in options.items() if key in signature(METHODS[name]).parameters}
    )
    x, y = batch()
    y[1] = 7
    dataset = DatasetSpec(torch.arange(6), (1, 8, 8), padding=1, batches=1, seed=0, device=CPU)
    method.prepare(dataset)
    model = Returns(network("bn"), function).train()
    method.start_epoch(model, 0)
    with pytest.raises(PyengmError, match=says):
        next(iter(method.passes(model, x, y, Key(3, 0, torch.arange(6)))))


def test_one_logit_has_no_robust_accuracy():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    data = ImageDataset((batch(8)[0] * 255).byte(), [0, 1] * 4, ("no", "yes"), "made", "test")
    for attack in (None, PGD(1.0, 0.5, 2)):
        with pytest.raises(ModelError, match="at least two logits"):
            accuracy(net, data, attack, seed=0, device=CPU)
    with pytest.raises(ModelError, match="at least two logits"):
        run_autoattack(AutoAttack(0.5), net, data, device=CPU)
    # The advice gives a model with the same decisions.
    two = Returns(net, lambda z: torch.cat([torch.zeros_like(z), z], dim=1))
    x, y = batch(8)
    assert two(x).argmax(1).equal((net(x)[:, 0] > 0).long())
    assert torch.allclose(two(x).softmax(1)[:, 1], net(x)[:, 0].sigmoid())
    assert PGD(0.1, 0.05, 2)(two, x, y % 2).shape == x.shape


def test_labels_of_natural_training_are_checked():
    x, y = batch()
    with pytest.raises(DataError, match="labels from 0 to 9, as the model has 10 classes, got 12"):
        Natural()(network(), x, y + 12 - y.max())


@every_attack
def test_functions_and_methods_are_models(attack):
    model, (x, y) = network("bn"), batch()
    torch.manual_seed(0)
    expected = attack(model, x, y)
    for function in (lambda t: model(t), model.forward):
        torch.manual_seed(0)
        # Batch norm runs as one product and one sum in a module, and in the order of its formula in a function.
        torch.testing.assert_close(attack(function, x, y), expected, rtol=1e-4, atol=1e-4)


def test_a_method_of_a_module_is_in_the_mode_of_the_attack_and_a_function_in_its_own():
    model, (x, y) = network("bn").train(), batch()
    modes = []
    model.register_forward_pre_hook(lambda module, inputs: modes.append(module.training))
    FGSM(0.1)(model.__call__, x, y)
    FGSM(0.1)(lambda t: model(t), x, y)
    assert modes == [False, True]
    assert model.training
    with pytest.raises(ConfigError, match=r"bn='train' is for models that are torch.nn.Module; this one is a function"):
        FGSM(0.1, bn="train")(lambda t: model(t), x, y)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@every_attack
def test_models_of_other_types_get_images_in_their_own(attack, dtype):
    x, y = batch()
    x_adv = attack(network(dtype=dtype), x, y)
    assert x_adv.dtype == torch.float32
    assert x_adv.isfinite().all()


def test_a_half_precision_model_is_attacked_as_in_float32():
    x, y = batch()
    whole, half = (
        PGD(0.1, 0.05, 3, random_start=False)(network(dtype=d), x, y) for d in (torch.float32, torch.float16)
    )
    # Signs of gradients near zero may differ; the moves of nearly all pixels are the same.
    assert (whole == half).float().mean() > 0.95


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_all_of_autoattack_in_half_precision(member, norm, dtype):
    model, (x, y) = network(dtype=dtype), batch(12)
    y = model(x.to(dtype)).argmax(1)
    attack = AutoAttack({"linf": 0.1, "l2": 1.0}[norm], norm=norm, attacks=member)
    x_adv = attack(model, x, y)
    assert x_adv.dtype == torch.float32
    fooled = model(x_adv.to(dtype)).argmax(1) != y
    expected = network()(attack(network(), x, y)).argmax(1) != y
    assert abs(fooled.sum() - expected.sum()) <= 2  # examples at the boundary change sides


def test_small_gradients_of_float16_are_not_lost():
    x, y = batch()[0], torch.zeros(6, dtype=torch.int64)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        model[1].bias[0] = 18  # a confident model: the gradients of its loss are below 6e-8

    def gradient(function):
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(cross_entropy(function(leaf), y).sum(), leaf)[0]

    expected, half = gradient(model), copy.deepcopy(model).half()
    found = gradient(in_float32(CheckedModel(half)))
    assert found.dtype == torch.float32
    # The logits near 18 are multiples of 2**-6, and their gradients with them off by a factor of e**2**-6.
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05 * expected.abs().max().item())
    assert (gradient(lambda t: half(t.half())) == 0).float().mean() > 0.3


@every_attack
def test_inference_mode(attack):
    model, (x, y) = network(), batch()
    torch.manual_seed(0)
    expected = attack(model, x, y)
    with torch.inference_mode():
        inside, (x, y) = network(), batch()  # made in inference mode
        torch.manual_seed(0)
        assert attack(model, x, y).equal(expected)
        assert torch.is_inference_mode_enabled()
        with pytest.raises(ModelError, match="made in inference mode"):
            attack(inside, x, y)
    torch.manual_seed(0)
    assert attack(model, x, y).equal(expected)


@every_attack
def test_channels_last(attack):
    model, (x, y) = network(), batch()
    x = torch.cat([x] * 3, dim=1)
    model = nn.Sequential(nn.Conv2d(3, 1, 1), model)
    torch.manual_seed(0)
    expected = attack(model, x, y)
    torch.manual_seed(0)
    found = attack(model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last), y)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("attack", [ATTACKS["PGD"], ATTACKS["AutoAttack"]])
def test_images_off_by_a_rounding_error_are_clipped(attack):
    model, (x, y) = network(), batch()
    mean, std = torch.tensor(0.4914), torch.tensor(0.2023)
    x[:, :, :4] = x[:, :, :4].round()
    off = (x - mean) / std * std + mean + 2**-23  # such a round trip, and one rounding more
    assert off.min() < 0 or off.max() > 1
    torch.manual_seed(0)
    expected = attack(model, off.clamp(0, 1), y)
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match=r"outside \[0, 1\] by a rounding error"):
        assert attack(model, off, y).equal(expected)
    with pytest.raises(DataError, match="expected images with values in"):
        attack(model, x + 2 * ROUNDING, y)


def test_clipping_warns_once():
    model, (x, y) = network(), batch()
    x[0, 0, 0, 0] = 1 + ROUNDING / 2
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            FGSM(0.1)(model, x, y)
    assert len(caught) == 1


def test_collected_checks_clip_nothing():
    model, (x, y) = network(), batch()
    x[0, 0, 0, 0] = 1 + ROUNDING / 2
    checks = Checks()
    with checks.at("step 1"):
        FGSM(0.1)(model, x, y)
    with pytest.raises(DataError, match="step 1: expected images with values in"):
        checks.read()


@pytest.mark.parametrize(
    ("dtype", "says"), [(torch.uint8, "pass x / 255"), (torch.float16, r"pass x.float\(\)"), (torch.int64, "float32")]
)
def test_images_of_other_types_are_refused(dtype, says):
    x, y = batch()
    with pytest.raises(DataError, match=says):
        FGSM(0.1)(network(), x.to(dtype), y)
