"""Linear models, images and a short AutoAttack, for tests of AutoAttack and its runs."""

import pyautoattack
import torch
from torch import nn

from pyengm.attacks.autoattack import MEMBERS
from pyengm.data import ImageDataset

EPS = {"linf": 0.03, "l2": 0.2}


def linear(classes=10, height=8, width=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(height * width, classes))


def make_images(model, n=16, side=8):
    x = torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(1))
    y = model.eval()(x).argmax(dim=1)
    y[0] = (y[0] + 1) % 10  # one that is misclassified from the beginning
    return x, y


def image_data(model, n=30, classes=10, height=8, width=8, seed=2):
    """Images with the labels that the model gives, one in ten made wrong."""
    images = torch.randint(0, 256, (n, 1, height, width), generator=torch.Generator().manual_seed(seed))
    labels = model.eval()(images / 255).argmax(dim=1)
    labels[::10] = (labels[::10] + 1) % classes
    return ImageDataset(images.to(torch.uint8), labels, tuple(map(str, range(classes))), "made", "test")


def accuracy(model, x, y):
    return (model.eval()(x).argmax(dim=1) == y).double().mean().item()


def shorten(monkeypatch, apgd, fab, square):
    """Fewer steps and queries. The list that it returns names the members that run, and on how many images."""
    init, ran = pyautoattack.AutoAttack.__init__, []

    def short(package, *args, **options):
        init(package, *args, **options)
        package.apgd.n_iter = package.apgd_targeted.n_iter = apgd
        package.fab.n_iter, package.square.n_queries = fab, square
        attacks = (package.apgd, package.apgd_targeted, package.fab, package.square)
        for name, attack in zip(MEMBERS, attacks, strict=True):
            attack.perturb = lambda x, y, name=name, perturb=attack.perturb: ran.append((name, len(x))) or perturb(x, y)

    monkeypatch.setattr(pyautoattack.AutoAttack, "__init__", short)
    return ran
