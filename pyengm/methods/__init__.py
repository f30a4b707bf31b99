"""Training methods: how a batch becomes per-example losses."""

import importlib
import pkgutil

from pyengm.methods.aaer import AAER
from pyengm.methods.atas import ATAS
from pyengm.methods.ates import ATES
from pyengm.methods.atta import ATTA
from pyengm.methods.awp import AWP, MARTAWP, PGDATAWP, TRADESAWP
from pyengm.methods.backward_smoothing import BackwardSmoothing
from pyengm.methods.base import AttackMethod, Method, SinglePassMethod, StepOutput
from pyengm.methods.converge_smooth import FGSMMEPCS, FGSMRSCS
from pyengm.methods.curriculum import Curriculum
from pyengm.methods.dataset_spec import DatasetSpec
from pyengm.methods.dynamic import Dynamic, c_max_from
from pyengm.methods.elle import ELLE
from pyengm.methods.example_weights import EXAMPLE_WEIGHTS, GAIRAT, MAIL, ExampleWeights, Reweighted
from pyengm.methods.fat import FAT
from pyengm.methods.fgsm_pgi import FGSMPGI
from pyengm.methods.fgsm_rs import FGSMRS
from pyengm.methods.fgsm_sdi import FGSMSDI
from pyengm.methods.fgsm_then_pgd import FGSMThenPGD
from pyengm.methods.free_at import FreeAT
from pyengm.methods.gat import GAT
from pyengm.methods.grad_align import GradAlign
from pyengm.methods.info import MethodInfo, PassCounts, ShortRun
from pyengm.methods.instance_log import LogsInstances
from pyengm.methods.lbgat import LBGAT
from pyengm.methods.liet import LIET
from pyengm.methods.mart import MART
from pyengm.methods.mlcat import MLCAT, MLCATWP
from pyengm.methods.moved_weights import MovedWeights
from pyengm.methods.multi_grad import MultiGrad
from pyengm.methods.n_fgsm import NFGSM
from pyengm.methods.natural import Natural
from pyengm.methods.nuat import NuAT
from pyengm.methods.per_example_buffer import BufferSlot, PerExampleBuffer
from pyengm.methods.pgd_at import PGDAT
from pyengm.methods.registry import METHODS, register_method
from pyengm.methods.sam import SAM
from pyengm.methods.self_adaptive import SelfAdaptive
from pyengm.methods.slat import SLAT
from pyengm.methods.ssat import SSAT
from pyengm.methods.sub_at import SubAT
from pyengm.methods.trades import TRADES
from pyengm.methods.wrapper import Wrapper
from pyengm.methods.yopo import YOPO
from pyengm.methods.zero_grad import ZeroGrad

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):  # a new file registers its method by being here
    importlib.import_module(_module.name)
for _name in sorted(METHODS):
    METHODS[_name] = METHODS.pop(_name)

__all__ = [
    "AAER",
    "ATAS",
    "ATES",
    "ATTA",
    "AWP",
    "ELLE",
    "EXAMPLE_WEIGHTS",
    "FAT",
    "FGSMMEPCS",
    "FGSMPGI",
    "FGSMRS",
    "FGSMRSCS",
    "FGSMSDI",
    "GAIRAT",
    "GAT",
    "LBGAT",
    "LIET",
    "MAIL",
    "MART",
    "MARTAWP",
    "METHODS",
    "MLCAT",
    "MLCATWP",
    "NFGSM",
    "PGDAT",
    "PGDATAWP",
    "SAM",
    "SLAT",
    "SSAT",
    "TRADES",
    "TRADESAWP",
    "YOPO",
    "AttackMethod",
    "BackwardSmoothing",
    "BufferSlot",
    "Curriculum",
    "DatasetSpec",
    "Dynamic",
    "ExampleWeights",
    "FGSMThenPGD",
    "FreeAT",
    "GradAlign",
    "LogsInstances",
    "Method",
    "MethodInfo",
    "MovedWeights",
    "MultiGrad",
    "Natural",
    "NuAT",
    "PassCounts",
    "PerExampleBuffer",
    "Reweighted",
    "SelfAdaptive",
    "ShortRun",
    "SinglePassMethod",
    "StepOutput",
    "SubAT",
    "Wrapper",
    "ZeroGrad",
    "c_max_from",
    "register_method",
]
