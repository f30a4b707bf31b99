"""Every optimiser on the digits with the same budget of mini-batches, learning rate and attack, over some seeds.

    python bench/digits_optimizers.py                  # three seeds, the recipe's epochs
    python bench/digits_optimizers.py --seeds 0 --epochs 2 --optimizers engm entropy_sgd

Prints mean and spread (standard deviation over seeds) of the test accuracies in per cent: natural and PGD-20 of the
checkpoint that held-out pictures chose, PGD-20 of the last one, and robust overfitting, 100 (best - last) / best.
"""

import argparse
import contextlib
import copy
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import mean, pstdev

import torch

from pyengm.evaluation import accuracy, attack_named, evaluate_checkpoints
from pyengm.models import CheckpointInfo
from pyengm.ops import Key
from pyengm.optim import CLOSURE_OPTIMIZERS, OPTIMIZERS
from pyengm.training import Parts, RunFolder, TrainConfig, fit, set_up

COLUMNS = ("natural", "PGD-20, best", "PGD-20, last", "overfitting")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--optimizers", nargs="+", default=[*OPTIMIZERS, *CLOSURE_OPTIMIZERS])
    given = parser.parse_args()
    print(f"{'':14}" + "".join(f"{column:>20}" for column in COLUMNS), flush=True)
    for name in given.optimizers:
        with contextlib.redirect_stdout(sys.stderr):  # the progress of the runs
            results = [train_and_evaluate(name, seed, given.epochs) for seed in given.seeds]
        cells = [f"{mean(values):.2f} +- {pstdev(values):.2f}" for values in zip(*results, strict=True)]
        print(f"{name:14}" + "".join(f"{cell:>20}" for cell in cells), flush=True)


def train_and_evaluate(name: str, seed: int, epochs: int | None) -> tuple[float, ...]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        loop = "msgd" if name in CLOSURE_OPTIMIZERS else name
        config = TrainConfig(optimizer=loop, seed=seed, epochs=epochs)
        config = replace(config, out=Path(folder, "run")).resolve()
        parts, run = set_up(config), RunFolder.create(config)
        if name in CLOSURE_OPTIMIZERS:
            fit_by_closures(name, config, parts, run)
        else:
            fit(config, parts, run)
        checkpoints = {"best": run.best, "last": run.last}
        options = {"device": parts.device, "seed": seed}
        found = evaluate_checkpoints(checkpoints, parts.test, config.threats()[:1], ["pgd20"], **options)
    best, last = found["best"], found["last"]
    robust = [100 * checkpoint["pgd20"] for checkpoint in (best, last)]
    return 100 * best["natural"], *robust, found["robust_overfitting"]


def fit_by_closures(name: str, config: TrainConfig, parts: Parts, run: RunFolder) -> None:
    """The training loop where the optimiser draws the mini-batches; measured where an epoch has passed."""
    optimizer = CLOSURE_OPTIMIZERS[name](parts.model.parameters(), config.lr, config.momentum, config.weight_decay)
    batches = [(epoch, k) for epoch in range(config.epochs) for k in range(len(parts.batches))]
    stream = ((epoch, batch) for epoch in range(config.epochs) for batch in parts.batches.epoch(epoch))
    rate = copy.copy(parts.schedule.lr_lambdas[0])
    attack, best, seen, measured = attack_named("pgd20", config.threats()[0]), -1.0, 0, 0

    def closure() -> torch.Tensor:
        nonlocal seen
        epoch, batch = next(stream)
        seen += 1
        return parts.method(parts.model, batch.x, batch.y, Key(config.seed, epoch, batch.index)).losses

    while seen < len(batches):
        parts.model.train()
        optimizer.L = min(optimizer.L, len(batches) - seen)
        optimizer.param_groups[0]["lr"] = config.lr * rate(seen)
        optimizer.step(closure)
        epoch = seen // len(parts.batches)
        if epoch == measured:
            continue
        measured = epoch
        score = accuracy(parts.model, parts.held_out, attack, seed=config.seed, device=parts.device)
        info = CheckpointInfo(parts.model_options, config.data, parts.test.classes, config.norm, config.eps, epoch - 1)
        for path in [run.last, run.best] if score > best else [run.last]:
            run.save_weights(path, parts.model, info)
        best = max(best, score)


if __name__ == "__main__":
    main()
