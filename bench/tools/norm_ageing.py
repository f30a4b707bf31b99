"""Errors of estimated gradient norms under batch norm all along a training: a Markdown table.

    cd bench && python -m tools.norm_ageing --model resnet18 --width 8 --data digits

The same batches go to estimators whose fits are updated by one example in every eighth call, and to one whose fits age
until the next one. Before every seventh step all are compared with exact norms. The first one clips the gradients.
"""

import argparse
import copy
from collections.abc import Iterable
from statistics import mean
from unittest import mock

import torch

from pyengm.analysis import NormErrors, norm_errors
from pyengm.ops import clip_weights
from pyengm.pergrad import NormEstimator, norm_estimator
from tools.norm_errors import ALPHA, training_of_options

STEPS, EARLY = 400, 100
MEASURED = 7  # steps from one comparison to the next
NEVER = 10**9


class Measured:
    """An estimator, how far it was off, by step, and how many exact gradients it took."""

    def __init__(self, name: str, norms: str, update_interval: int):
        self.name, self.update_interval = name, update_interval
        self.estimator = NormEstimator(norms)
        self.errors: dict[int, NormErrors] = {}
        self.exact_gradients = self.estimator.examples  # of the first fit

    def see(self, losses: torch.Tensor, params: list[torch.Tensor]) -> torch.Tensor:
        """Estimates the norms of a batch."""
        with mock.patch.object(norm_estimator, "UPDATE_INTERVAL", self.update_interval):
            norms = self.estimator.norms(losses, params, self.estimator.prepare(losses, params))
        if self.estimator.fit_errors is not None:
            self.exact_gradients += len(self.estimator.fit_errors)
        return norms

    def as_it_is(self) -> NormEstimator:
        """A copy that neither fits nor updates."""
        copied = copy.deepcopy(self.estimator)
        copied.refit_interval, copied.steps_since_fit = NEVER, 1
        return copied

    def row(self, model: str) -> str:
        """The row of the table."""
        cells = [model, self.name, f"{self.exact_gradients / STEPS:.2f}"]
        for steps in (range(EARLY), range(EARLY, STEPS)):
            rows = [error for step, error in self.errors.items() if step in steps]
            cells += [_mean_and_most(row.median for row in rows), f"{mean(row.bias for row in rows):+.1%}"]
            cells.append(_mean_and_most(row.update for row in rows))
        return f"| {' | '.join(cells)} |"


def main() -> None:
    training, order = training_of_options(argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0]))
    every = [
        Measured("corrected", "corrected", norm_estimator.UPDATE_INTERVAL),
        Measured("corrected, no updates", "corrected", NEVER),
        Measured("lowrank", "lowrank", norm_estimator.UPDATE_INTERVAL),
    ]
    generator = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        losses = training.losses(
            [order[k] for k in torch.randperm(len(order), generator=generator)[: len(training.held_out)]]
        )
        if step % MEASURED == MEASURED // 2:
            errors = norm_errors(losses, training.params, {one.name: one.as_it_is() for one in every})
            for one in every:
                one.errors[step] = errors[one.name]
        norms, *_ = [one.see(losses, training.params) for one in every]
        training.optimizer.zero_grad()
        losses.backward(clip_weights(norms, ALPHA) / len(losses))
        training.optimizer.step()
    print(
        "| model | norms | exact gradients a step | median error, steps 0 to 99 | bias | error of the update | ", end=""
    )
    print(f"median error, steps 100 to {STEPS - 1} | bias | error of the update |\n|{'---|' * 9}")
    for one in every:
        print(one.row(training.name), flush=True)


def _mean_and_most(values: Iterable[float]) -> str:
    found = list(values)
    return f"{mean(found):.1%} ({max(found):.1%})"


if __name__ == "__main__":
    main()
