"""Foolbox and ART attack our models as they are, and find what our attacks find."""

import numpy as np
import pytest
import torch
from helpers.defences import THREAT, honest_model

from pyengm.attacks import FGSM, PGD
from pyengm.data import load
from pyengm.models import load_checkpoint, save_checkpoint
from pyengm.models.checkpoint import CheckpointInfo

OPTIONS = {"name": "cnn4", "num_classes": 10, "in_channels": 1, "image_size": 8, "norm_layer": "bn", "width": 8}


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    """A model that came from a file of ours, images and labels."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    info = CheckpointInfo(OPTIONS, "digits", tuple("0123456789"), "linf", THREAT.eps, 0)
    save_checkpoint(path, honest_model(adversarial=True), info)
    data = load("digits", "test").subset(range(60))
    return load_checkpoint(path)[0], data.images.float() / 255, data.labels


def correct(model, x, y):
    with torch.no_grad():
        return model(x).argmax(dim=1) == y


def test_foolbox(problem):
    foolbox = pytest.importorskip("foolbox")
    model, x, y = problem
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    fgsm, pgd = (
        foolbox.attacks.FGSM(),
        foolbox.attacks.LinfPGD(steps=20, abs_stepsize=THREAT.eps / 10, random_start=False),
    )
    for attack, ours in (
        (fgsm, FGSM(THREAT.eps)),
        (pgd, PGD(THREAT.eps, THREAT.eps / 10, 20, loss="ce", random_start=False)),
    ):
        _, theirs, _ = attack(wrapped, x, y, epsilons=THREAT.eps)
        found = ours(model, x, y)
        torch.testing.assert_close(found, theirs, rtol=0, atol=1e-5)
        assert correct(model, found, y).equal(correct(model, theirs, y))


def test_art(problem):
    pytest.importorskip("art")
    from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    model, x, y = problem
    classifier = PyTorchClassifier(
        model, torch.nn.CrossEntropyLoss(), input_shape=(1, 8, 8), nb_classes=10, clip_values=(0, 1), device_type="cpu"
    )
    pgd = {"eps_step": THREAT.eps / 10, "max_iter": 20, "num_random_init": 0, "verbose": False}
    for attack, ours in (
        (FastGradientMethod(classifier, eps=THREAT.eps), FGSM(THREAT.eps)),
        (
            ProjectedGradientDescentPyTorch(classifier, eps=THREAT.eps, **pgd),
            PGD(THREAT.eps, THREAT.eps / 10, 20, loss="ce", random_start=False),
        ),
    ):
        theirs = torch.from_numpy(attack.generate(x=x.numpy(), y=np.asarray(y)))
        found = ours(model, x, y)
        torch.testing.assert_close(found, theirs, rtol=0, atol=1e-5)
        assert correct(model, found, y).equal(correct(model, theirs, y))
