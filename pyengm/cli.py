"""The command line: pyengm train, pyengm evaluate."""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from pyengm import __version__
from pyengm.attacks import Threat
from pyengm.data import load
from pyengm.errors import ConfigError, PyengmError
from pyengm.evaluation import attack_names, check_attacks, evaluate_checkpoints, plot_curves, results_table
from pyengm.models import read_info
from pyengm.training import Interrupted, RunFolder, TrainConfig, fit, pick_device, set_up
from pyengm.training.config import Pixels, default_threats

console = Console()
STATE = "autoattack"  # where an interrupted AutoAttack goes on from, in a run's folder


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
    """Further attacks: fgsm, pgd10, pgd50, cw, members of AutoAttack (apgd_ce, apgd_t, fab_t, square), or deepfool for
    the mean L2 distance to the decision boundary."""
    autoattack_pictures: int | None = None
    """Test pictures for AutoAttack, spread evenly over the test set (else the run's number, else all)."""
    surrogate: Path | None = None
    """Checkpoint of another model: PGD-20 against that one is tried on the target too (black box)."""
    seed: int = 0
    """Seed of the random starts."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ... (auto: cuda where there is one)."""
    out: Path | None = None
    """Also write the results to this JSON file, which must not exist yet. An interrupted AutoAttack goes on from a
    folder beside it (OUT.autoattack); that of a run always does, from RUN/autoattack."""

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
        free = {"out", "resume", "config", "device", "attacks", "autoattack_pictures", "loggers"}
        if changed := sorted(set(changed) - free):
            raise ConfigError(
                f"a resumed run keeps its options; {', '.join(changed)} differ from {given.out}/config.yaml"
            )
    return config.resolve()


def train(config: TrainConfig) -> None:
    """Trains, evaluates best and last, and leaves the table, results.json and curves.png."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    parts = set_up(config)
    attacks = attack_names(config.attacks)
    with spoken_warnings():
        check_attacks(attacks, parts.test, config.threats())  # an error comes now, not after the training
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
            autoattack_pictures=config.autoattack_pictures,
            state=run.path / STATE,
            seed=config.seed,
            device=parts.device,
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
        state = run.path / STATE if os.access(run.path, os.W_OK) else None
        trained = TrainConfig.load(run.config)
    else:
        checkpoints = {options.target.stem: options.target}
        info = read_info(options.target)
        state = options.out and options.out.with_suffix(f".{STATE}")
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
    try:
        results = attack_checkpoints(
            checkpoints,
            test,
            threats,
            attack_names(options.attacks),
            autoattack_pictures=options.autoattack_pictures or trained.autoattack_pictures,
            surrogate=options.surrogate,
            state=state,
            seed=options.seed,
            device=pick_device(options.device),
        )
    except KeyboardInterrupt:
        again = "interrupted" if state is None else "interrupted; the same command goes on where AutoAttack stopped"
        raise Interrupted(again) from None
    console.print(results_table(results, str(options.target)))
    if options.out is not None:
        options.out.write_text(json.dumps(results, indent=2) + "\n")


def attack_checkpoints(*arguments: Any, **options: Any) -> dict[str, Any]:
    """`evaluate_checkpoints` with its progress on the terminal: what is running, and a bar for each AutoAttack."""
    bar, note = BarColumn(bar_width=10), TextColumn("{task.fields[note]}")
    columns = (TextColumn("{task.description}"), bar, MofNCompleteColumn(), note)
    with spoken_warnings(), Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {"": bars.add_task("evaluating", total=None, note="")}

        def on_pass(title: str, done: int, total: int, robust: float) -> None:
            if title not in tasks:
                tasks[title] = bars.add_task(title, total=total, note="")
            bars.update(tasks[title], completed=done, note=f"robust {100 * robust:.1f} %")

        def on_attack(title: str) -> None:
            bars.update(tasks[""], description=f"evaluating {title}")

        return evaluate_checkpoints(*arguments, **options, on_attack=on_attack, on_pass=on_pass)


@contextmanager
def spoken_warnings() -> Iterator[None]:
    """Warnings as plain lines on the terminal, each text once."""
    with warnings.catch_warnings():
        said: set[str] = set()

        def show(message: Warning | str, *_: Any, **__: Any) -> None:
            if str(message) not in said:
                said.add(str(message))
                say(f"warning: {message}")

        warnings.showwarning = show
        yield


def say(text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
