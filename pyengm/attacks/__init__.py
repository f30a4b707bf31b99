"""Attacks. Each is constructed with its options and called as attack(model, x, y) on images x (n, ...) in [0, 1]."""

from pyengm.attacks.autoattack import AutoAttack
from pyengm.attacks.carlini_wagner import CarliniWagnerL2
from pyengm.attacks.ddn import DDN
from pyengm.attacks.deepfool import DeepFool
from pyengm.attacks.difgsm import DIFGSM
from pyengm.attacks.eot_pgd import EOTPGD
from pyengm.attacks.fmn import FMN
from pyengm.attacks.fosc import FOSCPGD, fosc_of
from pyengm.attacks.mifgsm import MIFGSM
from pyengm.attacks.minimum_norm import Within
from pyengm.attacks.model_state import BN_MODES, attack_mode
from pyengm.attacks.pgd import CW, FGSM, PGD, EagerRunner, Runner
from pyengm.attacks.targeted import TargetedPGD
from pyengm.attacks.threat_model import THREAT_NORMS, ThreatModel
from pyengm.attacks.tifgsm import TIFGSM
from pyengm.attacks.transfer import Transfer

__all__ = [
    "BN_MODES",
    "CW",
    "DDN",
    "DIFGSM",
    "EOTPGD",
    "FGSM",
    "FMN",
    "FOSCPGD",
    "MIFGSM",
    "PGD",
    "THREAT_NORMS",
    "TIFGSM",
    "AutoAttack",
    "CarliniWagnerL2",
    "DeepFool",
    "EagerRunner",
    "Runner",
    "TargetedPGD",
    "ThreatModel",
    "Transfer",
    "Within",
    "attack_mode",
    "fosc_of",
]
