"""Optimisers and methods on the digits, each with its recipe, over some seeds.

    cd bench && python -m tools.digits                               # every optimiser with PGD training, three seeds
    cd bench && python -m tools.digits --methods all --optimizers msgd engm
    cd bench && python -m tools.digits --seeds 0 --epochs 2 --optimizers engm entropy_sgd

Prints mean and standard deviation over the seeds of the test accuracies in per cent: natural and PGD-20 of the best
checkpoint, which held-out images choose, PGD-20 of the last one, and robust overfitting, 100 (best - last) / best; and
the seconds of a run.
"""

import argparse
import contextlib
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import mean, pstdev

import torch

from pyengm.evaluation import evaluate_checkpoints
from pyengm.methods import METHODS
from pyengm.optim import CLOSURE_OPTIMIZERS, OPTIMIZERS
from pyengm.training import RunFolder, TrainConfig, build_components, fit

COLUMNS = ("natural", "PGD-20, best", "PGD-20, last", "overfitting", "seconds")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--methods", nargs="+", default=["pgd_at"])
    parser.add_argument("--optimizers", nargs="+", default=[*OPTIMIZERS, *CLOSURE_OPTIMIZERS])
    options = parser.parse_args()
    methods = list(METHODS) if options.methods == ["all"] else options.methods
    print(f"{'':24}" + "".join(f"{column:>18}" for column in COLUMNS), flush=True)
    for method in methods:
        for optimizer in options.optimizers:
            with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():  # without the progress of the runs
                warnings.simplefilter("ignore")
                results = [train_and_evaluate(method, optimizer, seed, options.epochs) for seed in options.seeds]
            cells = [f"{mean(values):.2f} +- {pstdev(values):.2f}" for values in zip(*results, strict=True)]
            print(f"{f'{method}, {optimizer}':24}" + "".join(f"{cell:>18}" for cell in cells), flush=True)


def train_and_evaluate(method: str, optimizer: str, seed: int, epochs: int | None) -> tuple[float, ...]:
    """The values of one run in the order of `COLUMNS`."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig.from_flat(method=method, optimizer=optimizer, seed=seed, epochs=epochs)
        config = config.override(out=Path(folder, "run")).resolve()
        components, run = build_components(config), RunFolder.create(config)
        start = time.perf_counter()
        fit(config, components, run)
        seconds = time.perf_counter() - start
        checkpoints = {"best": run.best, "last": run.last}
        options = {"device": components.device, "seed": seed}
        results = evaluate_checkpoints(checkpoints, components.test, config.threats()[:1], ["pgd20"], **options)
    best, last = results["best"], results["last"]
    robust = [100 * checkpoint["pgd20"] for checkpoint in (best, last)]
    return 100 * best["natural"], *robust, results["robust_overfitting"], seconds


if __name__ == "__main__":
    main()
