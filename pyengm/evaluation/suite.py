"""The attacks of an evaluation by name, as the tables of the papers report them."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from pyengm.attacks import CW, FGSM, PGD, AutoAttack, Threat
from pyengm.errors import ConfigError

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]

# PGD-20 steps by eps/10 (Dabouei et al. 2022); the others by 2.5 eps / steps, the rule of Madry et al. 2018.
MAKERS: dict[str, Callable[[Threat], Attack]] = {
    "fgsm": lambda threat: FGSM(threat.eps, norm=threat.norm),
    "pgd10": lambda threat: _pgd(threat, threat.eps / 4, 10),
    "pgd20": lambda threat: _pgd(threat, threat.eps / 10, 20),
    "pgd50": lambda threat: _pgd(threat, threat.eps / 20, 50),
    "cw": lambda threat: CW(threat.eps, norm=threat.norm),
    "autoattack": lambda threat: AutoAttack(threat.eps, norm=threat.norm),
}
TITLES = {
    "natural": "natural",
    "fgsm": "FGSM",
    "pgd10": "PGD-10",
    "pgd20": "PGD-20",
    "pgd50": "PGD-50",
    "cw": "C&W",
    "autoattack": "AutoAttack",
}


def attack_named(name: str, threat: Threat) -> Attack:
    """The attack of that name under a threat model. Raises ConfigError for an unknown name."""
    if name not in MAKERS:
        raise ConfigError(f"unknown attack {name!r}; known: {', '.join(MAKERS)}")
    return MAKERS[name](threat)


def attack_names(extra: Sequence[str], num_classes: int) -> list[str]:
    """The attacks of a final evaluation, weak to strong: PGD-20, AutoAttack and those asked for besides.

    AutoAttack needs 4 classes; with fewer it is left out, or a ConfigError where it was asked for by name. So is an
    unknown attack.
    """
    for name in extra:
        if name not in MAKERS:
            raise ConfigError(f"unknown attack {name!r}; known: {', '.join(MAKERS)}")
    if num_classes < 4 and "autoattack" in extra:
        raise ConfigError(f"AutoAttack's targeted DLR loss needs at least 4 classes, the data have {num_classes}")
    usual = {"pgd20", "autoattack"} if num_classes >= 4 else {"pgd20"}
    return [name for name in MAKERS if name in {*usual, *extra}]


def _pgd(threat: Threat, step: float, steps: int) -> PGD:
    return PGD(threat.eps, step, steps, norm=threat.norm, loss="margin")
