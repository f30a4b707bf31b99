"""Attacks of analyses as specs, such as pgd:eps=8/255,step_size=2/255,steps=10,loss=ce."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pyengm.attacks import PGD, ThreatModel
from pyengm.errors import ConfigError
from pyengm.evaluation import AttackSpec, parse_spec
from pyengm.evaluation.attack_registry import ShareOfEps
from pyengm.evaluation.attack_spec import MODEL
from pyengm.utils.did_you_mean import did_you_mean

NONE = "none"
# The attacks, and the options that the papers' figures have where none are given.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {"fgsm": {}, "pgd": {"steps": 10, "step_size": ShareOfEps(4), "loss": "ce"}}


@dataclass(frozen=True)
class AnalysisAttack:
    """PGD, FGSM or no attack, under one threat model.

    Attributes:
        spec: The attack with all of its options; None where the images stay as they are.
        threat: The threat model.
    """

    spec: AttackSpec | None
    threat: ThreatModel

    @property
    def name(self) -> str:
        """The name: "none", "fgsm" or "pgd"."""
        return NONE if self.spec is None else self.spec.name

    @property
    def options(self) -> dict[str, Any]:
        """The options by name, with a step size in pixel units."""
        options = {} if self.spec is None else dict(self.spec.options)
        if isinstance(share := options.get("step_size"), ShareOfEps):
            options["step_size"] = self.threat.eps / share.divisor
        return options

    def create(self, bn: str) -> PGD | None:
        """The attack, in the mode "eval" or "train" of an analysis; None where the images stay as they are."""
        return None if self.spec is None else self.spec.create(self.threat, bn=_mode(bn))

    def single_step(self, bn: str) -> PGD:
        """One step of 5/4 eps from a random start, the attack of FGSM-RS."""
        return PGD(self.threat.eps, 1.25 * self.threat.eps, 1, norm=self.threat.norm, bn=_mode(bn))


def parse_attack(text: str, trained: ThreatModel) -> AnalysisAttack:
    """Parses the text of an attack.

    Args:
        text: none, or a spec of fgsm or pgd with one radius, see `pyengm.evaluation.parse_spec`.
        trained: The threat model of the training, whose norm and radius hold where none are given.

    Raises:
        ConfigError: The name or an option is unknown, or a value does not fit.
    """
    if text.strip() == NONE:
        return AnalysisAttack(None, trained)
    spec = parse_spec(text)
    known = (NONE, *DEFAULTS)
    if spec.name not in DEFAULTS or spec.on != MODEL or len(spec.eps) > 1:
        hint = did_you_mean(spec.name, known)
        raise ConfigError(f"attack is {text!r}; expected {', '.join(known)}{hint} on the model itself, with one radius")
    if spec.norm not in (None, trained.norm) and not spec.eps:
        raise ConfigError(f"attack {text!r}: expected eps beside norm={spec.norm}, as the training was under {trained}")
    threat = ThreatModel(spec.norm or trained.norm, spec.eps[0] if spec.eps else trained.eps)
    options = {**DEFAULTS[spec.name], **dict(spec.options)}
    attack = AnalysisAttack(replace(spec, options=tuple(options.items())), threat)
    attack.create("eval")  # raises for values out of range
    return attack


def _mode(bn: str) -> str:
    return "batch_stats" if bn == "train" else "eval"
