"""Training methods: how a batch becomes per-example losses."""

from pyengm.methods.atas import ATAS
from pyengm.methods.atta import ATTA
from pyengm.methods.awp import AWP, MARTAWP, PGDATAWP, TRADESAWP
from pyengm.methods.base import AttackMethod, DatasetSpec, Method, SinglePassMethod, StepOutput
from pyengm.methods.curriculum import Curriculum
from pyengm.methods.dynamic import Dynamic
from pyengm.methods.fgsm_pgi import FGSMPGI
from pyengm.methods.fgsm_rs import FGSMRS
from pyengm.methods.fgsm_sdi import FGSMSDI
from pyengm.methods.fgsm_then_pgd import FGSMThenPGD
from pyengm.methods.free_at import FreeAT
from pyengm.methods.grad_align import GradAlign
from pyengm.methods.mart import MART
from pyengm.methods.natural import Natural
from pyengm.methods.nuat import NuAT
from pyengm.methods.pgd_at import PGDAT
from pyengm.methods.ssat import SSAT
from pyengm.methods.sub_at import SubAT
from pyengm.methods.trades import TRADES
from pyengm.methods.yopo import YOPO

METHODS: dict[str, type[Method]] = {
    "natural": Natural,
    "pgd_at": PGDAT,
    "trades": TRADES,
    "mart": MART,
    "pgd_at_awp": PGDATAWP,
    "trades_awp": TRADESAWP,
    "mart_awp": MARTAWP,
    "dynamic": Dynamic,
    "fgsm_then_pgd": FGSMThenPGD,
    "curriculum": Curriculum,
    "fgsm_rs": FGSMRS,
    "grad_align": GradAlign,
    "ssat": SSAT,
    "atta": ATTA,
    "atas": ATAS,
    "free_at": FreeAT,
    "yopo": YOPO,
    "nuat": NuAT,
    "sub_at": SubAT,
    "fgsm_sdi": FGSMSDI,
    "fgsm_pgi": FGSMPGI,
}

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
    "Curriculum",
    "DatasetSpec",
    "Dynamic",
    "FGSMThenPGD",
    "FreeAT",
    "GradAlign",
    "Method",
    "Natural",
    "NuAT",
    "SinglePassMethod",
    "StepOutput",
    "SubAT",
]
