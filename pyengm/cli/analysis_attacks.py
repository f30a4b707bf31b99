"""Attacks of analyses as texts, such as pgd:eps=8/255,step_size=2/255,steps=10,loss=ce."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pyengm.attacks import FGSM, PGD, ThreatModel
from pyengm.errors import ConfigError
from pyengm.utils.did_you_mean import did_you_mean
from pyengm.utils.pixels import parse_number

PARSERS: Mapping[str, Callable[[str], Any]] = {
    "eps": parse_number,
    "step_size": parse_number,
    "steps": int,
    "restarts": int,
    "loss": str,
    "norm": str,
}
KNOWN = {"none": (), "fgsm": ("eps", "loss", "norm"), "pgd": tuple(PARSERS)}


@dataclass(frozen=True)
class AnalysisAttack:
    """PGD, FGSM or no attack, under one threat model.

    Attributes:
        name: "none", "fgsm" or "pgd".
        threat: The threat model.
        options: step_size, steps, restarts and loss, as given.
    """

    name: str
    threat: ThreatModel
    options: dict[str, Any]

    @property
    def steps(self) -> int:
        """Steps of PGD."""
        return self.options.get("steps", 10)

    @property
    def step_size(self) -> float:
        """Step size of PGD, in pixel units."""
        return self.options.get("step_size", self.threat.eps / 4)

    def create(self, bn: str) -> PGD | None:
        """The attack, in the mode "eval" or "train" of an analysis; None where the images stay as they are."""
        mode = "batch_stats" if bn == "train" else "eval"
        loss = self.options.get("loss", "ce")
        if self.name == "none":
            return None
        if self.name == "fgsm":
            return FGSM(self.threat.eps, norm=self.threat.norm, loss=loss, bn=mode)
        restarts = self.options.get("restarts", 1)
        options = {"norm": self.threat.norm, "loss": loss, "restarts": restarts, "bn": mode}
        return PGD(self.threat.eps, self.step_size, self.steps, **options)

    def single_step(self, bn: str) -> PGD:
        """One step of 5/4 eps from a random start, the attack of FGSM-RS."""
        mode = "batch_stats" if bn == "train" else "eval"
        return PGD(self.threat.eps, 1.25 * self.threat.eps, 1, norm=self.threat.norm, bn=mode)


def parse_attack(text: str, trained: ThreatModel) -> AnalysisAttack:
    """Parses the text of an attack.

    Args:
        text: none, fgsm or pgd, or NAME:OPTION=VALUE,... with eps, step_size, steps, restarts, loss and norm.
        trained: The threat model of the training, whose norm and radius hold where none are given.

    Raises:
        ConfigError: The name or an option is unknown, or a value does not fit.
    """
    name, _, rest = text.strip().partition(":")
    if name not in KNOWN:
        raise ConfigError(f"attack is {name!r}; known: {', '.join(KNOWN)}{did_you_mean(name, KNOWN)}")
    options: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        option, _, value = (word.strip() for word in part.partition("="))
        if option not in KNOWN[name]:
            known = ", ".join(KNOWN[name]) or "none"
            raise ConfigError(f"attack {text!r} has an unknown option {option!r}; those of {name} are {known}")
        if option in options:
            raise ConfigError(f"attack {text!r} has {option} twice; give it once")
        try:
            options[option] = PARSERS[option](value)
        except (ValueError, ZeroDivisionError):
            raise ConfigError(f"attack {text!r}: {option} is {value!r}; expected a number") from None
    norm, eps = options.pop("norm", trained.norm), options.pop("eps", None)
    if norm != trained.norm and eps is None:
        raise ConfigError(f"attack {text!r}: expected eps beside norm={norm}, as the training was under {trained}")
    attack = AnalysisAttack(name, ThreatModel(norm, trained.eps if eps is None else eps), options)
    attack.create("eval")  # raises for values out of range
    return attack
