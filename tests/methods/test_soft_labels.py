"""Labels that are probabilities (mixup, cutmix) in every method, and targeted attacks."""

import copy
import inspect

import pytest
import torch
from helpers.small_problems import cnn4, distances, images_and_labels
from torch.nn import functional as F

from pyengm.attacks import PGD
from pyengm.attacks.losses import cross_entropy
from pyengm.attacks.validation import check_batch
from pyengm.errors import ConfigError, DataError
from pyengm.methods import METHODS, PGDAT, DatasetSpec, Natural
from pyengm.ops import Key
from pyengm.training import TrainConfig, build_components

N, HARD = 6, ("mart", "mart_awp", "ssat")
SOFT = [name for name in METHODS if name not in HARD]


def key(n=N, epoch=1):
    return Key(5, epoch, torch.arange(n))


def made(name):
    arguments = inspect.signature(METHODS[name]).parameters
    given = {"eps": 0.1, "epochs": 10}
    method = METHODS[name](**{argument: value for argument, value in given.items() if argument in arguments})
    method.prepare(DatasetSpec(torch.arange(N), (1, 8, 8), seed=0))
    return method


def outputs(name, x, y):
    """Losses and adversarial images of the first two passes over a batch."""
    model, method = cnn4("gn", torch.float64), made(name)
    found = []
    for epoch in (0, 1):
        method.start_epoch(model, epoch)
        for output in method.passes(model, x, y, key(epoch=epoch)):
            output.losses.sum().backward()
            found += [output.losses.detach(), output.x_adv.detach()]
            if output.undo is not None:
                output.undo()
    return found


def mixed(y):
    return 0.7 * F.one_hot(y, 10).double() + 0.3 * F.one_hot(y.flip(0), 10).double()


@pytest.mark.parametrize("name", SOFT)
def test_certain_labels_are_labels(name):
    x, y = images_and_labels(N, 1)
    for a, b in zip(outputs(name, x, y), outputs(name, x, F.one_hot(y, 10).double()), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in SOFT if name != "lbgat"])  # whose teacher alone has labels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mixed_labels(name, dtype):
    x, y = images_and_labels(N, 1)
    found = outputs(name, x, mixed(y).to(dtype))
    assert all(t.isfinite().all() for t in found)
    hard = outputs(name, x, y)
    assert any(not a.equal(b) for a, b in zip(found[::2], hard[::2], strict=True))


@pytest.mark.parametrize("name", HARD)
def test_methods_that_need_one_class(name):
    x, y = images_and_labels(N, 1)
    with pytest.raises(DataError, match=r"expected labels of shape \(6,\) in int64"):
        outputs(name, x, mixed(y))


def test_the_losses_are_cross_entropies():
    model, (x, y) = cnn4("gn", torch.float64), images_and_labels(N, 1)
    y = mixed(y)
    output = PGDAT(0.1, steps=2)(model, x, y, key())
    expected = -(y * output.logits.log_softmax(1)).sum(1)
    torch.testing.assert_close(output.losses, expected)
    start = PGD(0.1, 0.0, 1)(model, x, y, key=key())
    attacked = -(y * model(output.x_adv).log_softmax(1)).sum(1)
    assert (attacked > -(y * model(start).log_softmax(1)).sum(1)).all()
    smooth = Natural()
    smooth.label_smoothing = 0.1
    expected = F.cross_entropy(model(x), 0.9 * y + 0.01, reduction="none")
    torch.testing.assert_close(smooth(model, x, y).losses, expected)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda y: y + 0.1, r"0 or more with sum 1 .* sums from 2 to 2"),
        (lambda y: 2 * y - 0.1, r"got values from -0\.1 on"),
        (lambda y: y * torch.nan, "sums from nan to nan"),
        (lambda y: y[:, :9], r"sum 1|shape \(6, 10\), as logits, got \(6, 9\)"),
        (lambda y: torch.cat([y, 0 * y], 1), r"shape \(6, 10\), as logits, got \(6, 20\)"),
        (lambda y: y[:4], r"or probabilities \(6, classes\), got \(4, 10\)"),
        (lambda y: y.long(), r"or probabilities \(6, classes\), got \(6, 10\) in torch.int64"),
    ],
)
def test_wrong_probabilities(change, match):
    x, y = images_and_labels(N, 1)
    with pytest.raises(DataError, match=match):
        PGDAT(0.1, steps=1)(cnn4("gn", torch.float64), x, change(mixed(y)), key())


def test_rounded_probabilities():
    x, y = images_and_labels(N, 1, torch.float32)
    _, checked = check_batch(x, mixed(y).bfloat16(), soft=True)
    assert checked.dtype == torch.float32
    with pytest.raises(DataError, match="in int64, got"):
        check_batch(x, mixed(y))


@pytest.mark.parametrize("options", [{"restarts": 2}, {"early_stop": True}, {"loss": "margin"}, {"loss": "cw"}])
def test_attacks_that_ask_for_the_class(options):
    x, y = images_and_labels(N, 1)
    with pytest.raises(DataError, match="in int64, got"):
        PGD(0.1, 0.02, 2, **options)(cnn4("gn", torch.float64), x, mixed(y), key=key())


def test_cross_entropy_of_half_logits():
    logits, y = torch.randn(4, 10), torch.rand(4, 10).softmax(1)
    found = cross_entropy(logits.half(), y.double())
    torch.testing.assert_close(found, cross_entropy(logits.half().float(), y))


class TestTargets:
    @pytest.mark.parametrize("norm", ["linf", "l2"])
    @pytest.mark.parametrize("targets", ["random", "least_likely"])
    @pytest.mark.parametrize("soft", [False, True])
    def test_the_attack_approaches_another_class(self, targets, norm, soft):
        model, (x, y) = cnn4("gn", torch.float64), images_and_labels(64, 1)
        method = PGDAT(0.3, steps=10, targets=targets, norm=norm)
        labels = F.one_hot(y, 10).double() if soft else y
        aim = method._aim(model, x, labels, key(64))
        assert (aim != y).all()
        assert aim.min() >= 0
        assert aim.max() <= 9
        before = copy.deepcopy(model.state_dict())
        x_adv = method(model, x, labels, key(64)).x_adv
        assert all(before[name].equal(value) for name, value in model.state_dict().items())
        assert distances(x_adv, x, norm).max() <= 0.3 * (1 + 1e-9)
        assert (cross_entropy(model(x_adv), aim) < cross_entropy(model(x), aim)).all()

    def test_random_targets(self):
        model, (x, y) = cnn4("gn", torch.float64), images_and_labels(2000, 1)
        method = PGDAT(0.1, targets="random")
        first, second = (method._aim(model, x, y, key(2000, epoch)) for epoch in (1, 2))
        assert first.equal(method._aim(model, x, y, key(2000, 1)))
        assert not first.equal(second)
        shift = (first - y) % 10
        counts = torch.bincount(shift, minlength=10)
        assert counts[0] == 0
        assert (counts[1:] - 2000 / 9).abs().max() < 5 * (2000 / 9) ** 0.5

    def test_least_likely_targets(self):
        model, (x, y) = cnn4("gn", torch.float64), images_and_labels(N, 1)
        logits = model(x)
        y = logits.argmin(1)  # the least likely class is the label: the next one is taken
        aim = PGDAT(0.1, targets="least_likely")._aim(model, x, y, key())
        assert aim.equal(logits.argsort(1)[:, 1])

    def test_targets_of_the_command_line(self):
        config = TrainConfig.from_flat(model="cnn4", width=2, method_options=("targets=random",)).resolve()
        assert build_components(config).method.targets == "random"

    def test_unknown_targets(self):
        with pytest.raises(ConfigError, match="targets is 'nearest'; known: least_likely, random, or None"):
            PGDAT(0.1, targets="nearest")

    def test_targeted_pgd_stops_and_restarts_at_the_target(self):
        model, (x, _) = cnn4("gn", torch.float64), images_and_labels(32, 1)
        aim = (model(x).argmax(1) + 1) % 10
        stopped = PGD(0.5, 0.05, 20, loss="targeted", early_stop=True)(model, x, aim, key=key(32))
        plain = PGD(0.5, 0.05, 20, loss="targeted")(model, x, aim, key=key(32))
        assert (model(stopped).argmax(1) == aim).sum() >= (model(plain).argmax(1) == aim).sum() > 0
        reached = PGD(0.1, 0.05, 2, loss="targeted", restarts=4)(model, x, aim, key=key(32))
        once = PGD(0.1, 0.05, 2, loss="targeted")(model, x, aim, key=key(32))
        assert (model(reached).argmax(1) == aim).sum() >= (model(once).argmax(1) == aim).sum()
