"""More steps of an attack find no fewer adversarial examples."""

from pyengm.attacks import FGSM
from pyengm.evaluation.trust.check import Check, is_stronger, percent
from pyengm.evaluation.trust.probe import Probe


def check_more_steps(probe: Probe) -> Check:
    """PGD-100 is not weaker than PGD-20."""
    many = probe.correct(probe.attacked(probe.pgd(100)))
    figure = f"{percent(many)} under PGD-100, {percent(probe.pgd20)} under PGD-20"
    return Check("more_steps", "more steps are not weaker", not is_stronger(probe.pgd20, many), figure)


def check_single_step(probe: Probe) -> Check:
    """FGSM, one step, is not stronger than PGD-20."""
    single = probe.correct(probe.attacked(FGSM(probe.threat.eps, norm=probe.threat.norm)))
    figure = f"{percent(single)} under FGSM, {percent(probe.pgd20)} under PGD-20"
    return Check("single_step", "FGSM is not stronger than PGD", not is_stronger(single, probe.pgd20), figure)
