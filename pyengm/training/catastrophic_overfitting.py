"""Catastrophic overfitting: the accuracy under PGD collapses within an epoch, as fast attacks become ineffective."""

import warnings

import torch

from pyengm.attacks import PGD, attack_mode
from pyengm.attacks.keyed import run_attack
from pyengm.evaluation import create_attack
from pyengm.ops import Key
from pyengm.training.builders import TrainComponents
from pyengm.training.config import TrainConfig
from pyengm.utils.distributed import all_reduce_sum

MAX_FALL = 0.2  # of the accuracy, from one epoch to the next (Wong et al. 2020, Sec. 5)
STEPS = 5


def training_accuracy(config: TrainConfig, components: TrainComponents, epoch: int) -> float:
    """Measures the accuracy under the run's `train_attack`, or PGD-5, on the first training images of an epoch.

    Args:
        config: Resolved options.
        components: The components of the run.
        epoch: The epoch, counted from 0.

    Returns:
        The share of these images, at least `train_attack_examples`, that the model classifies correctly, in [0, 1].
    """
    threat = config.threats()[0]
    name, seed = config.evaluation.train_attack, config.run.seed
    pgd = PGD(threat.eps, threat.eps / 4, STEPS, norm=threat.norm)
    attack = pgd if name is None else create_attack(name, threat, seed)
    correct = seen = 0
    for batch in components.batches.epoch(epoch, mix=False):
        x_adv = run_attack(attack, components.model, batch.x, batch.y, Key(seed, epoch, batch.index))
        with attack_mode(components.model, "eval"), torch.no_grad():
            correct += (components.model(x_adv).argmax(dim=1) == batch.y).sum().item()
        seen += batch.size
        if seen >= config.evaluation.train_attack_examples:
            break
    return int(all_reduce_sum(torch.tensor(correct))) / seen


def is_catastrophic(before: float | None, now: float) -> bool:
    """Determines whether the accuracy fell by more than 20 points, and warns if it did.

    Args:
        before: The accuracy after the epoch before, None where there is none.
        now: The present accuracy, in [0, 1].
    """
    if before is None or before - now <= MAX_FALL:
        return False
    warnings.warn(
        f"catastrophic overfitting: accuracy under attack on training images fell from {100 * before:.1f} "
        f"to {100 * now:.1f} % within an epoch. A smaller step size, more steps or --method grad_align help; "
        "--on-catastrophic-overfitting stop keeps the weights from before",
        stacklevel=2,
    )
    return True
