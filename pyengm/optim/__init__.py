"""Outer optimisers: torch.optim.Optimizers whose `backward` takes per-example losses (n,)."""

from pyengm.optim.aengm import AENGM
from pyengm.optim.base import PerExampleSGD
from pyengm.optim.engm import ENGM
from pyengm.optim.entropy_sgd import EntropySGD
from pyengm.optim.entropy_sgd2 import EntropySGD2
from pyengm.optim.fengm import FENGM
from pyengm.optim.hyperparameter import Hyperparameter, defaults_of, hyperparameters_of
from pyengm.optim.mgnc import MGNC
from pyengm.optim.msgd import MSGD
from pyengm.optim.nengm import NENGM
from pyengm.optim.scale_alpha import scale_alpha
from pyengm.optim.sngm import SNGM
from pyengm.pergrad import ExampleWeights

OPTIMIZERS: dict[str, type[PerExampleSGD]] = {  # one `backward` and one `step` for every mini-batch
    "msgd": MSGD,
    "engm": ENGM,
    "mgnc": MGNC,
    "sngm": SNGM,
    "fengm": FENGM,
    "aengm": AENGM,
    "nengm": NENGM,
}
CLOSURE_OPTIMIZERS: dict[str, type[EntropySGD]] = {  # `step(closure)` draws the mini-batches
    "entropy_sgd": EntropySGD,
    "entropy_sgd2": EntropySGD2,
}

__all__ = [
    "AENGM",
    "CLOSURE_OPTIMIZERS",
    "ENGM",
    "FENGM",
    "MGNC",
    "MSGD",
    "NENGM",
    "OPTIMIZERS",
    "SNGM",
    "EntropySGD",
    "EntropySGD2",
    "ExampleWeights",
    "Hyperparameter",
    "PerExampleSGD",
    "defaults_of",
    "hyperparameters_of",
    "scale_alpha",
]
