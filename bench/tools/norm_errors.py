"""Errors of estimated gradient norms under batch norm in training mode, while a model is trained: a Markdown table.

    cd bench && python -m tools.norm_errors --model resnet18 --width 16 --data digits

The model trains with PGD and clipped gradients. "fresh" estimators are fitted on the batch on which their errors are
measured, and know nothing else. Others start at each stage, are fitted on training batches, and are measured when 2, 8
and 32 steps have passed since their last fit, right before the next one.
"""

import argparse
import copy

import torch
from torch import nn
from torch.nn import functional as F

from pyengm.analysis import NormErrors, norm_errors
from pyengm.attacks import PGD
from pyengm.data import ImageDataset, load
from pyengm.models import build
from pyengm.models.preact_resnet import preact_network
from pyengm.ops import clip_weights
from pyengm.pergrad import NormEstimator

STAGES = (0, 50, 150, 400)  # steps before which errors are measured
INTERVALS = (2, 8, 32)  # steps from one fit to the next at whose end errors are measured
MEASURED = 72  # steps from a stage on in which this happens, while intervals grow
ALPHA = 5.0
EPS = {"digits": 0.2}  # 8 / 255 for other data
MODES = ("corrected", "lowrank")


def main() -> None:
    training, order = training_of_options(argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0]))
    print(f"| {training.name} at step | norms | fit | median error | bias | correlation | error of the update |")
    print("|---|---|---|---|---|---|---|", flush=True)
    generator = torch.Generator().manual_seed(1)
    for step in range(max(STAGES) + MEASURED):
        training.print_errors(step)
        training.step([order[k] for k in torch.randperm(len(order), generator=generator)[: len(training.held_out)]])


def training_of_options(parser: argparse.ArgumentParser) -> tuple["MeasuredTraining", list[int]]:
    """Reads the command line; the training, and the positions of its images."""
    parser.add_argument("--data", default="digits", help="a data set of pyengm, or a folder of images")
    parser.add_argument("--model", default="resnet18", help="a model of pyengm, or wrn_16_2")
    parser.add_argument("--width", type=int)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--attack-steps", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    data = load(options.data, "train")
    order = torch.randperm(len(data.labels)).tolist()
    held_out, order = order[: options.batch_size], order[options.batch_size :]
    if options.model == "wrn_16_2":
        model = preact_network(16, [32, 64, 128], 2, data.num_classes, data.channels, "bn")
    else:
        model = build(
            options.model, data.num_classes, in_channels=data.channels, image_size=data.image_size, width=options.width
        )
    eps = EPS.get(options.data, 8 / 255)
    attack = PGD(eps=eps, step_size=eps / 4 if options.attack_steps > 3 else eps / 2, steps=options.attack_steps)
    return MeasuredTraining(options.model, model, data, attack, held_out), order


class MeasuredTraining:
    """Training of a model under attack with clipped gradients, and the errors of norm estimators meanwhile.

    Args:
        name: Of the model.
        model: The model.
        data: Training images.
        attack: The attack of the training.
        held_out: Positions of the images on which errors are measured.
    """

    def __init__(self, name: str, model: nn.Module, data: ImageDataset, attack: PGD, held_out: list[int]):
        self.name, self.model, self.data, self.attack, self.held_out = name, model, data, attack, held_out
        self.params: list[torch.Tensor] = list(model.parameters())
        self.optimizer = torch.optim.SGD(self.params, lr=0.05, momentum=0.9, weight_decay=5e-4)
        self.norms = NormEstimator()  # of the training
        self.measured: dict[tuple[int, str], NormEstimator] = {}  # by stage and mode
        self.waiting: set[tuple[int, str, int]] = set()  # stages, modes and intervals that are not measured yet

    def losses(self, indices: list[int]) -> torch.Tensor:
        """Cross-entropy of the images at these positions under attack, (n,)."""
        subset = self.data.subset(indices)
        x = torch.stack([torch.as_tensor(subset.images[k]).float() / 255 for k in range(len(indices))])
        y = torch.as_tensor(subset.labels)
        return F.cross_entropy(self.model.train()(self.attack(self.model, x, y)), y, reduction="none")

    def print_errors(self, step: int) -> None:
        """Prints the rows of fresh estimators at each stage, and of others once before the end of each interval."""
        if step in STAGES:
            estimators = {mode: NormEstimator(mode) for mode in MODES}
            _print_rows(step, "fresh", norm_errors(self.losses(self.held_out), self.params, estimators))
            self.measured |= {(step, mode): NormEstimator(mode) for mode in MODES}
            self.waiting |= {(step, mode, interval) for mode in MODES for interval in INTERVALS}
        for stage, mode, interval in sorted(self.waiting):
            estimator = self.measured[stage, mode]
            if estimator.refit_interval == interval == estimator.steps_since_fit + 1:
                self.waiting.remove((stage, mode, interval))
                errors = norm_errors(self.losses(self.held_out), self.params, {mode: copy.deepcopy(estimator)})
                _print_rows(step, f"{interval} steps", errors)
        wanted = {waiting[:2] for waiting in self.waiting if step < waiting[0] + MEASURED}
        self.measured = {key: estimator for key, estimator in self.measured.items() if key in wanted}
        self.waiting = {waiting for waiting in self.waiting if waiting[:2] in wanted}

    def step(self, indices: list[int]) -> None:
        """Takes one training step on the images at these positions."""
        losses = self.losses(indices)
        for estimator in self.measured.values():
            estimator.norms(losses, self.params, estimator.prepare(losses, self.params))
        norms = self.norms.norms(losses, self.params, self.norms.prepare(losses, self.params))
        self.optimizer.zero_grad()
        losses.backward(clip_weights(norms, ALPHA) / len(losses))
        self.optimizer.step()


def _print_rows(step: int, fit: str, rows: dict[str, NormErrors]) -> None:
    for name, row in rows.items():
        errors = f"{row.median:.1%} | {row.bias:+.1%} | {row.correlation:.3f} | {row.update:.1%}"
        print(f"| {step} | {name} | {fit} | {errors} |", flush=True)


if __name__ == "__main__":
    main()
