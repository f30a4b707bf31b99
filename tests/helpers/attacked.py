"""A small model and images to attack, and the radii of the threat models."""

import math

import pytest
import torch

from pyengm.models import build
from pyengm.ops import Key

EPS = {"linf": 0.1, "l2": 0.5}
both_norms = pytest.mark.parametrize("norm", EPS)


def network(norm="gn", dtype=torch.float32):
    torch.manual_seed(0)
    model = build("cnn4", width=4, image_size=8, in_channels=1, norm_layer=norm).to(dtype)
    return model.eval()


def batch(n=6, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(n, 1, 8, 8, generator=generator, dtype=dtype)
    return x, torch.randint(0, 10, (n,), generator=generator)


def key_for(n, seed=3, epoch=0):
    return Key(seed, epoch, torch.arange(n) + 100)


def distances(x_adv, x, norm):
    return torch.linalg.vector_norm((x_adv - x).flatten(1), ord=math.inf if norm == "linf" else 2, dim=1)
