"""Logits that are fine enough to show the effect of a step."""

import torch
from torch import Tensor

from pyengm.attacks.losses import margin
from pyengm.evaluation.trust.check import Check
from pyengm.evaluation.trust.probe import Probe

ALLOWED = 0.1  # share of the images


def check_resolution(probe: Probe) -> Check:
    """The margin changes when the image moves by a tenth of eps, one step of PGD-20.

    In 16 bits it often does not: then attacks that compare losses (Square, APGD, restarts) see no progress.
    """
    small = probe.at(probe.threat.eps / 10)
    moved = small.project_(probe.x + small.uniform(probe.x, probe.key), probe.x)
    logits = probe.logits(probe.x)
    same = _margins(logits, probe.y) == _margins(probe.logits(moved), probe.y)
    share = same.double().mean().item()
    kind = str(logits.dtype).removeprefix("torch.")
    figure = f"on {100 * share:.1f} % of the images a step of eps / 10 does not change the margin; logits in {kind}"
    return Check("resolution", "logits are fine enough to show a step", share <= ALLOWED, figure)


def _margins(logits: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return margin(logits, y)
