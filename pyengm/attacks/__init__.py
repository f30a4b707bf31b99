"""Attacks. Each is made with its options and called as attack(model, x, y) on images x (n, ...) in [0, 1]."""

from pyengm.attacks.autoattack import AutoAttack, Verdicts
from pyengm.attacks.deepfool import DeepFool
from pyengm.attacks.fosc import FOSCPGD, fosc_of
from pyengm.attacks.model_state import BN_MODES, attack_mode
from pyengm.attacks.pgd import CW, FGSM, PGD, EagerRunner, Runner
from pyengm.attacks.threat_model import NORMS, ThreatModel
from pyengm.attacks.transfer import Transfer

__all__ = [
    "BN_MODES",
    "CW",
    "FGSM",
    "FOSCPGD",
    "NORMS",
    "PGD",
    "AutoAttack",
    "DeepFool",
    "EagerRunner",
    "Runner",
    "ThreatModel",
    "Transfer",
    "Verdicts",
    "attack_mode",
    "fosc_of",
]
