"""Random noise in the ball does little harm, compared with an attack."""

from pyengm.evaluation.trust.check import Check, is_stronger, percent
from pyengm.evaluation.trust.probe import Probe

DRAWS = 10


def check_noise(probe: Probe) -> Check:
    """The worst of DRAWS random points takes less than half of the accuracy that PGD-20 takes, or no more than chance.

    Where random points are as good as the points that gradients lead to, the gradients lead nowhere.

    References:
        Athalye et al. 2018, "Obfuscated Gradients Give a False Sense of Security", Sec. 3: random sampling.
    """
    noisy = probe.natural.clone()
    for draw in range(DRAWS):
        points = probe.x + probe.threat.uniform(probe.x, probe.key, draw=draw)
        noisy &= probe.correct(probe.threat.project_(points, probe.x))
    lost, lost_to_pgd = ((probe.natural & ~correct).sum().item() for correct in (noisy, probe.pgd20))
    harmful = is_stronger(noisy, probe.natural) and lost >= lost_to_pgd / 2
    figure = f"{percent(noisy)} at the worst of {DRAWS} points, {percent(probe.natural)} without noise"
    return Check("noise", "random noise is harmless", not harmful, f"{figure}, {percent(probe.pgd20)} under PGD-20")
