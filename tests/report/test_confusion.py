"""Confusions and accuracies of classes."""

import pytest
import torch
from helpers.evaluation import LINF
from sklearn.metrics import confusion_matrix

from pyengm.report.attacked import Attacked, Predicted
from pyengm.report.confusion import MAX_CLASSES, class_accuracies, confusions
from pyengm.report.strips import make_strips


def make(labels, clean, adversarial, classes):
    sure = torch.full((len(labels),), 0.75)
    images = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
    return Attacked(
        "PGD-20",
        LINF,
        [f"class {i}" for i in range(classes)],
        torch.tensor(labels),
        Predicted(torch.tensor(clean), sure),
        Predicted(torch.tensor(adversarial), sure),
        torch.tensor([0]),
        images,
        (images + 0.1).clamp(0, 1),
    )


def test_as_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    labels, clean, wrong = torch.randint(0, 5, (3, 200), generator=generator).tolist()
    natural, under = confusions(make(labels, clean, wrong, 5))
    for found, predicted in ((natural, clean), (under, wrong)):
        expected = 100 * confusion_matrix(labels, predicted, labels=range(5), normalize="true")
        assert found.shares == pytest.approx(expected.round(), abs=1)
    assert (natural.title, under.title) == ("Natural", "Under PGD-20")


def test_a_class_without_images_is_left_out():
    found = class_accuracies(make([0, 0, 2, 2], [0, 1, 2, 2], [1, 1, 2, 0], 3))
    assert [(one.name, one.images, one.clean, one.attacked) for one in found] == [
        ("class 0", 2, 50.0, 0.0),
        ("class 2", 2, 100.0, 50.0),
    ]


def test_many_classes_have_a_list_of_errors():
    classes = MAX_CLASSES + 1
    natural, under = confusions(make([3, 3, 3, 4, 5], [3, 3, 3, 4, 5], [9, 9, 3, 8, 1], classes))
    assert natural.shares is None
    assert natural.frequent == []
    assert under.frequent == [("class 3", "class 9", 2, 3), ("class 4", "class 8", 1, 1), ("class 5", "class 1", 1, 1)]


def test_strips():
    (strip,), factor = make_strips(make([1], [1], [0], 2))
    assert factor == pytest.approx(4)
    assert (strip.before.name, strip.before.confidence, strip.before.correct) == ("class 1", "75\u00a0%", True)
    assert (strip.label, strip.after.name, strip.after.correct) == ("class 1", "class 0", False)


def test_strips_without_a_perturbation():
    attacked = make([1], [1], [0], 2)
    object.__setattr__(attacked, "examples", attacked.images)
    assert make_strips(attacked)[1] == 1
