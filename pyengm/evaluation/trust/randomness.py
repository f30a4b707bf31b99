"""A fixed model: the same images give the same outputs."""

import torch

from pyengm.evaluation.trust.check import Check
from pyengm.evaluation.trust.probe import Probe

CALLS = 5
ALLOWED = 1e-4  # relative difference of outputs, as in AutoAttack's own check


def check_outputs_repeat(probe: Probe) -> Check:
    """Outputs on the same images differ by rounding errors at most."""
    first = probe.logits(probe.x).double()
    size = first.norm(dim=1).clamp(min=1e-10)
    others = (probe.logits(probe.x).double() for _ in range(CALLS - 1))
    largest = max(((other - first).norm(dim=1) / size).max().item() for other in others)
    differ = f"they differ by up to {largest:.1e} of their size" if largest > 0 else "they are equal"
    figure = f"{differ} in {CALLS} calls"
    return Check("outputs_repeat", "outputs on the same images are the same", largest <= ALLOWED, figure)


def check_verdicts_repeat(probe: Probe) -> Check:
    """An adversarial example that fools the model once fools it again."""
    looks = [probe.correct(probe.pgd20_examples) for _ in range(CALLS)]
    share = torch.stack([look != looks[0] for look in looks]).any(dim=0).double().mean().item()
    figure = f"the prediction for {100 * share:.1f} % of PGD-20's examples changes in {CALLS} calls"
    return Check("verdicts_repeat", "an adversarial example stays one", share <= 0.01, figure)
