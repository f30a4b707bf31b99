"""Every option of a training run: the command line, config.yaml and Python all use this one dataclass."""

from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml

from pyengm.attacks import BN_MODES, NORMS, Threat
from pyengm.errors import ConfigError
from pyengm.methods import METHODS
from pyengm.optim import CLOSURE_OPTIMIZERS, OPTIMIZERS, defaults_of, knobs_of
from pyengm.pergrad import NORMS as GRAD_NORMS
from pyengm.training.schedule import SCHEDULES


def parse_pixels(text: str) -> float:
    """A number in pixel units, also as a fraction: "0.2" or "8/255"."""
    top, _, bottom = text.partition("/")
    return float(top) / float(bottom or 1)


SELECTIONS = ("val", "none", "test")

Pixels = Annotated[
    float,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="PIXELS",
        instance_from_str=lambda words: parse_pixels(words[0]),
        is_instance=lambda value: isinstance(value, float),
        str_from_instance=lambda value: [f"{value:g}"],
    ),
]


@dataclass(frozen=True)
class TrainConfig:
    """Train a robust classifier and evaluate it. Options left out take the recipe of the data set."""

    data: str = "digits"
    """Data set: digits, cifar10, cifar100, svhn, mnist, fashionmnist, or a folder with train/CLASS and test/CLASS."""
    root: Path | None = None
    """Where data sets and decoded folders are kept (else $PYENGM_DATA, else ~/.cache/pyengm)."""
    download: bool = False
    """Fetch a data set that is missing."""
    image_size: int | None = None
    """Resize the pictures of a folder to this height and width."""
    indices: Path | None = None
    """Train on these positions of the training split only: a .npy file or a text file of whole numbers."""
    augment: bool | None = None
    """Random shifts, and mirroring where a mirrored picture keeps its class."""

    model: str | None = None
    """cnn4, cnn8, vgg8, resnet18, preact_resnet18, wrn_28_10, wrn_34_10, resnet50, torchvision:NAME or timm:NAME."""
    width: int | None = None
    """Base number of channels (else the paper's)."""
    norm_layer: Literal["bn", "gn"] | None = None
    """Batch norm, or group norm, which does not couple the examples of a batch."""

    method: str = "pgd_at"
    """Training method: natural or pgd_at."""
    norm: str = "linf"
    """Threat model: linf or l2."""
    eps: Pixels | None = None
    """Radius of the threat model in pixel units, such as 8/255."""
    step: Pixels | None = None
    """Step of the training attack in pixel units (else eps / 4)."""
    steps: int | None = None
    """Steps of the training attack."""
    attack_bn: str = "eval"
    """Batch norm during the training attack: eval, train, or frozen (batch statistics, none updated)."""

    optimizer: str = "engm"
    """Outer optimiser: msgd, mgnc, sngm, engm, fengm, aengm or nengm."""
    alpha: float | None = None
    """Longest gradient that one example may contribute, for nengm in its input (else 5, nengm 0.5, fengm 1)."""
    grad_norms: str = "auto"
    """How per-example gradient norms are found: auto, exact, or under batch norm frozen, corrected or lowrank."""
    tau: int = 50
    """Steps between two fits of gradient norms to input gradients (aengm)."""
    max_norm: float = 25.0
    """Longest gradient of a batch (mgnc)."""
    lr: float | None = None
    """Learning rate at its highest."""
    momentum: float = 0.9
    """Momentum."""
    weight_decay: float = 5e-4
    """Weight decay."""
    batch_size: int | None = None
    """Pictures per step."""
    epochs: int | None = None
    """Passes over the training pictures."""
    schedule: str | None = None
    """Learning rate: piecewise (divided by ten at the milestones) or cyclic (up and down once in straight lines)."""
    milestones: tuple[int, ...] | None = None
    """Epochs at which the piecewise schedule divides the learning rate (else at 1/2 and 3/4 of the run)."""

    select: str = "val"
    """What chooses the best checkpoint: val (held-out training pictures), none (the last is best), or test."""
    attacks: tuple[str, ...] = ()
    """Further attacks of the final evaluation: fgsm, pgd10, pgd50, cw."""
    autoattack_pictures: int | None = None
    """Test pictures for AutoAttack, spread evenly over the test set (else the recipe's number, else all)."""
    seed: int = 0
    """Seed of the weights, the order, the augmentation and the noise."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ... (auto: cuda where there is one)."""
    threads: int | None = None
    """Threads on the CPU (else torch's choice); the last bits of a run on the CPU depend on it."""
    out: Path | None = None
    """Run folder, which must not exist yet (else the next free runs/DATA-METHOD-OPTIMIZER-NUMBER)."""
    resume: bool = False
    """Go on with the interrupted run in --out."""
    config: Path | None = None
    """Start from the options in this file, such as the config.yaml of a run."""

    def __post_init__(self) -> None:
        if self.optimizer in CLOSURE_OPTIMIZERS:
            raise ConfigError(
                f"optimizer {self.optimizer!r} takes several mini-batches per step from a closure, which the training "
                f"loop does not give yet; use pyengm.{CLOSURE_OPTIMIZERS[self.optimizer].__name__} in your own loop"
            )
        for name, value, known in (
            ("method", self.method, METHODS),
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("grad_norms", self.grad_norms, GRAD_NORMS),
            ("norm", self.norm, NORMS),
            ("attack_bn", self.attack_bn, BN_MODES),
            ("schedule", self.schedule, SCHEDULES),
            ("select", self.select, SELECTIONS),
        ):
            if value is not None and value not in known:
                raise ConfigError(f"unknown {name} {value!r}; known: {', '.join(known)}{_hint(value, known)}")
        if self.eps is not None:
            Threat(self.norm, self.eps)
        for name in ("steps", "batch_size", "epochs", "autoattack_pictures", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; expected at least 1")
        for name in ("step", "lr", "momentum", "weight_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ConfigError(f"{name} is {value}; expected a finite number >= 0")
        for name, knob in knobs_of(OPTIMIZERS[self.optimizer]).items():
            if getattr(self, name, None) is not None:
                knob.check(getattr(self, name))
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed is {self.seed}; expected 0 to 2**63 - 1")

    def resolve(self) -> "TrainConfig":
        """The same run with every option that was left open filled in from the recipe."""
        recipe = recipe_for(self.data)
        defaults = recipe | defaults_of(OPTIMIZERS[self.optimizer])
        config = replace(self, **{k: v for k, v in defaults.items() if k in _NAMES and getattr(self, k) is None})
        eps = recipe["radii"][config.norm] if config.eps is None else config.eps
        epochs = config.epochs
        return replace(
            config,
            eps=eps,
            step=eps / 4 if config.step is None else config.step,
            milestones=(epochs // 2, epochs * 3 // 4) if config.milestones is None else config.milestones,
        )

    def threats(self) -> list[Threat]:
        """The threat model of the run first, then the other norm with the recipe's radius."""
        return default_threats(self.data, Threat(self.norm, self.eps))

    def save(self, path: Path) -> None:
        """Writes the options as YAML, without out, resume and config, which belong to one call."""
        plain = {k: _plain(v) for k, v in asdict(self).items() if k not in _PER_CALL}
        path.write_text(yaml.safe_dump(plain, sort_keys=False))

    @classmethod
    def load(cls, path: Path) -> "TrainConfig":
        """Reads YAML as `save` writes it. Raises ConfigError for a missing file, unknown options or wrong types."""
        try:
            given = yaml.safe_load(Path(path).read_text())
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"cannot read the configuration {path}: {error}") from error
        if not isinstance(given, dict):
            raise ConfigError(f"{path} holds no options; expected lines such as 'epochs: 30'")
        for name in given:
            if name not in _NAMES or name in _PER_CALL:
                raise ConfigError(f"{path} has the unknown option {name!r}{_hint(name, _NAMES)}")
        return cls(**{name: _typed(path, name, value) for name, value in given.items()})


_NAMES = {field.name: field for field in fields(TrainConfig)}
_PER_CALL = ("out", "resume", "config")

# Per data set: what the options that are left open become. radii: eps per norm; both norms are evaluated.
DEFAULT_RECIPE: dict[str, Any] = {
    "model": "resnet18",
    "norm_layer": "bn",
    "augment": True,
    "steps": 10,
    "batch_size": 128,
    "lr": 0.1,
    "schedule": "piecewise",
    "epochs": 120,
    "radii": {"linf": 8 / 255, "l2": 128 / 255},
}
RECIPES: dict[str, dict[str, Any]] = {
    "digits": {
        **DEFAULT_RECIPE,
        "model": "cnn8",
        "width": 16,
        "augment": False,
        "steps": 7,
        "batch_size": 24,
        "lr": 0.2,
        "schedule": "cyclic",
        "epochs": 14,
        "threads": 1,  # pictures of 64 pixels keep no second core busy
        "autoattack_pictures": 100,
        "radii": {"linf": 0.2, "l2": 0.5},
    },
    "mnist": {**DEFAULT_RECIPE, "model": "cnn4", "lr": 0.01, "epochs": 50, "radii": {"linf": 0.3, "l2": 2.0}},
    "svhn": {**DEFAULT_RECIPE, "lr": 0.01},
}


def recipe_for(data: str) -> dict[str, Any]:
    """The recipe of a data set; folders have the default one."""
    return RECIPES.get(data, DEFAULT_RECIPE)


def default_threats(data: str, first: Threat) -> list[Threat]:
    """The threat models that models for `data` are evaluated under: `first`, then the other norms."""
    return [first, *(Threat(norm, eps) for norm, eps in recipe_for(data)["radii"].items() if norm != first.norm)]


def _hint(value: str, known) -> str:
    close = get_close_matches(str(value), list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value


def _typed(path: Path, name: str, value: Any) -> Any:
    """A YAML value as the type of its field; fractions such as 8/255 are numbers too."""
    if value is None:
        return None
    annotation = str(_NAMES[name].type)
    kind = next((k for k in ("tuple[int", "tuple[str", "Path", "bool", "int", "float") if k in annotation), "str")
    try:
        if kind.startswith("tuple"):
            return tuple({"tuple[int": int, "tuple[str": str}[kind](v) for v in value)
        if kind == "bool" and not isinstance(value, bool):
            raise ValueError("expected true or false")
        if kind == "float":
            return parse_pixels(str(value))
        if kind == "int" and int(value) != value:
            raise ValueError("expected a whole number")
        return {"Path": Path, "bool": bool, "int": int, "str": str}[kind](value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {name} is {value!r}, which is no {kind.replace('[', ' of ')}: {error}") from error
