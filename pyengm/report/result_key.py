"""The names of results, such as pgd20_l2 or pgd:steps=50,eps=4/255, in words."""

from collections.abc import Sequence
from dataclasses import dataclass

from pyengm.attacks import ThreatModel
from pyengm.attacks.autoattack import MEMBERS
from pyengm.errors import ConfigError
from pyengm.evaluation.attack_registry import DISTANCES, NATURAL, SAME_EXAMPLES, TITLES, member_key
from pyengm.training.option_types import parse_number

ON_FEW = frozenset({"autoattack", SAME_EXAMPLES, *map(member_key, MEMBERS)})  # run on AutoAttack's images


@dataclass(frozen=True)
class ResultKey:
    """What a result is.

    Args:
        name: The name of the attack, or of another measurement.
        title: Its name in tables, with its options.
        threat: The threat model; None for results that belong to none.
        own_eps: Whether the attack has a radius of its own, as on a curve.
    """

    name: str
    title: str
    threat: ThreatModel | None
    own_eps: bool = False

    @property
    def is_distance(self) -> bool:
        """Whether the result is a distance in pixel units."""
        return self.name in DISTANCES

    @property
    def is_known(self) -> bool:
        """Whether it is an accuracy or a distance of this version of pyengm."""
        return self.name in TITLES

    @property
    def on_few(self) -> bool:
        """Whether it was measured on AutoAttack's images alone."""
        return self.name in ON_FEW

    def threat_text(self) -> str:
        """The threat model in words."""
        if self.name == NATURAL:
            return "none"
        if self.is_distance:
            return "mean distance in L2"
        return str(self.threat or "")


def read_key(key: str, threats: Sequence[ThreatModel]) -> ResultKey:
    """Reads the name of a result.

    Args:
        key: The name, as in the results of `evaluate_checkpoints`.
        threats: The threat models of the evaluation. Names under all but the first end in its norm.

    Returns:
        Its parts; a name that this version does not know is its own title.
    """
    first = threats[0] if threats else None
    if ":" in key:
        return _read_spec(key, threats)
    if key == NATURAL:
        return ResultKey(key, TITLES[key], None)
    if key not in TITLES:
        for threat in threats[1:]:
            name = key.removesuffix(f"_{threat.norm}")
            if name != key:
                return ResultKey(name, TITLES.get(name, name), threat)
    return ResultKey(key, TITLES.get(key, key), first)


def _read_spec(key: str, threats: Sequence[ThreatModel]) -> ResultKey:
    """NAME:OPTION=VALUE,..., whose options norm and eps are those of the threat model."""
    name, _, rest = key.partition(":")
    options = dict(part.split("=", 1) for part in rest.split(",") if "=" in part)
    norm, eps = options.pop("norm", None), options.pop("eps", None)
    by_transfer = ", by transfer" if options.pop("on", None) == "surrogate" else ""
    threat = next((one for one in threats if one.norm == norm), threats[0] if threats else None)
    threat = _with_radius(threat, norm, eps)
    shown = ", ".join(f"{option} {value}" for option, value in options.items())
    title = TITLES.get(name, name) + (f" ({shown})" if shown else "") + by_transfer
    return ResultKey(name, title, threat, eps is not None and threat is not None)


def _with_radius(threat: ThreatModel | None, norm: str | None, eps: str | None) -> ThreatModel | None:
    if eps is None or (threat is None and norm is None):
        return threat
    try:
        return ThreatModel(norm or (threat.norm if threat else ""), parse_number(eps))
    except (ConfigError, ValueError, ZeroDivisionError):  # of a later version of pyengm
        return None
