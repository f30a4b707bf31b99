"""Attacks. Each is constructed with its options and called as attack(model, x, y) on images x (n, ...) in [0, 1]."""

from pyengm.attacks.autoattack import AutoAttack
from pyengm.attacks.deepfool import DeepFool
from pyengm.attacks.fosc import FOSCPGD, fosc_of
from pyengm.attacks.model_state import BN_MODES, attack_mode
from pyengm.attacks.pgd import CW, FGSM, PGD, EagerRunner, Runner
from pyengm.attacks.threat_model import THREAT_NORMS, ThreatModel
from pyengm.attacks.transfer import Transfer

__all__ = [
    "BN_MODES",
    "CW",
    "FGSM",
    "FOSCPGD",
    "PGD",
    "THREAT_NORMS",
    "AutoAttack",
    "DeepFool",
    "EagerRunner",
    "Runner",
    "ThreatModel",
    "Transfer",
    "attack_mode",
    "fosc_of",
]
