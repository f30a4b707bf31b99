"""Every option of a training run: the command line, config.yaml and Python all use this one dataclass."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml

from pyengm.attacks import BN_MODES, THREAT_NORMS, ThreatModel
from pyengm.data import AUGMENTATIONS
from pyengm.errors import ConfigError
from pyengm.methods import METHODS
from pyengm.optim import CLOSURE_OPTIMIZERS, OPTIMIZERS, defaults_of, hyperparameters_of
from pyengm.pergrad import NORMS as GRAD_NORMS
from pyengm.training.averaging import AVERAGES
from pyengm.training.loggers import check_logger_name
from pyengm.training.option_parsing import defaults_for, merge_options, parse_options, parse_pixels
from pyengm.training.precision import PRECISIONS
from pyengm.training.recipes import recipe_for
from pyengm.training.schedule import SCHEDULES, in_proportion
from pyengm.utils.did_you_mean import did_you_mean

ALL_OPTIMIZERS = OPTIMIZERS | CLOSURE_OPTIMIZERS


SELECTIONS = ("val", "none", "test")
ON_CATASTROPHIC_OVERFITTING = ("warn", "stop")
# Their whole attack is one call of PGD, which can be compiled, captured in a CUDA graph, and scaled for float16.
PGD_METHODS = ("pgd_at", "trades", "mart", "pgd_at_awp", "trades_awp", "mart_awp", "fgsm_rs")

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
    """Train a robust classifier and evaluate it. Options left out take the recipe of the data set and the method."""

    data: str = "digits"
    """Data set: digits, cifar10, cifar100, svhn, mnist, fashionmnist, or a folder with train/CLASS and test/CLASS."""
    root: Path | None = None
    """Where data sets and decoded folders are kept (else $PYENGM_DATA, else ~/.cache/pyengm)."""
    download: bool = False
    """Fetch a data set that is missing."""
    image_size: int | None = None
    """Resize the images of a folder to this height and width."""
    indices: Path | None = None
    """Train on these positions of the training split only: a .npy file or a text file of whole numbers."""
    augment: str | None = None
    """none; shift: random shifts; or resized: random resized crops, the default for folders with --image-size 64 or
    more. The last two flip images where a flipped one keeps its class."""

    model: str | None = None
    """cnn4, cnn8, vgg8, resnet18, preact_resnet18, wrn_28_10, wrn_34_10, resnet50, torchvision:NAME or timm:NAME."""
    width: int | None = None
    """Base number of channels (else the paper's)."""
    norm_layer: Literal["bn", "gn"] | None = None
    """Batch norm, or group norm, which does not couple the examples of a batch."""
    mean: tuple[float, ...] | None = None
    """With --std: the model's first layer maps pixels x to (x - mean) / std, with a number of each per channel, such as
    0.4914 0.4822 0.4465. Images, eps and step stay in pixel units."""
    std: tuple[float, ...] | None = None
    """See --mean."""

    method: str = "pgd_at"
    """Training method: natural, pgd_at, trades, mart, pgd_at_awp, trades_awp, mart_awp, dynamic, fgsm_then_pgd,
    curriculum, fgsm_rs, grad_align, ssat, atta, atas, free_at, yopo, nuat, sub_at, fgsm_sdi or fgsm_pgi."""
    norm: str = "linf"
    """ThreatModel model: linf or l2."""
    eps: Pixels | None = None
    """Radius of the threat model in pixel units, such as 8/255."""
    step: Pixels | None = None
    """Step of the training attack in pixel units (else the method's own multiple of eps)."""
    steps: int | None = None
    """Steps of the training attack."""
    attack_bn: str | None = None
    """Batch norm during the training attack: eval, train, or batch_stats (batch statistics, none updated)."""
    method_options: tuple[str, ...] | None = None
    """Other options of the method, such as beta=6 (the arguments of its class in pyengm.methods)."""
    catastrophic_overfitting: str = "warn"
    """When accuracy under PGD on training images falls by 20 points within an epoch: warn, or stop and keep the
    weights from before."""

    optimizer: str | None = None
    """Outer optimiser: msgd, mgnc, sngm, engm, fengm, aengm, nengm, entropy_sgd or entropy_sgd2."""
    optimizer_options: tuple[str, ...] | None = None
    """Other options of the optimiser, such as L=20 (the arguments of its class in pyengm)."""
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
    momentum: float | None = None
    """Momentum."""
    weight_decay: float | None = None
    """Weight decay."""
    batch_size: int | None = None
    """Images per step."""
    epochs: int | None = None
    """Passes over the training images."""
    schedule: str | None = None
    """Learning rate: piecewise (times --lr-decay at the milestones), cyclic (up and down in straight lines), cosine,
    constant or nuat."""
    milestones: tuple[float, ...] | None = None
    """Epochs, counted from 0, at which the piecewise schedule lowers the rate, such as 7.5 for the middle of the eighth
    (else the recipe's, in proportion to --epochs)."""
    lr_decay: float = 0.1
    """What the piecewise schedule multiplies the rate by at a milestone."""
    warmup_epochs: float = 0.0
    """Epochs, or parts of them, in which the rate rises from near 0: a straight line times the schedule, which goes on
    meanwhile."""
    peak: float | None = None
    """Share of the run that the cyclic schedule spends on its way up."""
    label_smoothing: float = 0.0
    """Share of every label that goes to all classes in equal parts, in the losses that weights are trained on; attacks
    keep the labels as they are (free_at and yopo, whose attack is a part of the training pass, do not)."""
    average: str = "none"
    """Averages of the weights: none, ema (moving, after every step) or mean (in equal parts, after every epoch from
    --average-start on). These are then what is evaluated and what best and last hold; training goes on with its own."""
    average_decay: float = 0.999
    """Share of the old in a moving average, smaller at first: at most (1 + t) / (10 + t) after t steps."""
    average_start: int | None = None
    """First epoch, counted from 0, that --average mean counts (else after three quarters of the run); before it the
    weights themselves are evaluated and saved."""

    select: str | None = None
    """What chooses the best checkpoint: val (held-out training images), none (the last is best), or test."""
    patience: int | None = None
    """Stop once this many epochs in a row were not better than the best one (by --select val or test)."""
    attacks: tuple[str, ...] = ()
    """Further attacks of the final evaluation: fgsm, pgd10, pgd50, cw, deepfool, apgd_ce, apgd_t, fab_t, square."""
    other_norm: bool = True
    """Evaluate in the other norm too, with the radius of the recipe."""
    autoattack_examples: int | None = None
    """Test images for AutoAttack, spread evenly over the test set (else the recipe's number, else all)."""
    seed: int = 0
    """Seed of the weights, the order, the augmentation and the noise."""
    seeds: tuple[int, ...] = ()
    """Several seeds in place of one: a run of each, in OUT/seed-0, OUT/seed-1, ..., and their mean and spread, in
    OUT/summary.json too."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ... (auto: cuda where there is one)."""
    precision: str = "float32"
    """Of the model in training: float32, bf16 (faster on GPUs) or fp16 (for GPUs without bf16). Parameters, losses and
    steps are float32 in all of them, and so is every evaluation."""
    cuda_graphs: bool = False
    """Launch the training attack as one CUDA graph, and the pass for the weights too, where it is the same for every
    batch: not with AWP, fp16, or engm with batch norm."""
    compile: bool = False
    """Run the training attack through torch.compile: a minute or more at the start, faster steps after it."""
    threads: int | None = None
    """Threads on the CPU (else torch's choice); the last bits of a run on the CPU depend on it."""
    loggers: tuple[str, ...] = ()
    """Where the figures go besides the terminal and metrics.jsonl: tensorboard, or MODULE:FACTORY of your own."""
    keep: int = 2
    """Checkpoints to keep in the run folder: a resume goes on from the newest that is whole."""
    sync_bn: bool = False
    """With several processes, batch norm takes its statistics from all of them (GPUs only); else each from its own."""
    nproc: int | None = None
    """Start this many processes on this machine, which share each batch: a GPU each, or CPU cores. On several machines
    use torchrun: torchrun --nnodes=2 --nproc-per-node=8 ... -m pyengm train ..."""
    out: Path | None = None
    """Run folder, which must not exist yet (else the next free runs/DATA-METHOD-OPTIMIZER-NUMBER)."""
    resume: bool = False
    """Go on with the interrupted run in --out."""
    config: Path | None = None
    """Start from the options in this file, such as the config.yaml of a run."""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("augment", self.augment, AUGMENTATIONS),
            ("method", self.method, METHODS),
            ("optimizer", self.optimizer, ALL_OPTIMIZERS),
            ("grad_norms", self.grad_norms, GRAD_NORMS),
            ("norm", self.norm, THREAT_NORMS),
            ("attack_bn", self.attack_bn, BN_MODES),
            ("schedule", self.schedule, SCHEDULES),
            ("average", self.average, AVERAGES),
            ("select", self.select, SELECTIONS),
            ("catastrophic_overfitting", self.catastrophic_overfitting, ON_CATASTROPHIC_OVERFITTING),
            ("precision", self.precision, PRECISIONS),
        ):
            if value is not None and value not in known:
                raise ConfigError(f"unknown {name} {value!r}; known: {', '.join(known)}{did_you_mean(value, known)}")
        if self.eps is not None:
            ThreatModel(self.norm, self.eps)
        for name in ("steps", "batch_size", "epochs", "patience", "autoattack_examples", "threads", "keep", "nproc"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; expected at least 1")
        for name in ("step", "lr", "momentum", "weight_decay", "warmup_epochs"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ConfigError(f"{name} is {value}; expected a finite number >= 0")
        if self.peak is not None and not 0 < self.peak < 1:
            raise ConfigError(f"peak is {self.peak}; expected a share of the run between 0 and 1")
        for name in self.loggers:
            check_logger_name(name)
        for name in ("label_smoothing", "average_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected a share from 0 to less than 1")
        self._check_course()
        self._check_options()
        for seed in (self.seed, *self.seeds):
            if not 0 <= seed < 2**63:
                raise ConfigError(f"seed is {seed}; expected 0 to 2**63 - 1")
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds are {self.seeds}; expected each of them once")

    def _check_course(self) -> None:
        """What happens when in a run."""
        if not 0 < self.lr_decay <= 1:
            raise ConfigError(f"lr_decay is {self.lr_decay}; expected a factor above 0, and 1 at most")
        if not all(0 <= epoch < float("inf") for epoch in self.milestones or ()):
            raise ConfigError(f"milestones are {self.milestones}; expected finite numbers of epochs >= 0")
        beyond = [f"{epoch:g}" for epoch in self.milestones or () if epoch >= (self.epochs or float("inf"))]
        if beyond and self.schedule == "piecewise":
            raise ConfigError(f"milestones {', '.join(beyond)} are never reached in {self.epochs} epochs: give others")
        if self.epochs is not None and self.warmup_epochs >= self.epochs:
            raise ConfigError(f"warmup_epochs is {self.warmup_epochs:g} of {self.epochs} epochs; expected less")
        if self.average_start is not None and not 0 <= self.average_start < (self.epochs or float("inf")):
            of = "" if self.epochs is None else f" of {self.epochs} epochs"
            raise ConfigError(f"average_start is {self.average_start}{of}; expected one of the run, counted from 0")
        if self.patience is not None and self.select == "none":
            raise ConfigError("patience counts epochs by held-out accuracy, and select is none: give --select val")

    def _check_options(self) -> None:
        taken = defaults_for(METHODS[self.method])
        for name, argument in (("step", "step_size"), ("steps", "steps"), ("attack_bn", "bn")):
            if getattr(self, name) is not None and argument not in taken:
                raise ConfigError(f"method {self.method} takes no {name}; its options: {', '.join(taken) or 'none'}")
        parse_options(self.method_options or (), METHODS[self.method], "method_options")
        recipe = self._recipe()
        name = self.optimizer or recipe["optimizer"]
        optimizer = ALL_OPTIMIZERS[name]
        if self.precision == "fp16" and (self.method not in ("natural", *PGD_METHODS) or name in CLOSURE_OPTIMIZERS):
            raise ConfigError(
                f"precision fp16 scales the losses, which {self.method} with {name} does not allow for; use bf16"
            )
        parse_options(self.optimizer_options or (), optimizer, "optimizer_options")
        for name, hyperparameter in hyperparameters_of(optimizer).items():
            if getattr(self, name, None) is not None:
                hyperparameter.check(getattr(self, name))

    def resolve(self) -> "TrainConfig":
        """The same run with every option that was left open filled in from the recipe."""
        recipe = self._recipe()
        taken = defaults_for(METHODS[self.method])
        if taken.get("steps") != 10:  # the recipe's number is for attacks of many steps
            recipe["steps"] = taken.get("steps")
        if self.steps is not None:
            recipe["step"] = None  # the recipe's belongs to its own number of steps
        recipe["attack_bn"] = taken.get("bn")
        recipe |= defaults_of(ALL_OPTIMIZERS[self.optimizer or recipe["optimizer"]])
        share = (recipe["epochs"] if self.epochs is None else self.epochs) / recipe["epochs"]
        recipe["milestones"] = in_proportion(recipe["milestones"], share)
        if self.average == "mean":
            recipe["average_start"] = (self.epochs or recipe["epochs"]) * 3 // 4
        recipe = {"eps": recipe["radii"][self.norm], **recipe}
        filled = replace(self, **{k: v for k, v in recipe.items() if k in _NAMES and getattr(self, k) is None})
        return replace(filled, method_options=merge_options(recipe["method_options"], filled.method_options))

    def _recipe(self) -> dict[str, Any]:
        return recipe_for(
            self.data, self.method, self.norm, image_size=self.image_size, eps=self.eps, epochs=self.epochs
        )

    def threats(self) -> list[ThreatModel]:
        """The threat model of the run first, then with `other_norm` the other norm with the recipe's radius."""
        first = ThreatModel(self.norm, self.eps)
        return default_threats(self.data, first) if self.other_norm else [first]

    def save(self, path: Path) -> None:
        """Writes the options as YAML."""
        path.write_text(yaml.safe_dump(self.plain(), sort_keys=False))

    def plain(self) -> dict[str, Any]:
        """The options as plain values, without those that belong to one call (`PER_CALL`)."""
        return {k: _plain(v) for k, v in asdict(self).items() if k not in PER_CALL}

    @classmethod
    def load(cls, path: Path) -> "TrainConfig":
        """Reads YAML as `save` writes it. Raises ConfigError for a missing file, unknown options or wrong types."""
        try:
            given = yaml.safe_load(Path(path).read_text())
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"cannot read the configuration {path}: {error}") from error
        if not isinstance(given, dict):
            raise ConfigError(f"{path} holds no options; expected lines such as 'epochs: 30'")
        return cls.from_plain(given, str(path))

    @classmethod
    def from_plain(cls, given: Mapping[str, Any], where: str) -> "TrainConfig":
        """Options as YAML gives them. where: the file, for messages. Raises ConfigError as `load` does."""
        for name in given:
            if name not in _NAMES or name in PER_CALL:
                raise ConfigError(f"{where} has the unknown option {name!r}{did_you_mean(name, _NAMES)}")
        return cls(**{name: _typed(where, name, value) for name, value in given.items()})

    def differing(self, other: "TrainConfig") -> list[str]:
        """The names of the options that are not the same in both, without those that belong to one call."""
        return [name for name in _NAMES if name not in PER_CALL and getattr(self, name) != getattr(other, name)]


_NAMES = {field.name: field for field in fields(TrainConfig)}
MAY_CHANGE = (
    "device",
    "root",
    "download",
    "attacks",
    "autoattack_examples",
    "loggers",
    "keep",
)  # when a run is resumed
PER_CALL = ("seeds", "out", "resume", "config", "nproc")  # options of one call, which config.yaml does not hold


def default_threats(data: str, first: ThreatModel) -> list[ThreatModel]:
    """The threat models that models for `data` are evaluated under: `first`, then the other norms."""
    return [first, *(ThreatModel(norm, eps) for norm, eps in recipe_for(data)["radii"].items() if norm != first.norm)]


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [
            int(v) if isinstance(v, float) and v.is_integer() else v for v in value
        ]  # milestones as people write them
    return str(value) if isinstance(value, Path) else value


def _typed(where: str, name: str, value: Any) -> Any:
    """A YAML value as the type of its field; fractions such as 8/255 are numbers too."""
    if value is None:
        return None
    annotation = str(_NAMES[name].type)
    kind = next((k for k in ("tuple[float", "tuple[str", "Path", "bool", "int", "float") if k in annotation), "str")
    try:
        if kind.startswith("tuple"):
            return tuple(parse_pixels(str(v)) if kind == "tuple[float" else str(v) for v in value)
        if kind == "bool" and not isinstance(value, bool):
            raise ValueError("expected true or false")
        if kind == "float":
            return parse_pixels(str(value))
        if kind == "int" and int(value) != value:
            raise ValueError("expected a whole number")
        return {"Path": Path, "bool": bool, "int": int, "str": str}[kind](value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {name} is {value!r}, which is no {kind.replace('[', ' of ')}: {error}") from error
