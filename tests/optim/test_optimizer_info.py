"""The records of the optimisers, and what reads them."""

import inspect
import re

import pytest

from pyengm import optim
from pyengm.errors import ConfigError
from pyengm.optim import CLOSURE_OPTIMIZERS, MSGD, OPTIMIZERS, OptimizerInfo, PerExampleSGD, register_optimizer
from pyengm.training import TrainConfig, build_components

ALL = OPTIMIZERS | CLOSURE_OPTIMIZERS


def test_every_optimizer_is_registered_and_exported():
    assert all(name == kind.info.name for name, kind in ALL.items())
    assert all(getattr(optim, kind.__name__) is kind for kind in ALL.values())
    assert not any(kind.info.takes_closure for kind in OPTIMIZERS.values())
    assert all(kind.info.takes_closure for kind in CLOSURE_OPTIMIZERS.values())


@pytest.mark.parametrize("name", ALL)
def test_every_argument_has_its_text(name):
    arguments = inspect.signature(ALL[name]).parameters
    text = inspect.getdoc(ALL[name]).partition("Args:\n")[2].partition("\n\n")[0]
    assert set(re.findall(r"^    (\w+): ", text, re.MULTILINE)) == set(arguments)


def test_an_optimizer_is_one_class():
    try:

        @register_optimizer
        class Halved(MSGD):
            """Momentum SGD on half of the gradient."""

            info = OptimizerInfo(name="halved", title="momentum SGD on half of the gradient")

            def _transform_grads(self) -> None:
                for group in self.param_groups:
                    for p in group["params"]:
                        p.grad.mul_(0.5)

        config = TrainConfig.from_flat(model="cnn4", width=2, optimizer="halved").resolve()
        assert type(build_components(config).optimizer) is Halved
    finally:
        OPTIMIZERS.pop("halved", None)


def test_names_are_taken_once():
    class NoName(PerExampleSGD):
        pass

    class Second(PerExampleSGD):
        info = OptimizerInfo(name="entropy_sgd")

    with pytest.raises(ConfigError, match="NoName has no name"):
        register_optimizer(NoName)
    with pytest.raises(ConfigError, match="'entropy_sgd' of Second is taken by EntropySGD"):
        register_optimizer(Second)
    assert "entropy_sgd" not in OPTIMIZERS
