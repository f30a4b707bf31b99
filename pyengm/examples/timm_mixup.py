"""Mixup and cutmix of timm: the labels are probabilities, in natural and in adversarial training.

python -m pyengm.examples.timm_mixup
"""

import numpy as np
import torch
from timm.data.mixup import Mixup
from torch import nn
from torch.utils.data import DataLoader

import pyengm
from pyengm.examples.problem import ALPHA, BATCH, LR, digits, network, report


def main(method: pyengm.methods.Method | None = None) -> nn.Module:
    """Trains for an epoch and returns the network. method: PGD adversarial training unless given."""
    np.random.seed(0)  # which timm draws from  # noqa: NPY002
    torch.manual_seed(0)
    method = pyengm.methods.PGDAT(0.1, steps=3) if method is None else method
    mix = Mixup(mixup_alpha=0.4, cutmix_alpha=1.0, num_classes=10)
    model = network()
    optimizer = pyengm.ENGM(model.parameters(), lr=LR, alpha=ALPHA)
    for step, (x, y) in enumerate(DataLoader(digits(), BATCH)):
        x, y = mix(x.clone(), y)  # y is (n, 10)
        ((output, _),) = pyengm.train_step(method, model, optimizer, x, y)
        if step % 4 == 3:
            report(output.losses.detach(), optimizer.statistics())
    return model


if __name__ == "__main__":
    main()
