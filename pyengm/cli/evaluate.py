"""`pyengm evaluate`."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from pyengm.attacks import THREAT_NORMS, ThreatModel
from pyengm.data import load
from pyengm.errors import ConfigError
from pyengm.evaluation import evaluate_with_progress, final_attacks, results_table
from pyengm.models import read_info
from pyengm.training import Interrupted, RunFolder, TrainConfig, pick_device
from pyengm.training.config import default_threats
from pyengm.training.launcher import local_device
from pyengm.training.option_types import Choice, Count, OptionGroup, Pixels, Unset
from pyengm.utils.distributed import rank
from pyengm.utils.io import atomic_write, make_dirs
from pyengm.utils.terminal import log


@dataclass(frozen=True)
class EvaluateConfig(OptionGroup):
    """Attack a trained model and print its accuracies. Options that are not given are those of the run folder."""

    target: tyro.conf.Positional[Path]
    """A run folder, whose checkpoints best and last are evaluated, or one checkpoint (.safetensors)."""
    data: Annotated[str | None, Unset("that of the training")] = None
    """Data set whose test images are attacked."""
    data_dir: Annotated[Path | None, Unset("that of the training")] = None
    """Folder in which data sets and decoded images are kept."""
    threat: Annotated[str | None, Choice(THREAT_NORMS), Unset("both")] = None
    """Evaluate under the threat model of this norm only."""
    eps: Annotated[Pixels | None, Unset("that of the training or of the recipe")] = None
    """Radius for --threat in pixel units, such as 8/255."""
    attacks: Annotated[tuple[str, ...], Unset("none")] = ()
    """Further attacks: fgsm, pgd10, pgd50, cw, members of AutoAttack (apgd_ce, apgd_t, fab_t, square), or deepfool for
    the mean L2 distance to the decision boundary."""
    autoattack_examples: Annotated[Count | None, Unset("as many as in the run, else all")] = None
    """Number of test images for AutoAttack, spread evenly over the test set."""
    surrogate: Annotated[Path | None, Unset("none")] = None
    """Checkpoint of another model, whose adversarial examples of PGD-20 are tried on the target (a black-box
    attack)."""
    seed: int = 0
    """Seed of the random starts."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ... (auto: cuda if available)."""
    out: Annotated[Path | None, Unset("no file")] = None
    """JSON file for the results, which must not exist yet. An interrupted AutoAttack resumes from a folder beside it
    (OUT.autoattack); that of a run always resumes, from RUN/autoattack."""


def evaluate_command(options: EvaluateConfig) -> int:
    """Attacks the checkpoints of a run or a single one, prints the table and writes it to --out; returns 0."""
    if options.out is not None and options.out.exists():
        raise ConfigError(f"{options.out} exists and is not overwritten; choose another --out")
    if options.target.is_dir():
        run = RunFolder.open(options.target)
        checkpoints = {"best": run.best, "last": run.last}
        info = read_info(run.best)
        state = run.autoattack if os.access(run.path, os.W_OK) else None
        trained = TrainConfig.load(run.config)
    else:
        checkpoints = {options.target.stem: options.target}
        info = read_info(options.target)
        state = options.out and options.out.with_suffix(".autoattack")
        trained = TrainConfig.from_flat(data=info.data).resolve()
    if trained.machine.cpu_threads is not None:
        torch.set_num_threads(trained.machine.cpu_threads)
    data = options.data or info.data
    test = load(data, "test", root=options.data_dir or trained.data.data_dir, image_size=trained.data.image_size)
    threats = default_threats(data, ThreatModel(info.norm, info.eps))
    if options.threat is not None:
        known = {threat.norm: threat.eps for threat in threats}
        threats = [ThreatModel(options.threat, known.get(options.threat, 0.0) if options.eps is None else options.eps)]
    elif options.eps is not None:
        raise ConfigError("--eps needs --threat linf or --threat l2, the threat model that it belongs to")
    if options.out is not None:
        make_dirs(options.out.parent)  # an error comes now, not after the evaluation
    try:
        results = evaluate_with_progress(
            checkpoints,
            test,
            threats,
            final_attacks(options.attacks),
            autoattack_examples=options.autoattack_examples or trained.evaluation.autoattack_examples,
            surrogate=options.surrogate,
            state=state,
            seed=options.seed,
            device=local_device(pick_device(options.device)),
        )
    except KeyboardInterrupt:
        again = "interrupted" if state is None else "interrupted; the same command resumes where AutoAttack stopped"
        raise Interrupted(again) from None
    log(results_table(results, str(options.target)))
    if options.out is not None and rank() == 0:
        text = json.dumps(results, indent=2) + "\n"
        atomic_write(options.out, lambda path: path.write_text(text))
    return 0
