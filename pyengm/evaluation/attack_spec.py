"""Attacks as texts, such as "pgd:steps=50,step_size=2/255,loss=ce,eps=1/255..16/255"."""

import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Union, get_args, get_origin

from pyengm.attacks import THREAT_NORMS, AutoAttack, ThreatModel
from pyengm.attacks.model_state import check_bn_mode
from pyengm.data import ImageDataset
from pyengm.errors import ConfigError
from pyengm.evaluation.attack_registry import ATTACKS, AttackInfo, ShareOfEps
from pyengm.utils.did_you_mean import did_you_mean
from pyengm.utils.pixels import parse_number

MODEL, SURROGATE = "model", "surrogate"
COMMON = ("on", "norm", "eps")  # options of every attack
AUTOATTACK = "autoattack"
# The attacks by which a paper, or a benchmark, reports robustness, besides the accuracy without an attack.
PROTOCOLS: Mapping[str, tuple[str, ...]] = {
    # Dabouei et al. 2022, Sec. 3: PGD-20 on the margin with steps of eps / 10.
    "engm": ("pgd20", AUTOATTACK),
    # Wang et al. 2019, Sec. 5.1. The step size is that of its PGD elsewhere (eps / 4); the loss is the authors' code's.
    "dynamic": (
        "fgsm",
        "pgd:steps=10,step_size=eps/4,loss=ce",
        "pgd:steps=20,step_size=eps/4,loss=ce",
        "cw",
    ),
    # Huang et al. 2022, Sec. V; step size and loss are those of the authors' code.
    "atas": (
        "pgd:steps=10,step_size=eps/5,loss=ce",
        "pgd:steps=50,step_size=eps/5,loss=ce",
        AUTOATTACK,
    ),
    # Kanai et al. 2023, App. E.1, with steps of 2/255 at eps = 8/255, and 1/255 for SVHN.
    "entropy": ("pgd:steps=20,step_size=eps/4,loss=ce", AUTOATTACK),
    # Croce et al. 2021.
    "robustbench": (AUTOATTACK,),
}


@dataclass(frozen=True)
class AttackSpec:
    """An attack with its options.

    Args:
        name: a key of `ATTACKS`.
        options: the options that are given, in the order of the attack's.
        on: the model whose gradients are followed, "model" or "surrogate".
        norm: the norm of the threat models that it runs under; None for all of those of the evaluation.
        eps: the radii in pixel units; none for that of the threat model.
    """

    name: str
    options: tuple[tuple[str, Any], ...] = ()
    on: str = MODEL
    norm: str | None = None
    eps: tuple[float, ...] = ()

    @property
    def info(self) -> AttackInfo:
        """The record of the attack."""
        return ATTACKS[self.name]

    def __str__(self) -> str:
        parts = [f"{name}={_text(value)}" for name, value in self.options]
        parts += [f"on={self.on}"] if self.on != MODEL else []
        parts += [f"norm={self.norm}"] if self.norm else []
        parts += [f"eps={','.join(map(_text, self.eps))}"] if self.eps else []
        return f"{self.name}:{','.join(parts)}" if parts else self.name

    def title(self) -> str:
        """Its name in tables, with its options but those of the threat model."""
        options = [f"{name}={_text(value)}" for name, value in self.options]
        title = f"{self.info.title} ({', '.join(options)})" if options else self.info.title
        return f"{title}, by transfer" if self.on == SURROGATE else title

    def applies_to(self, threat: ThreatModel) -> bool:
        """Whether the attack runs under a threat model of this norm."""
        return threat.norm in self.info.norms and self.norm in (None, threat.norm)

    def at_each_eps(self, threat: ThreatModel) -> list[tuple["AttackSpec", ThreatModel]]:
        """The spec with each of its radii alone and the threat model of that radius; itself where it has none."""
        if not self.eps:
            return [(self, threat)]
        return [(replace(self, eps=(eps,)), ThreatModel(threat.norm, eps)) for eps in self.eps]

    def create(self, threat: ThreatModel, seed: int = 0, *, bn: str = "eval") -> Any:
        """Constructs the attack; arguments and errors as for `create_attack`."""
        check_bn_mode(bn)
        try:
            attack = self.info.make(threat, seed, **dict(self.options))
        except ConfigError as error:
            raise ConfigError(f"attack {str(self)!r}: {error}") from error
        if bn != "eval":
            if not hasattr(attack, "bn"):
                raise ConfigError(f"{self.info.title} attacks models in eval mode only: leave it out with bn={bn!r}")
            attack.bn = bn
        return attack


def parse_spec(text: str) -> AttackSpec:
    """Parses the text of an attack.

    Args:
        text: NAME or NAME:OPTION=VALUE,OPTION=VALUE,... Options of every attack are eps, norm and on (model, or
            surrogate for an attack by transfer); further ones are those of the attack in `ATTACKS`. Numbers may be
            fractions. eps may be a list, 1/255,2/255, a range of multiples of 1/255, 1/255..16/255, or a range with a
            step, 0.25..2..0.25; a step size may follow eps, eps/4.

    Returns:
        The spec, whose text is the same for texts of the same attack.

    Raises:
        ConfigError: the name or an option is unknown, or a value does not fit.

    Example:
        >>> spec = pyengm.evaluation.parse_spec("pgd:steps=50,step_size=2/255")
        >>> spec.title()
        'PGD (steps=50, step_size=2/255)'
    """
    name, colon, rest = text.strip().partition(":")
    if name not in ATTACKS:
        raise ConfigError(f"unknown attack {name!r}; known: {', '.join(ATTACKS)}{did_you_mean(name, ATTACKS)}")
    given = _split(text, rest) if colon else {}
    kinds = ATTACKS[name].options
    for option in given:
        if option not in kinds and option not in COMMON:
            known = [*kinds, *COMMON]
            raise ConfigError(
                f"attack {text!r} has an unknown option {option!r}; those of {name} are {', '.join(known)}"
                f"{did_you_mean(option, known)}"
            )
    for option in given.keys() - {"eps"}:
        if len(given[option]) > 1:
            raise ConfigError(f"attack {text!r}: {option} has {len(given[option])} values; only eps may have several")
    values = {option: _value(text, option, given[option][0], kinds[option]) for option in kinds if option in given}
    norm = _choice(text, "norm", given, THREAT_NORMS)
    on = _choice(text, "on", given, (MODEL, SURROGATE)) or MODEL
    eps = tuple(dict.fromkeys(value for part in given.get("eps", ()) for value in _radii(text, part)))
    return AttackSpec(name, tuple(values.items()), on, norm, eps)


def create_attack(text: str, threat: ThreatModel, seed: int = 0, *, bn: str = "eval") -> Any:
    """Constructs an attack of the registry.

    Args:
        text: its name or spec, see `parse_spec`; the radius is that of the threat model.
        threat: the threat model, which distances do not depend on.
        seed: seed of AutoAttack and its members.
        bn: mode of the model during the attack, see `attack_mode`; only "eval" for AutoAttack and its members.

    Returns:
        The attack, to be called as attack(model, x, y).

    Raises:
        ConfigError: the spec or the mode is unknown, or the attack has another mode.
    """
    return parse_spec(text).create(threat, seed, bn=bn)


def final_attacks(further: Sequence[str], *, protocol: str = "engm", autoattack: bool = True) -> list[str]:
    """Texts of the attacks of a final evaluation from weak to strong: those of a protocol, and further ones.

    Args:
        further: names or specs.
        protocol: a key of `PROTOCOLS`.
        autoattack: whether AutoAttack is run as the protocol has it.

    Raises:
        ConfigError: a further attack or the protocol is unknown.
    """
    if protocol not in PROTOCOLS:
        raise ConfigError(
            f"unknown protocol {protocol!r}; known: {', '.join(PROTOCOLS)}{did_you_mean(protocol, PROTOCOLS)}"
        )
    own = [text for text in PROTOCOLS[protocol] if autoattack or text != AUTOATTACK]
    specs = {str(spec): spec for spec in map(parse_spec, [*own, *further])}
    order = list(ATTACKS)
    return sorted(specs, key=lambda text: order.index(specs[text].name))


def attacks_by_threat(threats: Sequence[ThreatModel], attacks: Sequence[str]) -> dict[ThreatModel, list[str]]:
    """The attacks to run under each threat model; distances, which depend on none, are measured under the first.

    Raises:
        ConfigError: an attack is unknown or runs under none of the threat models, or its eps fits several.
    """
    specs = list({str(spec): spec for spec in map(parse_spec, attacks)}.values())
    for spec in specs:
        norms = [threat.norm for threat in threats if spec.applies_to(threat)]
        if threats and not norms:
            raise ConfigError(
                f"attack {str(spec)!r} is for {spec.norm or ' and '.join(spec.info.norms)}, and the threat models are "
                f"{', '.join(map(str, threats))}; give a threat model of that norm, or leave the attack out"
            )
        if spec.eps and len(norms) > 1:
            raise ConfigError(f"attack {str(spec)!r}: expected norm={' or norm='.join(norms)} beside eps")
    return {
        threat: [str(spec) for spec in specs if spec.applies_to(threat) and (i == 0 or not spec.info.is_distance)]
        for i, threat in enumerate(threats)
    }


def check_attacks(
    attacks: Sequence[str], data: ImageDataset, threats: Sequence[ThreatModel], *, surrogate: bool = False
) -> None:
    """Checks that attacks are known and apply to a data set; warns of members of AutoAttack that do not.

    Args:
        attacks: names or specs of attacks.
        data: the images to attack.
        threats: the threat models.
        surrogate: whether there is a surrogate, for attacks on it.

    Raises:
        ConfigError: an attack is unknown or does not apply under one of the threat models.
    """
    for one, texts in attacks_by_threat(threats, attacks).items():
        for text in texts:
            spec = parse_spec(text)
            attack = next(spec.create(threat) for _, threat in spec.at_each_eps(one))
            if spec.on == SURROGATE:
                _check_transfer(spec, attack, surrogate)
            if isinstance(attack, AutoAttack):  # its members apply at every radius or at none
                attack.warn_of_inapplicable_members(data.num_classes, data.shape)


def with_norm(key: str, norm: str) -> str:
    """The name of a result under a threat model other than the first, such as pgd20_l2 or pgd:steps=5,norm=l2."""
    if ":" not in key:
        return f"{key}_{norm}"
    return str(replace(parse_spec(key), norm=norm))


def curves_of(results: Mapping[str, float]) -> dict[str, dict[float, float]]:
    """Accuracy against eps, of the attacks that ran with radii of their own.

    Args:
        results: results of `evaluate`, or of one model in those of `evaluate_checkpoints`.

    Returns:
        Accuracies in [0, 1] by radius in pixel units, ascending, by the spec without eps.
    """
    curves: dict[str, dict[float, float]] = {}
    for key, value in results.items():
        spec = parse_spec(key) if ":" in key else None
        if spec is not None and spec.eps:
            curves.setdefault(str(replace(spec, eps=())), {})[spec.eps[0]] = value
    return {text: dict(sorted(curve.items())) for text, curve in curves.items()}


def _check_transfer(spec: AttackSpec, attack: Any, surrogate: bool) -> None:
    if not surrogate:
        raise ConfigError(f"attack {str(spec)!r} needs a surrogate: --surrogate FILE (in Python surrogate=)")
    if spec.info.is_distance or isinstance(attack, AutoAttack):
        raise ConfigError(f"attack {str(spec)!r}: {spec.info.title} is for the model itself; leave on=surrogate out")


def _split(text: str, rest: str) -> dict[str, list[str]]:
    """Values by option; a part without = is a further value of the option before it."""
    given: dict[str, list[str]] = {}
    option = ""
    for part in rest.split(","):
        name, equals, value = part.partition("=")
        if equals:
            option = name.strip()
            if option in given:
                raise ConfigError(f"attack {text!r} has {option} twice; give it once")
        if not option or not (value if equals else part).strip():
            raise ConfigError(f"attack {text!r}: {part!r} is no option; expected NAME:OPTION=VALUE,OPTION=VALUE,...")
        given.setdefault(option, []).append((value if equals else part).strip())
    return given


def _choice(text: str, option: str, given: Mapping[str, list[str]], known: Sequence[str]) -> str | None:
    if option not in given:
        return None
    if given[option][0] not in known:
        raise ConfigError(f"attack {text!r}: {option} is {given[option][0]!r}; expected {' or '.join(known)}")
    return given[option][0]


_BOOLS = {"true": True, "false": False}
# How a value of each type is read, and what it must be, in words.
_PARSERS: Mapping[Any, tuple[Callable[[str], Any], str]] = {
    bool: (lambda word: _BOOLS[word.lower()], "true or false"),
    int: (int, "an integer"),
    ShareOfEps: (lambda word: _share(word), "eps/NUMBER"),
    float: (parse_number, "a number, such as 0.1 or 2/255"),
    str: (str, "a word"),
}


def _value(text: str, option: str, word: str, kind: Any) -> Any:
    members = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    parsers = [_PARSERS[member] for member in _PARSERS if member in members]
    for parse, _ in parsers:
        try:
            return parse(word)
        except (KeyError, ValueError, ZeroDivisionError):
            continue
    raise ConfigError(f"attack {text!r}: {option} is {word!r}; expected {' or '.join(words for _, words in parsers)}")


def _share(word: str) -> ShareOfEps:
    top, _, bottom = word.partition("/")
    divisor = parse_number(bottom or "1")
    if top.strip() != "eps" or not (math.isfinite(divisor) and divisor > 0):
        raise ValueError(word)
    return ShareOfEps(divisor)


def _radii(text: str, part: str) -> list[float]:
    """The radii of a number, or of a range FIRST..LAST or FIRST..LAST..STEP."""
    try:
        numbers = [parse_number(word) for word in part.split("..")]
    except (ValueError, ZeroDivisionError):
        numbers = []
    if not 1 <= len(numbers) <= 3 or not all(math.isfinite(n) and n >= 0 for n in numbers):
        raise ConfigError(
            f"attack {text!r}: eps is {part!r}; expected radii of 0 or more in pixel units: 8/255, a list "
            "1/255,2/255, a range 1/255..16/255 or a range with a step 0.25..2..0.25"
        )
    if len(numbers) == 1:
        return numbers
    first, last, step = numbers if len(numbers) == 3 else (*numbers, 1 / 255)
    count = (last - first) / step if step else math.nan
    if not (count >= 0 and abs(count - round(count)) < 1e-6 * max(count, 1)):
        raise ConfigError(
            f"attack {text!r}: eps is {part!r}; expected a range whose ends are a whole number of steps apart "
            "(of 1/255 where no step is given), such as 1/255..16/255 or 0.25..2..0.25"
        )
    return [_exact(first + i * step) for i in range(round(count) + 1)]


def _exact(value: float) -> float:
    """The value, or the multiple of 1/255 that it is but for rounding: 3/255 is the same in lists and ranges."""
    levels = round(255 * value)
    return levels / 255 if abs(255 * value - levels) < 1e-9 else float(f"{value:.12g}")


def _text(value: Any) -> str:
    """A value as `parse_spec` reads it."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, float):
        return str(value)
    levels = round(255 * value)
    return f"{levels}/255" if levels / 255 == value and 0 < levels <= 32 else repr(value).removesuffix(".0")
