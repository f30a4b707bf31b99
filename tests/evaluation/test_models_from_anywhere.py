"""evaluate() for models and data from anywhere: equal to the evaluation of the same module, or an error."""

import sys
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import timm
import torch
import torchvision
from helpers.evaluation import LINF, data_for, info, make_images, network
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pyengm.attacks import ThreatModel
from pyengm.errors import CheckpointError, ConfigError, DataError, ModelError, NonFiniteError, PyengmError
from pyengm.evaluation import evaluate, find_source
from pyengm.models import load_from_robustbench, save_checkpoint

WEAK = ThreatModel("linf", 0.02)


@pytest.fixture(scope="module")
def data():
    return data_for(network())


@pytest.fixture(scope="module")
def expected(data):
    return evaluate(network(), data, attacks=["pgd20"], threat=WEAK)


class Returns(nn.Module):
    def __init__(self, net, function):
        super().__init__()
        self.net, self.function = net, function

    def forward(self, x):
        return self.function(self.net(x))


class OfRobustBench(nn.Module):
    """A model in the style of RobustBench's zoo: pixels in [0, 1], its statistics as buffers, logits."""

    def __init__(self, net):
        super().__init__()
        self.register_buffer("mu", torch.zeros(1, 1, 1, 1))
        self.register_buffer("sigma", torch.ones(1, 1, 1, 1))
        self.net = net

    def forward(self, x):
        return self.net((x - self.mu) / self.sigma)


NETWORK = network()
FORMS = {
    "function": lambda: (lambda x: NETWORK(x), None),
    "function that returns a dict": lambda: (lambda x: {"logits": NETWORK(x)}, None),
    "function that returns a tuple": lambda: (lambda x: (x, NETWORK(x)), 1),
    "method": lambda: (NETWORK.forward, None),
    "dict": lambda: (Returns(network(), lambda z: {"out": z}), "out"),
    "output of transformers": lambda: (Returns(network(), lambda z: SimpleNamespace(loss=None, logits=z)), None),
    "RobustBench": lambda: (OfRobustBench(network()), None),
    "training mode": lambda: (network().train(), None),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_models_in_python(form, data, expected):
    model, output = form()
    training = getattr(model, "training", None)
    assert evaluate(model, data, attacks=["pgd20"], threat=WEAK, output=output) == expected
    assert getattr(model, "training", None) == training


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, data, expected):
    found = evaluate(network().to(dtype), data, attacks=["pgd20"], threat=WEAK)
    # A few images at the boundary change sides.
    assert all(abs(found[name] - value) <= 0.1 for name, value in expected.items())


def test_inference_mode_and_channels_last(data, expected):
    with torch.inference_mode():
        assert evaluate(NETWORK, data, attacks=["pgd20"], threat=WEAK) == expected
    model = network().to(memory_format=torch.channels_last)
    found = evaluate(model, data, attacks=["pgd20"], threat=WEAK)
    assert all(abs(found[name] - value) <= 1 / 40 for name, value in expected.items())


@pytest.mark.parametrize(
    "form",
    [
        lambda x, y: (x, y),
        lambda x, y: (x.numpy(), y.numpy()),
        lambda x, y: DataLoader(TensorDataset(x, y), batch_size=7),
        lambda x, y: TensorDataset(x, y),
    ],
    ids=["tensors", "arrays", "loader", "data set"],
)
def test_data_in_python(form):
    data = data_for(network())
    found = evaluate(NETWORK, form(data.images / 255, data.labels), attacks=["fgsm"], threat=WEAK)
    assert found == evaluate(NETWORK, data, attacks=["fgsm"], threat=WEAK)  # FGSM: no random start by index


def test_images_that_are_not_square_and_few_labels():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
    x, y = torch.rand(6, 3, 10, 6), torch.tensor([0, 1, 0, 1, 1, 0])
    found = evaluate(net, (x, y), threat=WEAK)  # the members of AutoAttack are those for 5 classes
    assert "after_apgd_t" in found
    assert 0 <= found["autoattack"] <= found["natural"]


def test_modes(data):
    model = nn.Sequential(network(), nn.Dropout(0.5))
    torch.manual_seed(0)
    evaluated = evaluate(model, data, attacks=["fgsm"], threat=WEAK)
    assert evaluated == evaluate(model, data, attacks=["fgsm"], threat=WEAK)
    dropped = evaluate(model, data, attacks=["fgsm"], threat=WEAK, bn="batch_stats")
    assert dropped["natural"] < evaluated["natural"]
    with pytest.raises(ConfigError, match="AutoAttack attacks models in eval mode only"):
        evaluate(model, data, threat=WEAK, bn="train")
    with pytest.raises(ConfigError, match="batch-norm mode is 'frozen'"):
        evaluate(model, data, attacks=["fgsm"], threat=WEAK, bn="frozen")


def test_checkpoints_and_run_folders(data, expected, tmp_path):
    save_checkpoint(tmp_path / "best.safetensors", network(), info())
    for target in (tmp_path, str(tmp_path / "best.safetensors")):
        assert evaluate(target, data, attacks=["pgd20"], threat=WEAK) == expected
    # The threat model of the training, linf with 0.05.
    assert evaluate(tmp_path, data, attacks=["pgd20"]) == evaluate(
        network(), data, attacks=["pgd20"], threat=ThreatModel("linf", 0.05)
    )
    with pytest.raises(DataError, match=r"trained on made: 10 classes, images of shape \(1, 8, 8\); made has"):
        evaluate(tmp_path, make_images(side=9))


def test_names_with_weights(data, expected, tmp_path):
    torch.save({"state_dict": {"module." + name: t for name, t in network().state_dict().items()}}, tmp_path / "w.pt")
    options = {"weights": tmp_path / "w.pt", "model_options": {"width": 4}}
    assert evaluate("cnn4", data, attacks=["pgd20"], threat=WEAK, **options) == expected
    torch.save({"model": network().state_dict(), "model_ema": network(seed=1).state_dict()}, tmp_path / "w.pt")
    with pytest.warns(UserWarning, match="model is used"):
        assert evaluate("cnn4", data, attacks=["pgd20"], threat=WEAK, **options) == expected
    averaged = evaluate("cnn4", data, attacks=["pgd20"], threat=WEAK, entry="model_ema", **options)
    assert averaged == evaluate(network(seed=1), data, attacks=["pgd20"], threat=WEAK)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_weights_of_libraries(library, tmp_path):
    torch.manual_seed(0)
    make = {"timm": lambda: timm.create_model("resnet18", num_classes=7), "torchvision": lambda: resnet(7)}[library]
    theirs, (x, y) = make().eval(), (torch.rand(6, 3, 32, 32), torch.arange(6) % 7)
    y[:4] = theirs(torch.rand(4, 3, 32, 32)).argmax(1)
    y[5] = 6
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    options = {"attacks": ["fgsm"], "threat": WEAK}
    assert evaluate(f"{library}:resnet18", (x, y), weights=tmp_path / "theirs.pt", **options) == evaluate(
        theirs, (x, y), **options
    )
    # mean and std of the training go in front.
    mean_std = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    normalized = evaluate(
        f"{library}:resnet18", (x, y), weights=tmp_path / "theirs.pt", model_options=mean_std, **options
    )
    assert normalized == evaluate(lambda t: theirs((t - 0.5) / 0.25), (x, y), **options)


def resnet(num_classes):
    return torchvision.models.resnet18(num_classes=num_classes)


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    text = "from helpers.evaluation import network\ndef make_model(width): return network(seed=1)\n"
    (tmp_path / "module_to_evaluate.py").write_text(text + "def as_dict():\n    return Dict()\n")
    yield "module_to_evaluate"
    sys.modules.pop("module_to_evaluate", None)


def test_functions_of_the_user_by_name(module, data, expected, tmp_path):
    torch.save(network().state_dict(), tmp_path / "w.pt")
    options = {"attacks": ["pgd20"], "threat": WEAK, "model_options": {"width": 4}}
    assert evaluate(f"{module}:make_model", data, weights=tmp_path / "w.pt", **options) == expected
    with_own_weights = evaluate(f"{module}:make_model", data, **options)
    assert with_own_weights == evaluate(network(seed=1), data, attacks=["pgd20"], threat=WEAK)


def test_robustbench_without_the_package(monkeypatch, tmp_path):
    monkeypatch.setattr("pyengm.models.from_robustbench.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="robustbench is not installed: pip install"):
        load_from_robustbench("Standard", "cifar10", "linf", tmp_path)


def test_robustbench(monkeypatch, tmp_path):
    """With a package in the place of robustbench, which has the zoo's function and no network."""
    calls = []

    def load_model(name, *, model_dir, dataset, threat_model):
        calls.append((name, dataset, threat_model))
        if name != "Standard":
            raise KeyError(name)
        return OfRobustBench(network())

    utils = SimpleNamespace(load_model=load_model)
    monkeypatch.setitem(sys.modules, "robustbench", SimpleNamespace(utils=utils, __spec__=object()))
    monkeypatch.setitem(sys.modules, "robustbench.utils", utils)
    data = data_for(network())
    data.name = "cifar10"
    found = evaluate("robustbench:Standard", data, attacks=["fgsm"], threat=[ThreatModel("l2", 0.1)])
    assert found == evaluate(network(), data, attacks=["fgsm"], threat=ThreatModel("l2", 0.1))
    assert calls == [("Standard", "cifar10", "L2")]
    with pytest.raises(ConfigError, match="robustbench cannot load 'Other' for cifar10 and Linf: KeyError: 'Other'"):
        evaluate("robustbench:Other", data, threat=LINF)
    data.name = "made"
    with pytest.raises(ConfigError, match="zoo has models for cifar10, cifar100, imagenet, not for 'made'"):
        evaluate("robustbench:Standard", data, threat=LINF)


LAYERS = OrderedDict(flatten=nn.Flatten(), head=nn.Linear(64, 4))
WRONG = {
    "no threat model": (lambda d, t: (NETWORK, d, {}), r"threat=, such as ThreatModel\('linf', 8/255\)"),
    "no model": (lambda d, t: (3, d, {"threat": WEAK}), "expected a model, a function, a file or a name, got int"),
    "no data": (lambda d, t: (NETWORK, 3, {"threat": WEAK}), "expected the name of a data set"),
    "fewer classes": (lambda d, t: (nn.Sequential(LAYERS), d, {"threat": WEAK}), "has 4 classes, and made has 10"),
    "a tuple": (lambda d, t: (lambda x: (x, x), d, {"threat": WEAK}), "got a tuple of 2; wrap the model"),
    "other images": (lambda d, t: (resnet(10), d, {"threat": WEAK}), r"does not take images of shape \(1, 8, 8\)"),
    "nan": (lambda d, t: (lambda x: NETWORK(x) * torch.nan, d, {"threat": WEAK}), "nan or infinite"),
    "options of names": (lambda d, t: (NETWORK, d, {"threat": WEAK, "weights": t}), "load the weights of this one"),
    "device": (lambda d, t: (NETWORK, d, {"threat": WEAK, "device": "cuda:77"}), "device 'cuda:77' cannot be used"),
    "random weights": (lambda d, t: ("cnn4", d, {"threat": WEAK}), "cnn4 alone has random weights: give its weights"),
    "unknown name": (lambda d, t: ("cnn44", d, {"threat": WEAK}), "unknown model 'cnn44'. Close matches: cnn4"),
    "missing file": (lambda d, t: (t / "a.pt", d, {"threat": WEAK}), "there is no checkpoint .*a.pt"),
    "empty folder": (lambda d, t: (t, d, {"threat": WEAK}), "there is no checkpoint .*best.safetensors"),
    "weights of a checkpoint": (
        lambda d, t: (t / "c.safetensors", d, {"threat": WEAK, "weights": t / "c.safetensors"}),
        "weights would have no effect: .*c.safetensors describes its own model",
    ),
}


@pytest.mark.parametrize(("make", "says"), WRONG.values(), ids=WRONG)
def test_wrong_input(make, says, tmp_path):
    save_checkpoint(tmp_path / "c.safetensors", network(), info())
    model, data, options = make(make_images(), tmp_path)
    with pytest.raises(PyengmError, match=says) as error:
        evaluate(model, data, **options)
    assert isinstance(error.value, (ConfigError, DataError, ModelError, CheckpointError, NonFiniteError))


def test_sources_are_told_apart(tmp_path):
    data = make_images()
    save_checkpoint(tmp_path / "a.safetensors", network(), info())
    save_checkpoint(tmp_path / "b.safetensors", network(), info())
    a, b = (find_source(tmp_path / name, data) for name in ("a.safetensors", "b.safetensors"))
    assert a.identity() == b.identity()
    torch.save(network().state_dict(), tmp_path / "w.pt")
    options = {"weights": tmp_path / "w.pt", "model_options": {"width": 4}}
    named = find_source("cnn4", data, **options)
    assert named.identity() == find_source("cnn4", data, **options).identity()
    others = [find_source("cnn4", data, **{**options, **{key: value}}) for key, value in
              (("entry", "x"), ("output", 0), ("model_options", {"width": 5}))]  # fmt: skip
    assert len({source.identity() for source in (a, named, *others)}) == 5
    assert named.load()(torch.zeros(1, 1, 8, 8)).equal(network()(torch.zeros(1, 1, 8, 8)))
