"""The attacks of an evaluation, one record each, as the tables of the papers report them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyengm.attacks import CW, FGSM, PGD, AutoAttack, DeepFool, ThreatModel
from pyengm.attacks.autoattack import MEMBERS
from pyengm.attacks.model_state import check_bn_mode
from pyengm.data import ImageDataset
from pyengm.errors import ConfigError

Attack = Callable[..., Tensor]  # attack(model, x, y); where its attribute `keyed` is true, also key=


@dataclass(frozen=True)
class AttackInfo:
    """An attack of an evaluation.

    Args:
        name: its name in options and results.
        title: its name in tables.
        make: constructs it from a threat model and a seed. PGD and its relatives need no seed, as their random numbers
            depend on the images.
        always: whether every final evaluation includes it.
        is_distance: whether its result is a distance in place of an accuracy, which depends on no threat model.
    """

    name: str
    title: str
    make: Callable[[ThreatModel, int], Any]
    always: bool = False
    is_distance: bool = False


def _pgd(name: str, title: str, steps: int, share: float, always: bool = False) -> AttackInfo:
    """PGD on the margin with steps of size eps / share."""

    def make(threat: ThreatModel, seed: int) -> PGD:
        return PGD(threat.eps, threat.eps / share, steps, norm=threat.norm, loss="margin")

    return AttackInfo(name, title, make, always)


def _autoattack(name: str, title: str, *members: str, always: bool = False) -> AttackInfo:
    def make(threat: ThreatModel, seed: int) -> AutoAttack:
        return AutoAttack(threat.eps, norm=threat.norm, attacks=members, seed=seed)

    return AttackInfo(name, title, make, always)


# From weak to strong. PGD-20 has steps of eps / 10 (Dabouei et al. 2022); the steps of PGD-10 and PGD-50 are
# 2.5 eps / steps, the rule of Madry et al. 2018.
_ATTACKS = (
    AttackInfo("fgsm", "FGSM", lambda threat, seed: FGSM(threat.eps, norm=threat.norm)),
    _pgd("pgd10", "PGD-10", 10, 4),
    _pgd("pgd20", "PGD-20", 20, 10, always=True),
    _pgd("pgd50", "PGD-50", 50, 20),
    AttackInfo("cw", "C&W", lambda threat, seed: CW(threat.eps, norm=threat.norm)),
    _autoattack("apgd_ce", "APGD-CE", "apgd-ce"),
    _autoattack("apgd_t", "APGD-T", "apgd-t"),
    _autoattack("fab_t", "FAB-T", "fab-t"),
    _autoattack("square", "Square", "square"),
    _autoattack("autoattack", "AutoAttack", *MEMBERS, always=True),
    AttackInfo("deepfool", "DeepFool", lambda threat, seed: DeepFool(), is_distance=True),
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


def create_attack(name: str, threat: ThreatModel, seed: int = 0, *, bn: str = "eval") -> Any:
    """Constructs an attack of the registry.

    Args:
        name: a key of ATTACKS.
        threat: the threat model, which distances do not depend on.
        seed: seed of AutoAttack and its members.
        bn: mode of the model during the attack, see `attack_mode`; only "eval" for AutoAttack and its members.

    Returns:
        The attack, to be called as attack(model, x, y).

    Raises:
        ConfigError: the name or the mode is unknown, or the attack has another mode.
    """
    _check_known(name)
    check_bn_mode(bn)
    attack = ATTACKS[name].make(threat, seed)
    if bn != "eval":
        if not hasattr(attack, "bn"):
            raise ConfigError(f"{ATTACKS[name].title} attacks models in eval mode only: leave it out with bn={bn!r}")
        attack.bn = bn
    return attack


def final_attacks(further: Sequence[str]) -> list[str]:
    """Names of the attacks of a final evaluation from weak to strong: those of every evaluation, and further ones.

    Raises:
        ConfigError: a further attack is unknown.
    """
    for name in further:
        _check_known(name)
    return [name for name, info in ATTACKS.items() if info.always or name in further]


def check_attacks(attacks: Sequence[str], data: ImageDataset, threats: Sequence[ThreatModel]) -> None:
    """Checks that attacks are known and apply to a data set; warns of members of AutoAttack that do not.

    Args:
        attacks: names of attacks.
        data: the images to attack.
        threats: the threat models.

    Raises:
        ConfigError: an attack is unknown or does not apply under one of the threat models.
    """
    for threat in threats:
        for name in attacks:
            attack = create_attack(name, threat)
            if isinstance(attack, AutoAttack):
                attack.warn_of_inapplicable_members(data.num_classes, data.shape)


def member_key(member: str) -> str:
    """The name in options and results of a member of AutoAttack, such as apgd_ce for apgd-ce."""
    return member.replace("-", "_")


def _check_known(name: str) -> None:
    if name not in ATTACKS:
        raise ConfigError(f"unknown attack {name!r}; known: {', '.join(ATTACKS)}")
