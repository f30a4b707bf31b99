"""Accuracy and predictions of a classifier, without and under attacks."""

import pytest
import torch
from helpers.evaluation import CPU, data_for, make_images, network
from torch import nn

from pyengm.attacks import FGSM, PGD
from pyengm.data import ImageDataset
from pyengm.errors import NonFiniteError
from pyengm.evaluation import accuracy, correct, expected_calibration_error, predict
from pyengm.ops import Key


class ByFirstPixel(nn.Module):
    """Class 1 where the first pixel is above one half."""

    def forward(self, x):
        pixel = x.flatten(1)[:, :1]
        return torch.cat([0.5 - pixel, pixel - 0.5], dim=1)


def test_accuracy_of_a_model_made_by_hand():
    images = torch.full((4, 1, 2, 2), 128, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor([0, 255, 140, 120])
    data = ImageDataset(images, torch.tensor([0, 1, 1, 1]), ("low", "high"), "made", "test")
    assert correct(ByFirstPixel(), data, None, seed=0, device=CPU).tolist() == [True, True, True, False]
    assert accuracy(ByFirstPixel(), data, None, seed=0, device=CPU) == 0.75
    weak, strong = FGSM(10 / 255), FGSM(20 / 255)
    assert correct(ByFirstPixel(), data, weak, seed=0, device=CPU).tolist() == [True, True, True, False]
    assert correct(ByFirstPixel(), data, strong, seed=0, device=CPU).tolist() == [True, True, False, False]


def test_attacked_accuracy_depends_on_seed_and_image_only():
    model = network().train()
    data = data_for(network(), 600)  # more than two batches
    attack = PGD(0.2, 0.1, 3, restarts=2)
    whole = correct(model, data, attack, seed=3, device=CPU)
    assert model.training
    assert 0 < whole.sum() < 450
    order = torch.randperm(600, generator=torch.Generator().manual_seed(0))
    # An image on the very edge may fall to either side: sums are taken in another order in other batches.
    assert (correct(model, data.subset(order), attack, seed=3, device=CPU) != whole[order]).sum() <= 1
    x_adv = attack(model, data.images / 255, data.labels, key=Key(3, 0, data.index))
    assert ((model.eval()(x_adv).argmax(dim=1) == data.labels) != whole).sum() <= 1


def test_a_model_that_is_not_finite():
    model = network()
    with torch.no_grad():
        model.head.bias[0] = torch.nan
    for attack in (None, FGSM(0.1)):
        with pytest.raises(NonFiniteError, match="nan"):
            correct(model, make_images(), attack, seed=0, device=CPU)


@pytest.mark.parametrize("attack", [None, FGSM(0.1)])
def test_verdicts_are_those_of_the_logits(attack):
    model = network()
    data = data_for(model, 600)
    x = data.images / 255
    logits = model(x if attack is None else attack(model, x, data.labels)).detach()
    found = predict(model, data, attack, seed=0, device=CPU)
    losses = nn.functional.cross_entropy(logits, data.labels, reduction="none")
    torch.testing.assert_close(found.confidence, logits.softmax(1).max(1).values, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.loss, losses, rtol=1e-5, atol=1e-5)
    assert found.correct.equal(logits.argmax(1) == data.labels)
    summary = found.summary("it")
    assert summary.keys() == {"it", "it_loss", "it_ece"}
    assert summary["it"] == accuracy(model, data, attack, seed=0, device=CPU)
    assert summary["it_loss"] == pytest.approx(losses.mean().item(), rel=1e-5)
    assert summary["it_ece"] == expected_calibration_error(found.confidence, found.correct)
