"""Steps of an attack that ends for each example on its own, as friendly attacks and ATES do."""

from collections.abc import Callable

import torch
from torch import Tensor

from pyengm.attacks import PGD
from pyengm.attacks.input_grad import input_grad
from pyengm.attacks.logits import CheckedModel
from pyengm.attacks.losses import loss_named
from pyengm.attacks.threat_model import unit
from pyengm.attacks.validation import check_finite


def ascend_until_stopped(
    attack: PGD,
    net: CheckedModel,
    x_adv: Tensor,
    x: Tensor,
    target: Tensor,
    stops: Callable[[Tensor, Tensor], Tensor],
    *,
    loss: str = "ce",
    noise: Callable[[Tensor, int], Tensor] | None = None,
) -> None:
    """Moves x_adv in place, each example until it stops; at most attack.steps steps.

    In attack.bn other than "eval", where the examples are not independent, those that have stopped stay in the batch.

    Args:
        attack: The steps, their size, the threat model and the batch-norm mode.
        net: The model, in that mode.
        x_adv: Start of the attack, (n, ...).
        x: Images, (n, ...).
        target: What the loss compares the logits with.
        stops: Called with the logits of some examples, (m, classes), and their places in the batch, (m,), before every
            step; returns which of them stop, (m,). An example that has stopped may be asked again, and stays so.
        loss: Name of the loss that is ascended.
        noise: Called with places in the batch and the number of the step; returns what is added to the step.
    """
    active = torch.ones(len(x), dtype=torch.bool, device=x.device)
    rows = torch.arange(len(x), device=x.device)
    for k in range(attack.steps):
        if k:
            staying = active.nonzero().flatten()  # the one time in a step that the host waits
            if len(staying) == 0:
                break
            rows = staying if attack.bn == "eval" else rows
        grad, losses, logits = input_grad(net, x_adv[rows], loss_named(loss), target[rows])
        check_finite(losses, grad)
        active[rows] &= ~stops(logits, rows)
        direction = grad.sign() if attack.threat.norm == "linf" else unit(grad)
        point = x_adv[rows] + attack.step_size * direction
        if noise is not None:
            point += noise(rows, k)
        point = attack.threat.project_(point, x[rows])
        x_adv[rows] = torch.where(active[rows].view(-1, *[1] * (x.dim() - 1)), point, x_adv[rows])
