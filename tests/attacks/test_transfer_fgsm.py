"""MI-FGSM, DI-FGSM and TI-FGSM: their formulas, and those of torchattacks."""

import pytest
import torch
from helpers.attacked import EPS, batch, both_norms, distances, key_for, network
from helpers.reference_attacks import norms_of
from torch.nn import functional as F

from pyengm.attacks import DIFGSM, FGSM, MIFGSM, TIFGSM
from pyengm.attacks.difgsm import random_places, resize_and_pad
from pyengm.attacks.tifgsm import gaussian_kernel
from pyengm.errors import ConfigError, DataError
from pyengm.models import build


@pytest.fixture
def torchattacks():
    return pytest.importorskip("torchattacks")


def colour_problem():
    """A network for colour images, as torchattacks has kernels for three channels only."""
    torch.manual_seed(0)
    model = build("cnn4", width=4, image_size=16, in_channels=3, norm_layer="gn").double().eval()
    generator = torch.Generator().manual_seed(1)
    return (
        model,
        torch.rand(5, 3, 16, 16, generator=generator).double(),
        torch.randint(0, 10, (5,), generator=generator),
    )


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_mifgsm_is_that_of_torchattacks(torchattacks, decay):
    model, x, y = colour_problem()
    theirs = torchattacks.MIFGSM(model, eps=0.1, alpha=0.02, steps=8, decay=decay)(x, y)
    ours = MIFGSM(0.1, 0.02, 8, decay=decay)(model, x, y)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert distances(ours, x, "linf").min() > 0.05


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_tifgsm_is_that_of_torchattacks(torchattacks, decay):
    model, x, y = colour_problem()
    options = {"decay": decay, "len_kernel": 7, "nsig": 3, "diversity_prob": 0.0}
    theirs = torchattacks.TIFGSM(model, eps=0.1, alpha=0.02, steps=6, **options)
    theirs.stacked_kernel = theirs.stacked_kernel.double()
    ours = TIFGSM(0.1, 0.02, 6, decay=decay, kernel_size=7)(model, x, y)
    torch.testing.assert_close(ours, theirs(x, y), rtol=0, atol=1e-5)
    assert not ours.equal(MIFGSM(0.1, 0.02, 6, decay=decay)(model, x, y))


def test_difgsm_is_that_of_torchattacks(torchattacks, monkeypatch):
    """With the same sizes and places, which torchattacks draws once for a batch."""
    model, x, y = colour_problem()
    size, top, left = (torch.full((5,), value) for value in (14, 1, 2))
    monkeypatch.setattr("pyengm.attacks.difgsm.random_places", lambda *_: (size, top, left))
    theirs = torchattacks.DIFGSM(model, eps=0.1, alpha=0.02, steps=5, decay=1.0)
    theirs.input_diversity = lambda images: F.pad(
        F.interpolate(images, size=[14, 14], mode="bilinear", align_corners=False), [2, 0, 1, 1]
    )
    ours = DIFGSM(0.1, 0.02, 5, decay=1.0, diversity=1.0)(model, x, y)
    torch.testing.assert_close(ours, theirs(x, y), rtol=0, atol=1e-5)


@both_norms
def test_mifgsm_is_its_formula(norm):
    model, (x, y), eps = network(dtype=torch.float64), batch(dtype=torch.float64), EPS[norm]
    expected, momentum = x.clone(), torch.zeros_like(x)
    for _ in range(4):
        leaf = expected.clone().requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)
        momentum = 0.7 * momentum + g / g.abs().sum(dim=(1, 2, 3), keepdim=True)
        if norm == "linf":
            expected = (expected + eps / 4 * momentum.sign()).clamp(x - eps, x + eps)
        else:
            expected = expected + eps / 4 * momentum / norms_of(momentum)
            delta = expected - x
            expected = x + delta * (eps / norms_of(delta)).clamp(max=1)
        expected = expected.clamp(0, 1)
    torch.testing.assert_close(MIFGSM(eps, steps=4, decay=0.7, norm=norm)(model, x, y), expected, rtol=0, atol=1e-9)


def test_one_step_is_fgsm():
    model, (x, y) = network(), batch()
    assert MIFGSM(0.1, steps=1)(model, x, y).equal(FGSM(0.1)(model, x, y))
    assert DIFGSM(0.1, steps=1, diversity=0.0)(model, x, y).equal(FGSM(0.1)(model, x, y))
    assert TIFGSM(0.1, steps=1, kernel_size=1)(model, x, y).equal(FGSM(0.1)(model, x, y))


def test_resize_and_pad_is_interpolate_and_pad():
    x = torch.rand(6, 2, 9, 9, dtype=torch.float64)
    sizes, tops, lefts = (
        torch.tensor([9, 8, 5, 1, 7, 3]),
        torch.tensor([0, 1, 2, 8, 0, 6]),
        torch.tensor([0, 0, 4, 3, 2, 1]),
    )
    found = resize_and_pad(x, sizes, tops, lefts)
    for image, one, size, top, left in zip(x, found, sizes.tolist(), tops.tolist(), lefts.tolist(), strict=True):
        small = F.interpolate(image[None], size=[size, size], mode="bilinear", align_corners=False)
        rest = 9 - size
        torch.testing.assert_close(one, F.pad(small, [left, rest - left, top, rest - top])[0], rtol=0, atol=1e-12)


def test_places_are_inside_the_image():
    u = torch.rand(4000, 4)
    sizes, tops, lefts = random_places(u, 32, 0.9)
    assert sizes.unique().tolist() == [28, 29, 30, 31, 32]
    for places in (tops, lefts):
        assert places.min() == 0
        assert (places + sizes).max() == 32
    assert (tops + sizes <= 32).all()


def test_difgsm_depends_on_its_key_alone():
    model, (x, y) = network(), batch()
    attack = DIFGSM(0.1, steps=4, diversity=1.0)
    first = attack(model, x, y, key=key_for(len(x)))
    assert first.equal(attack(model, x, y, key=key_for(len(x))))
    assert not first.equal(attack(model, x, y, key=key_for(len(x), seed=4)))
    alone = attack(model, x[2:3], y[2:3], key=type(key_for(1))(3, 0, torch.tensor([102])))
    torch.testing.assert_close(alone, first[2:3], rtol=0, atol=0.06)  # a sign near zero may turn
    assert distances(first, x, "linf").max() <= 0.1 + 1e-6


def test_gaussian_kernel():
    kernel = gaussian_kernel(5, 3.0)
    assert kernel.sum() == pytest.approx(1)
    assert kernel[2, 2] / kernel[2, 0] == pytest.approx(torch.tensor(4.5).exp().item())
    torch.testing.assert_close(kernel, kernel.T)


def test_options_out_of_range():
    for call in (
        lambda: MIFGSM(0.1, steps=0),
        lambda: MIFGSM(0.1, -1.0),
        lambda: MIFGSM(0.1, decay=-0.5),
        lambda: MIFGSM(0.1, loss="kl"),
        lambda: DIFGSM(0.1, resize_rate=0.0),
        lambda: DIFGSM(0.1, diversity=1.5),
        lambda: TIFGSM(0.1, kernel_size=4),
        lambda: TIFGSM(0.1, sigmas=0.0),
    ):
        with pytest.raises(ConfigError, match=r" is .*; expected"):
            call()
    with pytest.raises(DataError, match="square images"):
        DIFGSM(0.1)(network(), torch.rand(2, 1, 8, 9), torch.tensor([0, 1]))
