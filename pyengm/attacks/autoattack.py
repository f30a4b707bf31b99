"""AutoAttack (Croce & Hein 2020), run by its authors' package."""

import sys
from contextlib import ExitStack

import pyautoattack
import torch
from torch import Tensor, nn

from pyengm.attacks.check import check_batch
from pyengm.attacks.mode import attack_mode
from pyengm.attacks.threat import Threat
from pyengm.errors import ConfigError

_PACKAGE_NORMS = {"linf": "Linf", "l2": "L2"}


class AutoAttack:
    """The standard ensemble: APGD-CE, targeted APGD on DLR, targeted FAB and Square, each on what still stands.

    eps: in pixel units. norm: "linf" or "l2". batch_size: pictures per pass. seed: of its random starts.
    The model is in eval mode during the attack and left as it was; torch's default generators are too.
    Raises ConfigError for fewer than 4 classes (the targeted DLR loss needs 4) and for pictures that are not square
    (the Square attack needs them so), DataError for pictures outside [0, 1] and labels that do not fit.
    """

    def __init__(self, eps: float, *, norm: str = "linf", batch_size: int = 250, seed: int = 0):
        self.threat = Threat(norm, eps)
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; expected at least 1")
        self.batch_size, self.seed = batch_size, seed

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Adversarial examples for pictures x (n, c, h, h) in [0, 1], labels y (n,); x itself where none was found."""
        check_batch(x, y)
        if x.dim() != 4 or x.shape[2] != x.shape[3]:
            raise ConfigError(f"AutoAttack needs square pictures (n, c, h, h), got {tuple(x.shape)}")
        devices = range(torch.cuda.device_count())  # the package seeds all of them
        with attack_mode(model, "eval"), torch.random.fork_rng(devices=devices), ExitStack() as stack:
            stack.callback(sys.settrace, sys.gettrace())  # the package ends all tracing, a debugger's too
            with torch.no_grad():
                classes = model(x[:1]).shape[1]
            if classes < 4:
                raise ConfigError(f"AutoAttack's targeted DLR loss needs at least 4 classes, the model has {classes}")
            attack = pyautoattack.AutoAttack(
                model, norm=_PACKAGE_NORMS[self.threat.norm], eps=self.threat.eps, seed=self.seed, device=x.device
            )
            attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(9, classes - 1)
            x_adv, _ = attack.run_standard_evaluation(x, y, batch_size=self.batch_size)
        return x_adv
