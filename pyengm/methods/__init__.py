"""Training methods: how a batch becomes per-example losses."""

import importlib
import pkgutil

from pyengm.methods.atas import ATAS
from pyengm.methods.atta import ATTA
from pyengm.methods.awp import AWP, MARTAWP, PGDATAWP, TRADESAWP
from pyengm.methods.base import AttackMethod, Method, SinglePassMethod, StepOutput
from pyengm.methods.curriculum import Curriculum
from pyengm.methods.dataset_spec import DatasetSpec
from pyengm.methods.dynamic import Dynamic, c_max_from
from pyengm.methods.fgsm_pgi import FGSMPGI
from pyengm.methods.fgsm_rs import FGSMRS
from pyengm.methods.fgsm_sdi import FGSMSDI
from pyengm.methods.fgsm_then_pgd import FGSMThenPGD
from pyengm.methods.free_at import FreeAT
from pyengm.methods.grad_align import GradAlign
from pyengm.methods.info import MethodInfo, PassCounts, ShortRun
from pyengm.methods.instance_log import LogsInstances
from pyengm.methods.mart import MART
from pyengm.methods.natural import Natural
from pyengm.methods.nuat import NuAT
from pyengm.methods.per_example_buffer import BufferSlot, PerExampleBuffer
from pyengm.methods.pgd_at import PGDAT
from pyengm.methods.registry import METHODS, register_method
from pyengm.methods.ssat import SSAT
from pyengm.methods.sub_at import SubAT
from pyengm.methods.trades import TRADES
from pyengm.methods.yopo import YOPO

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):  # a new file registers its method by being here
    importlib.import_module(_module.name)
for _name in sorted(METHODS):
    METHODS[_name] = METHODS.pop(_name)

__all__ = [
    "ATAS",
    "ATTA",
    "AWP",
    "FGSMPGI",
    "FGSMRS",
    "FGSMSDI",
    "MART",
    "MARTAWP",
    "METHODS",
    "PGDAT",
    "PGDATAWP",
    "SSAT",
    "TRADES",
    "TRADESAWP",
    "YOPO",
    "AttackMethod",
    "BufferSlot",
    "Curriculum",
    "DatasetSpec",
    "Dynamic",
    "FGSMThenPGD",
    "FreeAT",
    "GradAlign",
    "LogsInstances",
    "Method",
    "MethodInfo",
    "Natural",
    "NuAT",
    "PassCounts",
    "PerExampleBuffer",
    "ShortRun",
    "SinglePassMethod",
    "StepOutput",
    "SubAT",
    "c_max_from",
    "register_method",
]
