"""Optimisers whose `backward` takes per-example losses (n,); each is a torch.optim.Optimizer."""

import importlib
import pkgutil

from pyengm.optim.aengm import AENGM
from pyengm.optim.base import PerExampleSGD
from pyengm.optim.engm import ENGM
from pyengm.optim.entropy_sgd import EntropySGD
from pyengm.optim.entropy_sgd2 import EntropySGD2
from pyengm.optim.fengm import FENGM
from pyengm.optim.hyperparameter import Hyperparameter, defaults_of, hyperparameters_of
from pyengm.optim.info import OptimizerInfo
from pyengm.optim.mgnc import MGNC
from pyengm.optim.msgd import MSGD
from pyengm.optim.muon import Muon
from pyengm.optim.nengm import NENGM
from pyengm.optim.ps_clip_sgd import PSClipSGD
from pyengm.optim.registry import CLOSURE_OPTIMIZERS, OPTIMIZERS, register_optimizer
from pyengm.optim.scale_alpha import scale_alpha
from pyengm.optim.sngm import SNGM
from pyengm.pergrad import PerExampleStats

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):  # a new file registers its optimiser by being here
    importlib.import_module(_module.name)
for _registry in (OPTIMIZERS, CLOSURE_OPTIMIZERS):
    for _name in sorted(_registry):
        _registry[_name] = _registry.pop(_name)

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
    "Hyperparameter",
    "Muon",
    "OptimizerInfo",
    "PSClipSGD",
    "PerExampleSGD",
    "PerExampleStats",
    "defaults_of",
    "hyperparameters_of",
    "register_optimizer",
    "scale_alpha",
]
