"""Models that return more than logits."""

from collections import namedtuple
from types import SimpleNamespace

import pytest
from helpers.attacked import batch, network
from torch import nn

from pyengm.attacks import PGD
from pyengm.errors import ModelError
from pyengm.methods import TRADES
from pyengm.models import Classifier

Pair = namedtuple("Pair", "logits aux_logits")


class Returns(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.net, self.function = network("bn"), function

    def forward(self, x):
        return self.function(self.net(x))


FORMS = {
    "tensor": (lambda z: z, None),
    "dict": (lambda z: {"loss": 0, "logits": z}, None),
    "dict by key": (lambda z: {"out": z, "logits": -z}, "out"),
    "object": (lambda z: SimpleNamespace(logits=z), None),
    "named tuple": (lambda z: Pair(z, -z), None),
    "tuple": (lambda z: (-z, z), 1),
    "attribute": (lambda z: SimpleNamespace(scores=z), "scores"),
    "function": (lambda z: [{"a": z}], lambda returned: returned[0]["a"]),
}


@pytest.mark.parametrize(("function", "output"), FORMS.values(), ids=FORMS)
def test_the_logits_are_picked(function, output):
    model, (x, y) = Returns(function), batch()
    picked = Classifier(model, output)
    assert picked.eval()(x).equal(network("bn")(x))
    assert dict(picked.named_parameters()).keys() == {f"model.{name}" for name, _ in model.named_parameters()}
    attack = PGD(0.1, 0.05, 2, random_start=False)
    assert attack(picked, x, y).equal(attack(network("bn"), x, y))
    assert TRADES(0.1)(picked.train(), x, y).losses.shape == (6,)


def test_functions():
    net, (x, _) = network(), batch()
    assert Classifier(lambda t: {"logits": net(t)})(x).equal(net(x))
    assert list(Classifier(lambda t: net(t)).parameters()) == []


@pytest.mark.parametrize(
    ("function", "output", "says"),
    [
        (lambda z: (z, z), None, "got a tuple of 2"),
        (lambda z: {"out": z}, None, "got a dict of out; wrap"),
        (lambda z: {"out": z}, "logits", "output='logits': the model returns a dict of out, which has no such entry"),
        (lambda z: (z, z), 2, "output=2: the model returns a tuple, which has no such entry"),
        (lambda z: SimpleNamespace(logits=z), "scores", "output='scores': the model returns a SimpleNamespace"),
        (lambda z: {"logits": z[:, :1]}, None, "at least two logits"),
    ],
)
def test_places_without_logits(function, output, says):
    with pytest.raises(ModelError, match=says):
        Classifier(Returns(function), output)(batch()[0])
