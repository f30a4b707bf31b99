"""The options of a training run, which the command line, config.yaml and Python share."""

from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Self

import yaml

from pyengm.attacks import ThreatModel
from pyengm.data import user_data
from pyengm.errors import ConfigError
from pyengm.methods import METHODS
from pyengm.models import code_of, list_models
from pyengm.optim import CLOSURE_OPTIMIZERS, defaults_of, hyperparameters_of
from pyengm.training.config_groups import (
    ALL_OPTIMIZERS,
    AttackConfig,
    DataConfig,
    EvaluationConfig,
    MachineConfig,
    MethodConfig,
    ModelConfig,
    OptimizerConfig,
    RecordConfig,
    RunConfig,
    ScheduleConfig,
    WeightsConfig,
)
from pyengm.training.idle_options import idle_options
from pyengm.training.option_parsing import arguments_of, merge_options, parse_options
from pyengm.training.option_types import Option, OptionGroup, options_of
from pyengm.training.recipes import recipe_for
from pyengm.training.resolutions import check_epochs
from pyengm.training.schedule import scale_milestones
from pyengm.training.snapshots import snapshot_epochs
from pyengm.utils.did_you_mean import did_you_mean
from pyengm.utils.import_object import is_object_spec

# Options, by flat name, that may change when a run is resumed.
MAY_CHANGE = ("device", "data_dir", "download", "attacks", "autoattack_examples", "loggers", "keep_checkpoints")
SWA_STARTS = {"swa": Fraction(3, 4), "median": Fraction(74, 120)}
"""The default of swa_start as a share of the run; that of "median" is its authors'."""
PER_CALL = ("seeds", "out", "resume", "config", "nproc", "trust_config", "dry_run", "quiet")
"""Options of one call, which config.yaml does not hold."""


@dataclass(frozen=True)
class TrainConfig:
    """Train a robust classifier and evaluate it. Options that are not given follow the recipe of data and method."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    attack: AttackConfig = field(default_factory=AttackConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    record: RecordConfig = field(default_factory=RecordConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)
    run: RunConfig = field(default_factory=RunConfig)

    options: ClassVar[Mapping[str, Option]]
    """All options by their flat names."""

    def __post_init__(self) -> None:
        recipe = self._recipe()
        self._check_swa_start()
        self._check_attack()
        self._check_optimizer(recipe)
        self._check_precision(recipe)

    @classmethod
    def from_flat(cls, **flat: Any) -> Self:
        """Builds a configuration from options by their flat names, such as attack_steps=3.

        Raises:
            ConfigError: For an unknown name or a value that is not allowed.
        """
        return cls().override(**flat)

    def override(self, **flat: Any) -> Self:
        """Returns a copy in which the options of these flat names are changed.

        Raises:
            ConfigError: For an unknown name or a value that is not allowed.
        """
        changes: dict[str, dict[str, Any]] = {}
        for name, value in flat.items():
            if name not in self.options:
                raise ConfigError(f"unknown option {name!r}{did_you_mean(name, self.options)}")
            option = self.options[name]
            changes.setdefault(option.group, {})[option.field] = value
        return replace(self, **{group: replace(getattr(self, group), **new) for group, new in changes.items()})

    def get(self, name: str) -> Any:
        """Returns the value of the option of that flat name."""
        option = self.options[name]
        return getattr(getattr(self, option.group), option.field)

    def flat(self) -> dict[str, Any]:
        """Returns all options by their flat names."""
        return {name: self.get(name) for name in self.options}

    def resolve(self) -> Self:
        """Returns the same run with every option that was not given filled in from the recipe.

        Options without an effect stay None, or at their defaults.

        Raises:
            ConfigError: For options that do not fit together, and for given ones that have no effect under the others.
        """
        given = self.flat()
        recipe = self._recipe()
        idle = self._idle(recipe)
        for name, reason in idle.items():
            if given[name] != self._default(name):
                raise ConfigError(f"{name} has no effect: {reason}; leave {name} out")
        defaults = {name: argument.default for name, argument in arguments_of(METHODS[self.method.name]).items()}
        if self.attack.steps is not None:
            recipe["step_size"] = None  # the recipe's belongs to its own number of steps
        recipe["attack_bn"] = defaults.get("bn")
        if (self.model.name or recipe["model"]) not in list_models():
            recipe.pop("width", None)  # the recipe's is one of our models
        recipe |= defaults_of(ALL_OPTIMIZERS[self.optimizer.name or recipe["optimizer"]])
        epochs = self.schedule.epochs or recipe["epochs"]
        snapshot_epochs(self.record.snapshots, epochs)
        check_epochs(self.data.resolutions, epochs)
        recipe["milestones"] = scale_milestones(recipe["milestones"], epochs / recipe["epochs"])
        if self.weights.average in SWA_STARTS:
            recipe["swa_start"] = int(epochs * SWA_STARTS[self.weights.average])
        recipe = {"eps": recipe["radii"][self.attack.threat], **recipe}
        recipe = {name: value for name, value in recipe.items() if name not in idle}
        filled = {name: recipe[name] for name in given if given[name] is None and name in recipe}
        filled["method_options"] = merge_options(recipe["method_options"], self.method.options)
        return self.override(**filled)

    def drop_idle(self, keep: Collection[str]) -> Self:
        """Returns a copy in which options that have no effect have their defaults again, except those to keep."""
        idle = self._idle(self._recipe()).keys() - set(keep)
        return self.override(**{name: self._default(name) for name in idle})

    def code(self) -> dict[str, str]:
        """Returns what names code of the user, MODULE:NAME, by option."""
        named = {"model": code_of(self.model.name), "data": user_data(self.data.name)}
        named |= {f"logger {i}": name for i, name in enumerate(self.run.loggers, 1)}
        return {option: name for option, name in named.items() if name is not None and is_object_spec(name)}

    def threats(self) -> list[ThreatModel]:
        """Returns the threat model of the run, then with `eval_both_threats` that of the other norm of the recipe."""
        first = ThreatModel(self.attack.threat, self.attack.eps)
        return default_threats(self.data.name, first) if self.evaluation.eval_both_threats else [first]

    def save(self, path: Path) -> None:
        """Writes the options as YAML, nested by group."""
        path.write_text(yaml.safe_dump(self.plain(), sort_keys=False), encoding="utf-8")

    def plain(self) -> dict[str, dict[str, Any]]:
        """Returns the options as plain values, nested by group, without those of one call (`PER_CALL`)."""
        nested: dict[str, dict[str, Any]] = {}
        for name, option in self.options.items():
            if name not in PER_CALL:
                nested.setdefault(option.group, {})[option.field] = _plain(self.get(name))
        return nested

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads YAML as `save` writes it.

        Raises:
            ConfigError: For a missing file, unknown options or values of another type.
        """
        try:
            given = yaml.load(Path(path).read_text(encoding="utf-8"), _UniqueKeys)
        except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:  # ValueError: no UTF-8, impossible dates
            raise ConfigError(f"cannot read the configuration {path}: {error}") from error
        if not isinstance(given, dict):
            raise ConfigError(f"{path} holds no options; expected groups of them, such as 'schedule: {{epochs: 30}}'")
        try:
            return cls._from_nested(given)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    @classmethod
    def from_plain(cls, given: Mapping[str, Any], where: str) -> Self:
        """Builds a configuration from plain values by flat names.

        Args:
            given: The options, as YAML gives them.
            where: The source of the options, for messages.

        Raises:
            ConfigError: For unknown options or values of another type.
        """
        known = [name for name in cls.options if name not in PER_CALL]
        for name in given:
            if name not in known:
                raise ConfigError(f"{where} has the unknown option {name!r}{did_you_mean(name, known)}")
        try:
            return cls.from_flat(**given)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error

    @classmethod
    def _from_nested(cls, given: Mapping[str, Any]) -> Self:
        flat = {}
        for group, values in given.items():
            if group not in _GROUPS:
                place = f" (it belongs to {cls.options[group].group})" if group in cls.options else ""
                raise ConfigError(
                    f"unknown group {group!r}{place or did_you_mean(group, _GROUPS)}; groups: {', '.join(_GROUPS)}"
                )
            if not isinstance(values, dict):
                raise ConfigError(f"{group} is {values!r}; expected options and values")
            own = {option.field: name for name, option in cls.options.items() if option.group == group}
            own = {name: flat_name for name, flat_name in own.items() if flat_name not in PER_CALL}
            for name, value in values.items():
                if name not in own:
                    raise ConfigError(f"unknown option {name!r} in {group}{did_you_mean(name, own)}")
                flat[own[name]] = value
        return cls.from_flat(**flat)

    def differing(self, other: "TrainConfig") -> list[str]:
        """Returns the flat names of the options that differ, without those of one call."""
        return [name for name in self.options if name not in PER_CALL and self.get(name) != other.get(name)]

    def _idle(self, recipe: Mapping[str, Any]) -> dict[str, str]:
        return idle_options(
            schedule=self.schedule.name or recipe["schedule"],
            average=self.weights.average,
            optimizer=self.optimizer.name or recipe["optimizer"],
            method=self.method.name,
            seeds=self.run.seeds,
            extra_data=self.data.extra_data,
        )

    def _default(self, name: str) -> Any:
        option = self.options[name]
        return getattr(type(getattr(self, option.group)), option.field)

    def _recipe(self) -> dict[str, Any]:
        return recipe_for(
            self.data.name,
            self.method.name,
            self.attack.threat,
            image_size=self.data.image_size,
            eps=self.attack.eps,
            epochs=self.schedule.epochs,
        )

    def _check_swa_start(self) -> None:
        start, epochs = self.weights.swa_start, self.schedule.epochs
        if start is not None and not 0 <= start < (epochs or float("inf")):
            of = "" if epochs is None else f" of {epochs} epochs"
            raise ConfigError(f"swa_start is {start}{of}; expected an epoch of the run, counted from 0")

    def _check_attack(self) -> None:
        name = self.method.name
        taken = arguments_of(METHODS[name])
        given = {"step_size": self.attack.step_size, "steps": self.attack.steps, "bn": self.attack.bn}
        for argument, value in given.items():
            if value is not None and argument not in taken:
                flag = options_of(AttackConfig)[argument].name
                raise ConfigError(f"method {name} takes no {flag}; its options: {', '.join(taken) or 'none'}")

    def _check_optimizer(self, recipe: Mapping[str, Any]) -> None:
        kind = ALL_OPTIMIZERS[self.optimizer.name or recipe["optimizer"]]
        parse_options(self.optimizer.options, kind, "optimizer_options")
        for name, hyperparameter in hyperparameters_of(kind).items():
            value = getattr(self.optimizer, name, None)
            if value is not None:
                hyperparameter.check(value)

    def _check_precision(self, recipe: Mapping[str, Any]) -> None:
        method, optimizer = self.method.name, self.optimizer.name or recipe["optimizer"]
        scalable = (method == "natural" or METHODS[method].info.is_pgd) and optimizer not in CLOSURE_OPTIMIZERS
        if self.machine.precision == "fp16" and not scalable:
            raise ConfigError(
                f"precision fp16 scales the losses, which {method} with {optimizer} does not allow for; use bf16"
            )


def _flat_options() -> Iterable[tuple[str, Option]]:
    for kind in (one.default_factory for one in fields(TrainConfig)):
        assert isinstance(kind, type)
        assert issubclass(kind, OptionGroup)
        yield from ((option.name, option) for option in options_of(kind).values())


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a mapping with the same key twice, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if keys.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} comes twice", key.start_mark)
        return super().construct_mapping(node, deep)


TrainConfig.options = dict(_flat_options())
_GROUPS = tuple(one.name for one in fields(TrainConfig))


def default_threats(data: str, first: ThreatModel) -> list[ThreatModel]:
    """Returns the threat models that models for `data` are evaluated under: `first`, then those of the other norms."""
    radii = recipe_for(data)["radii"]
    return [first, *(ThreatModel(norm, eps) for norm, eps in radii.items() if norm != first.norm)]


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):  # milestones as people write them
        return [int(v) if isinstance(v, float) and v.is_integer() else v for v in value]
    return str(value) if isinstance(value, Path) else value
