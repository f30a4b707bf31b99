"""The groups of options of a training run."""

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from pyengm.attacks import BN_MODES, THREAT_NORMS, ThreatModel
from pyengm.data import AUGMENTATIONS, data_name
from pyengm.errors import ConfigError
from pyengm.evaluation import ATTACKS
from pyengm.methods import METHODS
from pyengm.methods.example_weights import EXAMPLE_WEIGHTS
from pyengm.models import list_models
from pyengm.optim import CLOSURE_OPTIMIZERS, OPTIMIZERS, PerExampleSGD
from pyengm.pergrad import NORMS as GRAD_NORMS
from pyengm.training.averaging import AVERAGES
from pyengm.training.loggers import logger_name
from pyengm.training.option_parsing import parse_options
from pyengm.training.option_types import (
    FROM_RECIPE,
    Choice,
    Count,
    Expect,
    Flag,
    NonNegative,
    OptionGroup,
    Pixels,
    Positive,
    Share,
    Unset,
    is_step_size,
)
from pyengm.training.precision import PRECISIONS
from pyengm.training.resolutions import parse_resolutions
from pyengm.training.schedule import SCHEDULES
from pyengm.training.snapshots import check_snapshots

TRAIN_ATTACKS = tuple(name for name, info in ATTACKS.items() if not info.is_distance)
ALL_OPTIMIZERS: Mapping[str, type[PerExampleSGD]] = ChainMap(CLOSURE_OPTIMIZERS, OPTIMIZERS)


@dataclass(frozen=True)
class DataConfig(OptionGroup):
    """The training and test images."""

    group: ClassVar[str] = "data"
    name: Annotated[str, Flag("data")] = "digits"
    """Data set: digits, cifar10, cifar100, svhn, mnist, fashionmnist, a folder with train/CLASS and test/CLASS, or
    MODULE:FUNCTION of your own, which returns the training and the test images."""
    data_dir: Annotated[Path | None, Unset("$PYENGM_DATA, else ~/.cache/pyengm")] = None
    """Folder in which data sets and decoded images are kept."""
    download: bool = False
    """Download a data set that is missing."""
    image_size: Annotated[Count | None, Unset("as they are")] = None
    """Height and width in pixels to which the images of a folder are resized."""
    train_indices: Annotated[Path | None, Unset("all")] = None
    """Train on these images of the training split only: a .npy file or a text file of integers, counted from 0."""
    extra_data: Annotated[Path | None, Unset("no extra images")] = None
    """Further training images, such as synthetic ones: an .npz file of image (N, H, W, C) uint8 and label (N,). Epochs
    have as many batches as without them."""
    extra_fraction: Share = 0.7
    """Share of the extra images in each batch."""
    augment: Annotated[str, Choice(AUGMENTATIONS)] = FROM_RECIPE
    """Augmentation. shift: random shifts. resized: random resized crops, the default for folders with an image size of
    64 or more. Both flip images at random where a flipped image keeps its class."""
    resolutions: Annotated[tuple[str, ...], Unset("their own in all epochs")] = ()
    """Heights and widths in pixels of the training images by epochs, counted from 0, such as 0:128 30:160; images are
    shrunk to them after their augmentation. Evaluations take the images at their own size, and so does training in
    epochs before the first."""
    cutout: Annotated[Count | None, Unset("none")] = None
    """Side in pixels of a square that is erased from every training image, such as 16 on CIFAR-10."""
    cutmix: Annotated[float, Expect("a probability from 0 to 1", lambda share: 0 <= share <= 1)] = 0.0
    """Probability that a box of a training image shows another one; the labels are mixed in proportion to the areas."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "name", data_name(self.name))
        parse_resolutions(self.resolutions)


@dataclass(frozen=True)
class ModelConfig(OptionGroup):
    """The network."""

    group: ClassVar[str] = "model"
    name: Annotated[str, Flag("model")] = FROM_RECIPE
    """Architecture: cnn4, cnn8, vgg8, resnet18, preact_resnet18, wrn_28_10, wrn_34_10, resnet50, torchvision:NAME or
    timm:NAME, or MODULE:FUNCTION of your own, which returns the model."""
    width: Annotated[Count | None, Unset("that of the architecture's paper")] = None
    """Base number of channels."""
    norm_layer: Annotated[str, Choice(("bn", "gn"))] = FROM_RECIPE
    """Batch norm, or group norm, under which the examples of a batch are independent."""
    mean: Annotated[tuple[float, ...] | None, Unset("no normalization")] = None
    """With --std: the first layer of the model normalizes pixels x to (x - mean) / std. One value per channel, such as
    0.4914 0.4822 0.4465. Images, eps and step size stay in pixel units."""
    std: Annotated[tuple[float, ...] | None, Unset("no normalization")] = None
    """Standard deviation of each channel; see --mean."""
    init: Annotated[Path | None, Unset("random weights")] = None
    """Weights to start from (fine-tuning): a checkpoint of a run, or a state dict in a file of torch or safetensors."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name is not None and self.name.lower() in list_models():
            object.__setattr__(self, "name", self.name.lower())
        if () in (self.mean, self.std) or (self.mean is None) != (self.std is None):
            raise ConfigError(
                f"mean is {self.mean} and std is {self.std}; expected both or neither, a value per channel"
            )


@dataclass(frozen=True)
class AttackConfig(OptionGroup):
    """The threat model and the attack of the training."""

    group: ClassVar[str] = "attack"
    threat: Annotated[str, Choice(THREAT_NORMS)] = "linf"
    """Norm of the threat model."""
    eps: Pixels = FROM_RECIPE
    """Radius of the threat model in pixel units, such as 8/255."""
    step_size: Annotated[Pixels | None, is_step_size, Unset("the method's own multiple of eps")] = None
    """Step size of the training attack in pixel units."""
    steps: Annotated[Count | None, Flag("attack_steps"), Unset("the method has none")] = None
    """Number of steps of the training attack."""
    bn: Annotated[str | None, Flag("attack_bn"), Choice(BN_MODES), Unset("the method has none")] = None
    """Batch norm during the training attack. eval: running statistics. train: batch statistics, which update the
    running ones. batch_stats: batch statistics, which update nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eps is not None:
            ThreatModel(self.threat, self.eps)


@dataclass(frozen=True)
class MethodConfig(OptionGroup):
    """The training method and its loss."""

    group: ClassVar[str] = "method"
    name: Annotated[str, Flag("method"), Choice(METHODS)] = "pgd_at"
    """Training method."""
    options: Annotated[tuple[str, ...], Flag("method_options"), Unset("none")] = ()
    """Other options of the method, such as beta=6. The options of a method are listed by: pyengm train --method NAME
    --help."""
    example_weights: Annotated[str, Choice(("none", *EXAMPLE_WEIGHTS))] = "none"
    """Weights of the examples in the losses. gairat: by the steps of PGD that it takes to fool the model, for methods
    whose attack is PGD alone. mail: by the margin on the adversarial image."""
    weight_options: Annotated[tuple[str, ...], Unset("none")] = ()
    """Other options of the weights: lam and begin of gairat; slope, bias and begin of mail, such as slope=2 bias=0 for
    trades."""
    label_smoothing: Share = 0.0
    """Share of every label that is spread evenly over all classes, in the losses that train the weights. Attacks use
    the plain labels, except those of free_at and yopo, which are part of the training pass."""
    on_catastrophic_overfitting: Annotated[str, Choice(("warn", "stop"))] = "warn"
    """What happens when the accuracy under PGD on training images falls by 20 points within an epoch: a warning, or
    the end of the run with the weights from before that epoch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_options(self.options, METHODS[self.name], "method_options")
        if self.example_weights != "none":
            parse_options(self.weight_options, EXAMPLE_WEIGHTS[self.example_weights], "weight_options")
        elif self.weight_options:
            raise ConfigError(f"weight_options is {' '.join(self.weight_options)}, and example_weights is none")


@dataclass(frozen=True)
class OptimizerConfig(OptionGroup):
    """The outer optimiser."""

    group: ClassVar[str] = "optimizer"
    name: Annotated[str, Flag("optimizer"), Choice(ALL_OPTIMIZERS)] = FROM_RECIPE
    """Outer optimiser."""
    options: Annotated[tuple[str, ...], Flag("optimizer_options"), Unset("none")] = ()
    """Other options of the optimiser, such as inner_steps=20. The options of an optimiser are listed by: pyengm train
    --optimizer NAME --help."""
    alpha: Annotated[float | None, Unset("the optimiser has none")] = None
    """Largest norm of the gradient that one example may contribute; for nengm of the gradient with respect to its
    input."""
    norms: Annotated[str, Choice(GRAD_NORMS)] = "auto"
    """How norms of per-example gradients are computed. corrected (the default) and lowrank are estimates under
    batch norm."""
    tau: Count = 50
    """Steps between two fits of gradient norms to norms of input gradients (aengm)."""
    sam_rho: Annotated[
        float | None,
        Expect("a finite number >= 0", lambda rho: rho is None or 0 <= rho < float("inf")),
        Unset("no SAM"),
    ] = None
    """Radius of sharpness-aware minimization, such as 0.05: the gradients, of each example too, are those at weights
    moved so far along the gradient of the batch. It takes one more pass; for methods that are an attack and then
    losses."""
    max_norm: Positive = 25.0
    """Largest norm of the gradient of a batch (mgnc)."""
    lr: Positive = FROM_RECIPE
    """Maximum of the learning rate."""
    momentum: Share = FROM_RECIPE
    """Momentum."""
    weight_decay: NonNegative = FROM_RECIPE
    """Weight decay."""


@dataclass(frozen=True)
class ScheduleConfig(OptionGroup):
    """The length of the training and the learning rate along it."""

    group: ClassVar[str] = "schedule"
    name: Annotated[str, Flag("schedule"), Choice(SCHEDULES)] = FROM_RECIPE
    """Learning rate. piecewise: multiplied by --lr-decay at the milestones. cyclic: up and down in straight lines.
    one_cycle: up and down along cosines, from 1/25 and to 1/250,000 of the rate (torch's OneCycleLR)."""
    batch_size: Count = FROM_RECIPE
    """Images per step."""
    epochs: Count = FROM_RECIPE
    """Passes over the training images."""
    milestones: Annotated[
        tuple[float, ...],
        Expect("finite numbers of epochs >= 0", lambda epochs: all(0 <= epoch < float("inf") for epoch in epochs)),
    ] = FROM_RECIPE
    """Epochs, counted from 0, at which the piecewise schedule lowers the rate; 7.5 is the middle of the eighth epoch.
    The default is in proportion to --epochs."""
    lr_decay: Annotated[float, Expect("a factor above 0, and 1 at most", lambda factor: 0 < factor <= 1)] = 0.1
    """Factor by which the piecewise schedule multiplies the rate at a milestone."""
    warmup_epochs: NonNegative = 0.0
    """Epochs, or parts of them, of linear warm-up, which multiplies the schedule by a factor that rises from near 0
    to 1."""
    pct_start: Annotated[float, Expect("a share of the run between 0 and 1", lambda share: 0 < share < 1)] = FROM_RECIPE
    """Share of the run in which the schedules cyclic and one_cycle rise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        epochs = self.epochs or float("inf")
        beyond = [f"{epoch:g}" for epoch in self.milestones or () if epoch >= epochs]
        if beyond and self.name == "piecewise":
            raise ConfigError(f"milestones {', '.join(beyond)} are never reached in {self.epochs} epochs: give others")
        if self.warmup_epochs >= epochs:
            raise ConfigError(f"warmup_epochs is {self.warmup_epochs:g} of {self.epochs} epochs; expected less")


@dataclass(frozen=True)
class WeightsConfig(OptionGroup):
    """Averages of the weights, which are then evaluated and saved; training continues with the weights themselves."""

    group: ClassVar[str] = "weights"
    average: Annotated[str, Choice(AVERAGES)] = "none"
    """Average of the weights. ema: exponential moving average, updated after every step. swa: equal average, updated
    after every epoch from --swa-start on. median: of each weight over the same epochs, whose weights all stay in memory
    and in checkpoints."""
    ema_decay: Share = 0.999
    """Weight of the old average in ema; at most (1 + t) / (10 + t) after t steps."""
    swa_start: Annotated[int | None, Unset("after three quarters of the run, or 74/120 of it for median")] = None
    """First epoch, counted from 0, that swa and median take; before it the weights themselves are evaluated and
    saved."""


@dataclass(frozen=True)
class EvaluationConfig(OptionGroup):
    """The choice of the best checkpoint and the final evaluation."""

    group: ClassVar[str] = "evaluation"
    select_on: Annotated[str, Choice(("val", "none", "test"))] = FROM_RECIPE
    """Images on which the best checkpoint is selected: val are held-out training images; with none the last checkpoint
    is the best."""
    patience: Annotated[Count | None, Unset("no early stopping")] = None
    """Stop after this many epochs in a row without improvement on the images of --select-on."""
    attacks: Annotated[tuple[str, ...], Choice(ATTACKS), Unset("none")] = ()
    """Further attacks of the final evaluation: fgsm, pgd10, pgd50, cw, deepfool, apgd_ce, apgd_t, fab_t, square."""
    train_attack: Annotated[str | None, Choice(TRAIN_ATTACKS), Unset("PGD-5")] = None
    """Attack of the accuracy on training images after each epoch, such as pgd10, in adversarial training."""
    train_attack_examples: Count = 128
    """Number of these images, whole batches of them."""
    eval_both_threats: bool = True
    """Evaluate under the other norm too, with the radius of the recipe."""
    autoattack_examples: Annotated[Count | None, Unset("all")] = None
    """Number of test images for AutoAttack, spread evenly over the test set."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patience is not None and self.select_on == "none":
            raise ConfigError(
                "patience counts epochs by held-out accuracy, and select_on is none: give --select-on val"
            )


@dataclass(frozen=True)
class RecordConfig(OptionGroup):
    """What the run records for analyses, without changing the training."""

    group: ClassVar[str] = "record"
    snapshots: Annotated[tuple[str, ...], Unset("none")] = ()
    """Keep the weights after these numbers of epochs, such as 10 60 100, or every=5, in RUN/snapshots."""
    probe: Annotated[Count | None, Unset("no probe")] = None
    """Measure the gradients of this many fixed training images after each epoch: mean norm and variance in
    metrics.jsonl, norms by image in RUN/probe. Under batch norm most are estimates, with standard errors."""
    instance_log: bool = False
    """Keep the norm of the input gradient, the step size and the norm of the perturbation of every training image in
    each epoch, in RUN/instances."""

    def __post_init__(self) -> None:
        if isinstance(self.snapshots, (list, tuple)):
            object.__setattr__(self, "snapshots", tuple(map(str, self.snapshots)))  # numbers of Python and YAML
        super().__post_init__()
        check_snapshots(self.snapshots)


@dataclass(frozen=True)
class MachineConfig(OptionGroup):
    """The device, and how it is used."""

    group: ClassVar[str] = "machine"
    device: str = "auto"
    """cpu, cuda, cuda:1, ... (auto: cuda if available)."""
    precision: Annotated[str, Choice(PRECISIONS)] = "float32"
    """Precision of the model in training; bf16 is faster on GPUs, fp16 is for GPUs without bf16. Parameters, losses,
    optimiser steps and evaluations are float32 in all cases."""
    cuda_graphs: bool = False
    """Capture the training attack in a CUDA graph, and the pass for the weights too, except where it fits gradient
    norms under batch norm: not with AWP, SAM, fp16, or the norms lowrank and exact."""
    compile: bool = False
    """Compile the training attack with torch.compile, which takes a minute or more at the start."""
    cpu_threads: Annotated[
        int | None, Expect("1 to 1024", lambda threads: 1 <= threads <= 1024), Unset("torch's choice")
    ] = None
    """Threads on the CPU; the last bits of a run on the CPU depend on it."""
    sync_bn: bool = False
    """With several processes, compute batch norm's statistics over all of them (GPUs only) instead of within each."""
    nproc: Annotated[Count | None, Unset("one")] = None
    """Number of processes to start on this machine, which share each batch: one per GPU, or CPU cores. On several
    machines use torchrun: torchrun --nnodes=2 --nproc-per-node=8 ... -m pyengm train ..."""


_is_seed = Expect("0 to 2**63 - 1", lambda seed: 0 <= seed < 2**63)


@dataclass(frozen=True)
class RunConfig(OptionGroup):
    """The run itself: its seeds, files and loggers."""

    group: ClassVar[str] = "run"
    seed: Annotated[int, _is_seed] = FROM_RECIPE
    """Seed of the weights, the order, the augmentation and the noise."""
    seeds: Annotated[tuple[int, ...], Unset("--seed")] = ()
    """Several seeds in place of one: a run of each, in OUT/seed-0, OUT/seed-1, ..., and their mean and standard
    deviation in OUT/summary.json."""
    loggers: Annotated[tuple[str, ...], Unset("none")] = ()
    """Loggers besides the terminal and metrics.jsonl: tensorboard, wandb, mlflow, or MODULE:NAME of your own."""
    keep_checkpoints: Count = 2
    """Number of checkpoints in the run folder; a run resumes from the newest that is intact."""
    out: Annotated[Path | None, Unset("the next free runs/DATA-METHOD-OPTIMIZER-NUMBER")] = None
    """Run folder, which must not exist yet."""
    resume: bool = False
    """Resume the interrupted run in --out."""
    config: Annotated[Path | None, Unset("none")] = None
    """YAML file of options to start from, such as the config.yaml of a run; options on the command line override it."""
    trust_config: bool = False
    """Run the code that the file of --config, or the run of --resume, names by MODULE:FUNCTION."""
    dry_run: bool = False
    """Check everything, print the resolved options and what the run will cost, and write nothing."""
    quiet: bool = False
    """Print warnings, errors and the results alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for seed in self.seeds:
            _is_seed.check("seed", seed)
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds are {self.seeds}; expected each of them once")
        object.__setattr__(self, "loggers", tuple(map(logger_name, self.loggers)))
