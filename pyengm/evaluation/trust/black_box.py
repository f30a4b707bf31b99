"""An attack that sees outputs alone is not stronger than one that follows gradients."""

import torch
from pyautoattack.square import SquareAttack
from torch import Tensor

from pyengm.attacks import AutoAttack, attack_mode
from pyengm.attacks.half_precision import in_float32
from pyengm.attacks.logits import CheckedModel
from pyengm.errors import ConfigError
from pyengm.evaluation.trust.check import Check, is_stronger, percent
from pyengm.evaluation.trust.probe import Probe

QUERIES = 500


def check_black_box(probe: Probe) -> Check | None:
    """Square is not stronger than PGD-20; None where Square does not apply to the images.

    References:
        Andriushchenko et al. 2020, "Square Attack: a query-efficient black-box adversarial attack via random search";
        Athalye et al. 2018, "Obfuscated Gradients Give a False Sense of Security", Sec. 3.
    """
    if not _applies(probe):
        return None
    square = probe.correct(_square(probe))
    figure = f"{percent(square)} under Square ({QUERIES} queries), {percent(probe.pgd20)} under PGD-20"
    return Check("black_box", "black box is not stronger than white box", not is_stronger(square, probe.pgd20), figure)


def _applies(probe: Probe) -> bool:
    square = AutoAttack(probe.threat.eps, norm=probe.threat.norm, attacks="square")
    try:
        square.applicable_members(probe.logits(probe.x[:1]).shape[1], probe.x.shape[1:])
    except ConfigError:
        return False
    return True


def _square(probe: Probe) -> Tensor:
    """Candidates of Square (n, c, h, w)."""
    norm = "Linf" if probe.threat.norm == "linf" else "L2"
    devices = range(torch.cuda.device_count())  # the package seeds all of them
    with attack_mode(probe.model, "eval"), torch.random.fork_rng(devices=devices), torch.no_grad():
        net = in_float32(CheckedModel(probe.model, probe.y))
        attack = SquareAttack(
            net, norm, n_queries=QUERIES, eps=probe.threat.eps, seed=probe.key.seed, device=probe.x.device
        )
        found = probe.x.clone()
        rows = probe.natural.nonzero().squeeze(1)
        if len(rows):
            found[rows] = attack.perturb(probe.x[rows].clone(), probe.y[rows].clone())
    return found
