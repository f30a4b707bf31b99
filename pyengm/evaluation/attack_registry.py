"""The attacks of an evaluation by name, as the tables of the papers report them."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from pyengm.attacks import CW, FGSM, PGD, AutoAttack, ThreatModel
from pyengm.attacks.autoattack import MEMBERS
from pyengm.attacks.deepfool import DeepFool
from pyengm.data import ImageDataset
from pyengm.errors import ConfigError

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]

# Of a threat model and a seed. PGD-20 steps by eps/10 (Dabouei et al. 2022); the others by 2.5 eps / steps, the rule of
# Madry et al. 2018. PGD's random numbers are those of the images, so it needs no seed here.
ATTACKS: dict[str, Callable[[ThreatModel, int], Attack]] = {
    "fgsm": lambda threat, seed: FGSM(threat.eps, norm=threat.norm),
    "pgd10": lambda threat, seed: _pgd(threat, threat.eps / 4, 10),
    "pgd20": lambda threat, seed: _pgd(threat, threat.eps / 10, 20),
    "pgd50": lambda threat, seed: _pgd(threat, threat.eps / 20, 50),
    "cw": lambda threat, seed: CW(threat.eps, norm=threat.norm),
    "apgd_ce": lambda threat, seed: _autoattack(threat, seed, "apgd-ce"),
    "apgd_t": lambda threat, seed: _autoattack(threat, seed, "apgd-t"),
    "fab_t": lambda threat, seed: _autoattack(threat, seed, "fab-t"),
    "square": lambda threat, seed: _autoattack(threat, seed, "square"),
    "autoattack": lambda threat, seed: _autoattack(threat, seed, *MEMBERS),
    "deepfool": lambda threat, seed: DeepFool(),
}
DISTANCES = ("deepfool",)  # results are distances, not accuracies, and depend on no threat model
TRANSFER = "transfer_pgd20"
TITLES = {
    "natural": "natural",
    TRANSFER: "transfer PGD-20",
    "fgsm": "FGSM",
    "pgd10": "PGD-10",
    "pgd20": "PGD-20",
    "pgd50": "PGD-50",
    "cw": "C&W",
    "apgd_ce": "APGD-CE",
    "apgd_t": "APGD-T",
    "fab_t": "FAB-T",
    "square": "Square",
    "autoattack": "AutoAttack",
    "deepfool": "DeepFool",
}


def attack_named(name: str, threat: ThreatModel, seed: int = 0) -> Attack:
    """The attack of that name under a threat model; seed: of AutoAttack. Raises ConfigError for an unknown name."""
    if name not in ATTACKS:
        raise ConfigError(f"unknown attack {name!r}; known: {', '.join(ATTACKS)}")
    return ATTACKS[name](threat, seed)


def attack_names(extra: Sequence[str]) -> list[str]:
    """The attacks of a final evaluation, weak to strong: PGD-20, AutoAttack and those asked for besides.

    Raises ConfigError for an unknown attack.
    """
    for name in extra:
        if name not in ATTACKS:
            raise ConfigError(f"unknown attack {name!r}; known: {', '.join(ATTACKS)}")
    return [name for name in ATTACKS if name in {"pgd20", "autoattack", *extra}]


def check_attacks(attacks: Sequence[str], data: ImageDataset, threats: Sequence[ThreatModel]) -> None:
    """Raises ConfigError for an unknown attack and one that cannot run on these images under a threat model.

    Warns of the members of AutoAttack that it runs without.
    """
    for threat in threats:
        for name in attacks:
            attack = attack_named(name, threat)
            if isinstance(attack, AutoAttack):
                attack.warn_of_the_unfit(data.num_classes, data.shape)


def _pgd(threat: ThreatModel, step: float, steps: int) -> PGD:
    return PGD(threat.eps, step, steps, norm=threat.norm, loss="margin")


def _autoattack(threat: ThreatModel, seed: int, *members: str) -> AutoAttack:
    return AutoAttack(threat.eps, norm=threat.norm, attacks=members, seed=seed)
