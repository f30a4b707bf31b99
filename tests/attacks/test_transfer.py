"""Transfer attacks: adversarial examples of the surrogate, never of the model that they are tried on."""

import pytest
import torch
from helpers.attacked import batch
from helpers.evaluation import CPU, network
from torch import nn

from pyengm.attacks import CW, FGSM, PGD, AutoAttack, DeepFool, Transfer
from pyengm.data import ImageDataset
from pyengm.evaluation import accuracy, correct
from pyengm.ops import Key


class Untouchable(nn.Module):
    def forward(self, x):
        raise AssertionError("the target is run")


@pytest.mark.parametrize("attack", [PGD(0.1, 0.03, 3), CW(0.5, norm="l2"), FGSM(0.1)])
def test_the_target_is_ignored(attack):
    surrogate, (x, y) = network(0).train(), batch(8)
    key = Key(3, 0, torch.arange(8))
    x_adv = Transfer(attack, surrogate)(Untouchable(), x, y, key=key)
    assert x_adv.equal(attack(surrogate, x, y, key=key))
    assert all(module.training for module in surrogate.modules())
    assert all(p.requires_grad and p.grad is None for p in surrogate.parameters())
    out = torch.empty_like(x)
    assert Transfer(attack, surrogate)(Untouchable(), x, y, key=key, out=out) is out


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.7)])
def test_examples_stay_in_the_ball_and_the_box(norm, eps):
    x, y = batch(8)
    x_adv = Transfer(PGD(eps, eps / 3, 5, norm=norm), network(0))(network(1), x, y)
    size = torch.linalg.vector_norm((x_adv - x).flatten(1), ord=torch.inf if norm == "linf" else 2, dim=1)
    assert (size <= eps + 1e-6).all()
    assert size.min() > eps / 2
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


def test_black_box_accuracy():
    target, surrogate = network(2), network(0)
    images = torch.randint(0, 256, (300, 1, 8, 8), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    data = ImageDataset(images, target(images / 255).argmax(dim=1), tuple("0123456789"), "made", "test")
    attack = PGD(0.1, 0.02, 10, loss="margin")
    right = correct(target, data, Transfer(attack, surrogate), seed=3, device=CPU)
    x_adv = attack(surrogate, images / 255, data.labels, key=Key(3, 0, data.index))  # keyed: not by batches
    assert ((target(x_adv).argmax(dim=1) == data.labels) != right).sum() <= 1
    # An attack on the model itself is stronger: 0.15 against 0.99 here.
    assert accuracy(target, data, attack, seed=3, device=CPU) < right.double().mean() < 1
    # A surrogate that is the target is no black box.
    own = Transfer(attack, target)
    assert correct(target, data, own, seed=3, device=CPU).equal(correct(target, data, attack, seed=3, device=CPU))


@pytest.mark.parametrize("attack", [AutoAttack(0.05, attacks=["apgd-ce"]), DeepFool()])
def test_attacks_without_keys_transfer_too(attack):
    surrogate = network(0)
    images = torch.randint(0, 256, (6, 1, 8, 8), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    data = ImageDataset(images, surrogate(images / 255).argmax(dim=1), tuple("0123456789"), "made", "test")
    right = correct(network(1), data, Transfer(attack, surrogate), seed=3, device=CPU)
    x_adv = attack(surrogate, images / 255, data.labels)
    assert right.equal(network(1)(x_adv).argmax(dim=1) == data.labels)
