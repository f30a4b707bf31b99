"""The command line: pyengm train, pyengm evaluate."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console

from pyengm import __version__
from pyengm.attacks import Threat
from pyengm.data import load
from pyengm.errors import ConfigError, PyengmError
from pyengm.evaluation import attack_names, evaluate_checkpoints, plot_curves, results_table
from pyengm.models import read_info
from pyengm.training import Interrupted, RunFolder, TrainConfig, fit, pick_device, set_up
from pyengm.training.config import Pixels, default_threats

console = Console()


@dataclass(frozen=True)
class EvaluateConfig:
    """Attack a trained model and print its accuracies. A run folder brings its options; the others override them."""

    target: tyro.conf.Positional[Path]
    """A run folder, of which best and last are evaluated, or one checkpoint (.safetensors)."""
    data: str | None = None
    """Data set whose test pictures are attacked (else that of the training)."""
    root: Path | None = None
    """Where data sets and decoded folders are kept."""
    norm: str | None = None
    """Evaluate under this threat model only: linf or l2 (else both)."""
    eps: Pixels | None = None
    """Radius for --norm in pixel units, such as 8/255."""
    attacks: tuple[str, ...] = ()
    """Further attacks: fgsm, pgd10, pgd50, cw."""
    autoattack_pictures: int | None = None
    """Test pictures for AutoAttack, spread evenly over the test set (else the run's number, else all)."""
    seed: int = 0
    """Seed of the random starts."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ... (auto: cuda where there is one)."""
    out: Path | None = None
    """Also write the results to this JSON file, which must not exist yet."""

    def __post_init__(self) -> None:
        if self.autoattack_pictures is not None and self.autoattack_pictures < 1:
            raise ConfigError(f"autoattack_pictures is {self.autoattack_pictures}; expected at least 1")


def main(args: Sequence[str] | None = None) -> int:
    """Runs one command; returns 0, or 1 after an error that the user can mend, or 130 after Ctrl-C."""
    args = list(sys.argv[1:] if args is None else args)
    if args in (["--version"], ["-V"]):
        print(__version__)
        return 0
    command = args[0] if args else "--help"
    try:
        if command == "train":
            train(parse_train(args[1:]))
        elif command == "evaluate":
            evaluate_command(tyro.cli(EvaluateConfig, prog="pyengm evaluate", args=args[1:]))
        else:
            return usage(command)
    except Interrupted as stop:
        say(str(stop))
        return 130
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except PyengmError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {error}", highlight=False, soft_wrap=True)
        return 1
    return 0


def usage(command: str) -> int:
    """What to print for no command, --help, or a command that does not exist."""
    known = command in ("--help", "-h")
    if not known:
        Console(stderr=True).print(f"[bold red]error:[/] unknown command {command!r}", highlight=False)
    console.print(
        "usage: pyengm COMMAND [OPTIONS]\n\n"
        "  train     train a robust classifier, attack it, leave a table and a picture\n"
        "  evaluate  attack the checkpoints of a run, or one checkpoint\n\n"
        "pyengm COMMAND --help lists the options; pyengm --version prints the version.",
        highlight=False,
        markup=False,
    )
    return 0 if known else 2


def parse_train(args: Sequence[str]) -> TrainConfig:
    """Options over --config FILE over the defaults; with --resume, those of the run, which cannot be changed."""
    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    files.add_argument("--config", type=Path)
    files.add_argument("--out", type=Path)
    files.add_argument("--resume", action="store_true")
    given, _ = files.parse_known_args(args)
    if given.resume:
        if given.out is None:
            raise ConfigError("--resume needs --out RUN_FOLDER, the run to go on with")
        saved = TrainConfig.load(RunFolder.open(given.out).config)
    else:
        saved = TrainConfig.load(given.config) if given.config else TrainConfig()
    config = tyro.cli(TrainConfig, prog="pyengm train", args=list(args), default=saved)
    if given.resume:
        changed = [f.name for f in fields(config) if getattr(config, f.name) != getattr(saved, f.name)]
        if changed := sorted(set(changed) - {"out", "resume", "config", "device", "attacks", "autoattack_pictures"}):
            raise ConfigError(
                f"a resumed run keeps its options; {', '.join(changed)} differ from {given.out}/config.yaml"
            )
    return config.resolve()


def train(config: TrainConfig) -> None:
    """Trains, evaluates best and last, and leaves the table, results.json and curves.png."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    parts = set_up(config)
    attacks = attack_names(config.attacks, parts.test.num_classes)  # an error comes now, not after the training
    run = RunFolder.open(config.out) if config.resume else RunFolder.create(config)
    say(f"run folder: {run.path}")
    fit(config, parts, run)
    plot_curves(run.read_metrics(), run.curves, f"{parts.test.name}, {config.method}, {config.optimizer}")
    if run.results.exists():
        say(f"the run is complete; its results are in {run.results}")
        return
    try:
        results = attack_checkpoints(
            {"best": run.best, "last": run.last},
            parts.test,
            config.threats(),
            attacks,
            config.autoattack_pictures,
            config.seed,
            parts.device,
        )
    except KeyboardInterrupt:
        raise Interrupted(f"the training is complete; evaluate it with: pyengm evaluate {run.path}") from None
    run.save_results(results)
    console.print(results_table(results, str(run.path)))
    say(f"weights, results.json and curves.png are in {run.path}")


def evaluate_command(options: EvaluateConfig) -> None:
    """Attacks a run's checkpoints or a single one, prints the table and, where asked, writes it as JSON."""
    if options.out is not None and options.out.exists():
        raise ConfigError(f"{options.out} exists and is not overwritten; choose another --out")
    if options.target.is_dir():
        run = RunFolder.open(options.target)
        checkpoints = {"best": run.best, "last": run.last}
        info = read_info(run.best)
        trained = TrainConfig.load(run.config)
    else:
        checkpoints = {options.target.stem: options.target}
        info = read_info(options.target)
        trained = TrainConfig(data=info.data).resolve()
    if trained.threads is not None:
        torch.set_num_threads(trained.threads)
    data = options.data or info.data
    test = load(data, "test", root=options.root or trained.root, image_size=trained.image_size)
    threats = default_threats(data, Threat(info.norm, info.eps))
    if options.norm is not None:
        known = {threat.norm: threat.eps for threat in threats}
        threats = [Threat(options.norm, known.get(options.norm, 0.0) if options.eps is None else options.eps)]
    elif options.eps is not None:
        raise ConfigError("--eps needs --norm linf or --norm l2, the threat model that it belongs to")
    attacks = attack_names(options.attacks, test.num_classes)
    pictures = options.autoattack_pictures or trained.autoattack_pictures
    device = pick_device(options.device)
    results = attack_checkpoints(checkpoints, test, threats, attacks, pictures, options.seed, device)
    console.print(results_table(results, str(options.target)))
    if options.out is not None:
        options.out.write_text(json.dumps(results, indent=2) + "\n")


def attack_checkpoints(checkpoints, data, threats, attacks, autoattack_pictures, seed, device) -> dict[str, Any]:
    """`evaluate_checkpoints` with a line on the terminal that says what is running."""
    if "autoattack" not in attacks:
        say(f"AutoAttack is left out: it needs at least 4 classes, {data.name} has {data.num_classes}")
    with console.status("evaluating") as status:
        return evaluate_checkpoints(
            checkpoints,
            data,
            threats,
            attacks,
            autoattack_pictures=autoattack_pictures,
            seed=seed,
            device=device,
            on_attack=lambda title: status.update(f"evaluating {title}"),
        )


def say(text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
