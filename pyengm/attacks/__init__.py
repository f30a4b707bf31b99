"""Attacks. Each is made with its options and called as attack(model, x, y) on pictures x (n, ...) in [0, 1]."""

from pyengm.attacks.autoattack import AutoAttack
from pyengm.attacks.mode import BN_MODES, attack_mode
from pyengm.attacks.pgd import CW, FGSM, PGD
from pyengm.attacks.threat import NORMS, Threat

__all__ = ["BN_MODES", "CW", "FGSM", "NORMS", "PGD", "AutoAttack", "Threat", "attack_mode"]
