"""The attacks of an evaluation, one record each, as the tables of the papers report them."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, get_type_hints

from torch import Tensor

from pyengm.attacks import (
    CW,
    DDN,
    DIFGSM,
    EOTPGD,
    FGSM,
    FMN,
    MIFGSM,
    PGD,
    THREAT_NORMS,
    TIFGSM,
    AutoAttack,
    CarliniWagnerL2,
    DeepFool,
    TargetedPGD,
    ThreatModel,
    Within,
)
from pyengm.attacks.autoattack import MEMBERS

Attack = Callable[..., Tensor]  # attack(model, x, y); where its attribute `keyed` is true, also key=


@dataclass(frozen=True)
class ShareOfEps:
    """A step size of eps / divisor, so that it follows eps."""

    divisor: float

    def __str__(self) -> str:
        return f"eps/{self.divisor:g}"


StepSize = float | ShareOfEps | None


@dataclass(frozen=True)
class AttackInfo:
    """An attack of an evaluation.

    Args:
        name: its name in options and results.
        title: its name in tables.
        make: constructs it from a threat model and a seed. PGD and its relatives need no seed, as their random numbers
            depend on the images. Keyword-only parameters are the options of a spec, with their types and defaults.
        always: whether every final evaluation includes it.
        is_distance: whether its result is a distance in place of an accuracy, which depends on no threat model.
        norms: the norms of the threat models that it is for.
    """

    name: str
    title: str
    make: Callable[..., Any]
    always: bool = False
    is_distance: bool = False
    norms: tuple[str, ...] = THREAT_NORMS

    @property
    def options(self) -> Mapping[str, Any]:
        """The types of the options by name."""
        hints = get_type_hints(inspect.unwrap(getattr(self.make, "func", self.make)))
        bound = getattr(self.make, "keywords", {})
        parameters = inspect.signature(self.make).parameters.values()
        return {p.name: hints[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in bound}


def _size(step_size: StepSize, threat: ThreatModel, default: float | None) -> Any:
    """A step size in pixel units; by default the share eps / default, or None for that of the attack."""
    if step_size is None and default is not None:
        step_size = ShareOfEps(default)
    return threat.eps / step_size.divisor if isinstance(step_size, ShareOfEps) else step_size


def _make_pgd(
    threat: ThreatModel,
    seed: int,
    *,
    steps: int = 20,
    share: float | None = None,
    step_size: StepSize = None,
    loss: str = "margin",
    random_start: bool = True,
    restarts: int = 1,
    early_stop: bool = False,
    samples: int = 1,
) -> PGD:
    """PGD, by default on the margin with steps of eps / share, which is 2.5 eps / steps (Madry et al. 2018)."""
    options = {"loss": loss, "random_start": random_start, "restarts": restarts, "early_stop": early_stop}
    size = _size(step_size, threat, max(steps, 1) / 2.5 if share is None else share)
    if samples != 1:
        return EOTPGD(threat.eps, size, steps, norm=threat.norm, samples=samples, **options)
    return PGD(threat.eps, size, steps, norm=threat.norm, **options)


def _pgd(name: str, title: str, steps: int, share: float, always: bool = False) -> AttackInfo:
    return AttackInfo(name, title, partial(_make_pgd, steps=steps, share=share), always)


def _make_fgsm(threat: ThreatModel, seed: int, *, loss: str = "ce") -> FGSM:
    return FGSM(threat.eps, norm=threat.norm, loss=loss)


def _make_cw(threat: ThreatModel, seed: int, *, steps: int = 30) -> CW:
    return CW(threat.eps, steps=steps, norm=threat.norm)


def _make_targeted(
    threat: ThreatModel,
    seed: int,
    *,
    target: int | str = "least_likely",
    steps: int = 20,
    step_size: StepSize = None,
    restarts: int = 1,
) -> TargetedPGD:
    size = _size(step_size, threat, max(steps, 1) / 2.5)
    return TargetedPGD(threat.eps, size, steps, target=target, restarts=restarts, norm=threat.norm)


def _make_mifgsm(
    threat: ThreatModel, seed: int, *, steps: int = 10, step_size: StepSize = None, decay: float = 1.0, loss: str = "ce"
) -> MIFGSM:
    return MIFGSM(threat.eps, _size(step_size, threat, None), steps, decay=decay, norm=threat.norm, loss=loss)


def _make_difgsm(
    threat: ThreatModel,
    seed: int,
    *,
    steps: int = 10,
    step_size: StepSize = None,
    decay: float = 0.0,
    resize_rate: float = 0.9,
    diversity: float = 0.5,
    loss: str = "ce",
) -> DIFGSM:
    options = {"decay": decay, "resize_rate": resize_rate, "diversity": diversity, "loss": loss}
    return DIFGSM(threat.eps, _size(step_size, threat, None), steps, norm=threat.norm, **options)


def _make_tifgsm(
    threat: ThreatModel,
    seed: int,
    *,
    steps: int = 10,
    step_size: StepSize = None,
    decay: float = 0.0,
    kernel_size: int = 15,
    resize_rate: float = 0.9,
    diversity: float = 0.0,
    loss: str = "ce",
) -> TIFGSM:
    options = {"decay": decay, "kernel_size": kernel_size, "resize_rate": resize_rate, "diversity": diversity}
    return TIFGSM(threat.eps, _size(step_size, threat, None), steps, norm=threat.norm, loss=loss, **options)


def _make_fmn(
    threat: ThreatModel, seed: int, *, steps: int = 100, step_size: float = 1.0, gamma: float = 0.05
) -> Within:
    return Within(FMN(threat.norm, steps, step_size=step_size, gamma=gamma), threat)


def _make_ddn(threat: ThreatModel, seed: int, *, steps: int = 100, radius: float = 1.0, gamma: float = 0.05) -> Within:
    return Within(DDN(steps, radius=radius, gamma=gamma), threat)


def _make_cw_l2(
    threat: ThreatModel,
    seed: int,
    *,
    steps: int = 1000,
    step_size: float = 0.01,
    searches: int = 9,
    c: float = 1e-3,
    confidence: float = 0.0,
) -> Within:
    attack = CarliniWagnerL2(steps, step_size=step_size, searches=searches, c=c, confidence=confidence)
    return Within(attack, threat)


def _make_autoattack(threat: ThreatModel, seed: int, *, version: str = "standard") -> AutoAttack:
    return AutoAttack(threat.eps, norm=threat.norm, seed=seed, version=version)


def _make_member(threat: ThreatModel, seed: int, *, member: str) -> AutoAttack:
    return AutoAttack(threat.eps, norm=threat.norm, attacks=member, seed=seed)


def _make_square(threat: ThreatModel, seed: int, *, queries: int | None = None) -> AutoAttack:
    return AutoAttack(threat.eps, norm=threat.norm, attacks="square", seed=seed, queries=queries)


def _make_deepfool(threat: ThreatModel, seed: int, *, steps: int = 50, overshoot: float = 0.02) -> DeepFool:
    return DeepFool(steps=steps, overshoot=overshoot)


# From weak to strong. PGD-20 has steps of eps / 10 (Dabouei et al. 2022); the steps of PGD-10 and PGD-50 are
# 2.5 eps / steps, the rule of Madry et al. 2018.
_ATTACKS = (
    AttackInfo("fgsm", "FGSM", _make_fgsm),
    AttackInfo("mifgsm", "MI-FGSM", _make_mifgsm),
    AttackInfo("difgsm", "DI-FGSM", _make_difgsm),
    AttackInfo("tifgsm", "TI-FGSM", _make_tifgsm),
    AttackInfo("targeted_pgd", "targeted PGD", _make_targeted),
    _pgd("pgd10", "PGD-10", 10, 4),
    _pgd("pgd20", "PGD-20", 20, 10, always=True),
    _pgd("pgd50", "PGD-50", 50, 20),
    AttackInfo("pgd", "PGD", partial(_make_pgd, share=None)),
    AttackInfo("cw", "C&W", _make_cw),
    AttackInfo("fmn", "FMN", _make_fmn),
    AttackInfo("ddn", "DDN", _make_ddn, norms=("l2",)),
    AttackInfo("cw_l2", "C&W in L2", _make_cw_l2, norms=("l2",)),
    AttackInfo("apgd_ce", "APGD-CE", partial(_make_member, member="apgd-ce")),
    AttackInfo("apgd_t", "APGD-T", partial(_make_member, member="apgd-t")),
    AttackInfo("fab_t", "FAB-T", partial(_make_member, member="fab-t")),
    AttackInfo("square", "Square", _make_square),
    AttackInfo("autoattack", "AutoAttack", _make_autoattack, always=True),
    AttackInfo("deepfool", "DeepFool", _make_deepfool, is_distance=True),
)
ATTACKS = {info.name: info for info in _ATTACKS}
AUTOATTACKS = ("autoattack", *(member.replace("-", "_") for member in MEMBERS))  # these attack fewer images if asked
DISTANCES = tuple(info.name for info in _ATTACKS if info.is_distance)
ATTACKS_HELP = "Further attacks of the final evaluation, besides {}: {}.".format(
    " and ".join(info.title for info in _ATTACKS if info.always),
    ", ".join(f"{info.name} ({info.title})" for info in _ATTACKS if not info.always),
)

# Results that are not those of one attack of the registry.
NATURAL = "natural"
TRANSFER = "transfer_pgd20"
SAME_EXAMPLES = "pgd20_on_autoattack_examples"
TITLES = {NATURAL: "natural", TRANSFER: "transfer PGD-20", SAME_EXAMPLES: "PGD-20, AutoAttack's images"}
TITLES |= {info.name: info.title for info in _ATTACKS}


def member_key(member: str) -> str:
    """The name in options and results of a member of AutoAttack, such as apgd_ce for apgd-ce."""
    return member.replace("-", "_")
