"""Catastrophic overfitting: a fast method's attack stops being one, and the model falls to PGD within an epoch."""

import warnings

import torch

from pyengm.attacks import PGD, attack_mode
from pyengm.ops import Key
from pyengm.training.builders import TrainComponents
from pyengm.training.config import TrainConfig
from pyengm.utils.distributed import all_reduce_sum

FALL = 0.2  # of accuracy, from one epoch to the next (Wong et al. 2020, Sec. 5)
STEPS = 5
IMAGES = 128  # at least


def training_accuracy(config: TrainConfig, components: TrainComponents, epoch: int) -> float:
    """Share of the epoch's first training images that the model gets right under PGD-5, in [0, 1]."""
    threat = config.threats()[0]
    attack = PGD(threat.eps, threat.eps / 4, STEPS, norm=threat.norm)
    right = seen = 0
    for batch in components.batches.epoch(epoch):
        x_adv = attack(components.model, batch.x, batch.y, key=Key(config.run.seed, epoch, batch.index))
        with attack_mode(components.model, "eval"), torch.no_grad():
            right += (components.model(x_adv).argmax(dim=1) == batch.y).sum().item()
        seen += batch.size
        if seen >= IMAGES:
            break
    return int(all_reduce_sum(torch.tensor(right))) / seen


def is_catastrophic(before: float | None, now: float) -> bool:
    """Whether the accuracy fell by more than 20 points since the epoch before; warns if it did."""
    fell = before is not None and before - now > FALL
    if fell:
        warnings.warn(
            f"catastrophic overfitting: accuracy under PGD-{STEPS} on training images fell from {100 * before:.1f} "
            f"to {100 * now:.1f} % within an epoch. A smaller step, more steps or --method grad_align help; "
            "--catastrophic_overfitting stop keeps the weights from before",
            stacklevel=2,
        )
    return fell
