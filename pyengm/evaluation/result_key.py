"""The names of results, such as pgd20_l2 or pgd:steps=50,eps=4/255, in words."""

from collections.abc import Sequence
from dataclasses import dataclass

from pyengm.attacks import ThreatModel
from pyengm.errors import ConfigError
from pyengm.evaluation.attack_registry import AUTOATTACKS, DISTANCES, NATURAL, SAME_EXAMPLES, TITLES
from pyengm.evaluation.attack_spec import parse_spec

ON_FEW = frozenset({SAME_EXAMPLES, *AUTOATTACKS})  # run on AutoAttack's images


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
    """The spec of an attack, whose options norm and eps are those of the threat model."""
    try:
        spec = parse_spec(key)
    except ConfigError:  # of a later version of pyengm
        return ResultKey(key, key, None)
    applicable = [threat for threat in threats if spec.applies_to(threat)]
    threat = applicable[0] if applicable else None
    if spec.eps and (norm := spec.norm or (threat.norm if threat else None)):
        threat = ThreatModel(norm, spec.eps[0])
    return ResultKey(spec.name, spec.title(), threat, bool(spec.eps) and threat is not None)
