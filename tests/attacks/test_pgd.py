"""PGD and its relatives: what they compute, what they leave unchanged, and what their random numbers depend on."""

import math

import pytest
import torch
from helpers.attacked import EPS, batch, both_norms, distances, key_for, network
from torch import nn
from torch.nn import functional as F

from pyengm.attacks import CW, FGSM, PGD, ThreatModel, attack_mode
from pyengm.attacks.losses import LOSSES, carlini_wagner, cross_entropy
from pyengm.errors import ConfigError, DataError, NonFiniteError
from pyengm.ops import Key

# What is computed


@pytest.fixture
def torchattacks():
    return pytest.importorskip("torchattacks")


def reference_start(x, norm, eps):
    """The start that torchattacks draws from torch's generator in its present state."""
    if norm == "linf":
        noise = torch.empty_like(x).uniform_(-eps, eps)
    else:
        noise = torch.empty_like(x).normal_()
        norms = noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        noise *= torch.zeros_like(norms).uniform_(0, 1) / norms * eps
    return (x + noise).clamp(0, 1)


@both_norms
@pytest.mark.parametrize("random_start", [True, False])
def test_pgd_is_that_of_torchattacks(torchattacks, norm, random_start):
    # float64: in float32 a gradient element near zero may take another sign, which is no error of either side.
    model, (x, y), eps = network(dtype=torch.float64), batch(dtype=torch.float64), EPS[norm]
    reference = {"linf": torchattacks.PGD, "l2": torchattacks.PGDL2}[norm]
    torch.manual_seed(5)
    expected = reference(model, eps=eps, alpha=eps / 4, steps=7, random_start=random_start)(x, y)
    torch.manual_seed(5)
    start = reference_start(x, norm, eps) if random_start else x
    ours = PGD(eps, eps / 4, 7, norm=norm, random_start=random_start)(model, x, y, start=start)
    # Their L2 step divides by norm + 1e-10; the norms here are above 1e-3.
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
    assert distances(ours, start, norm).min() > 0


@both_norms
def test_pgd_is_its_formula(norm):
    model, (x, y), eps, step = network("bn"), batch(), EPS[norm], 0.03
    expected = x.clone()
    for _ in range(3):
        leaf = expected.clone().requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)
        if norm == "linf":
            expected = (expected + step * g.sign()).clamp(x - eps, x + eps).clamp(0, 1)
        else:
            unit = g / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            delta = expected + step * unit - x
            norms = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            expected = (x + delta * (eps / norms).clamp(max=1)).clamp(0, 1)
    ours = PGD(eps, step, 3, norm=norm, random_start=False)(model, x, y)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)  # a few roundings of values up to 1


@both_norms
def test_fgsm_is_one_step_of_eps(norm):
    model, (x, y), eps = network(), batch(), EPS[norm]
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(model(leaf), y), leaf)
    step = g.sign() if norm == "linf" else g / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(FGSM(eps, norm=norm)(model, x, y), (x + eps * step).clamp(0, 1), rtol=0, atol=1e-6)


def test_cw_stops_where_the_model_is_fooled():
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]], requires_grad=True)  # right, fooled
    (g,) = torch.autograd.grad(carlini_wagner(logits, torch.tensor([0, 0])).sum(), logits)
    assert g.tolist() == [[-1, 1, 0], [0, 0, 0]]
    model, (x, _) = network(), batch(16)
    y = model(x).argmax(dim=1)
    y[::2] = (y[::2] + 1) % 10  # every other example is fooled from the start
    attack = CW(0.1)
    assert (attack.steps, attack.step_size) == (30, 0.1 / 10)
    x_adv = PGD(0.1, 0.01, 30, loss="cw", random_start=False)(model, x, y)
    assert x_adv[::2].equal(x[::2])
    assert (distances(x_adv, x, "linf")[1::2] > 0).all()


def test_l2_steps_where_squares_of_the_gradient_underflow():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([60.0] + [0.0] * 9))  # so sure of class 0 that gradients are near 1e-25
    x, y = batch()[0] / 2 + 0.25, torch.zeros(6, dtype=torch.int64)
    x_adv = PGD(0.2, 0.05, 1, norm="l2", random_start=False)(model, x, y)
    torch.testing.assert_close(distances(x_adv, x, "l2"), torch.full((6,), 0.05), rtol=1e-5, atol=0)


# The ball


@both_norms
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [0.0, 8 / 255, 0.3, 5.0])
def test_result_is_in_the_ball_and_the_box(norm, dtype, eps):
    eps = min(eps, 1.0) if norm == "linf" else eps  # more is refused there, as a value in units of 1/255
    model, (x, y) = network(dtype=dtype), batch(dtype=dtype)
    x[:, :, 0], x[:, :, 1] = 0, 1
    x_adv = PGD(eps, eps / 2, 4, norm=norm)(model, x, y)
    assert x_adv.dtype == dtype
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    if eps == 0:
        assert x_adv.equal(x)
    elif norm == "linf":
        bound = torch.tensor(eps, dtype=dtype)
        assert (x_adv <= x + bound).all()
        assert (x_adv >= x - bound).all()
    else:  # each of the 64 pixels may be rounded by half a unit in the last place of 1
        assert distances(x_adv, x, norm).max() <= eps + 8 * torch.finfo(dtype).eps
    assert distances(x_adv, x, norm).max() >= 0.9 * min(eps, 1 if norm == "linf" else 3)


@both_norms
def test_result_is_in_the_box_and_the_ball(norm):
    model, (x, y) = network(), batch()
    x[0], x[1] = 0, 1
    x_adv = PGD(EPS[norm], 0.0, 1, norm=norm)(model, x, y)
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert (distances(x_adv, x, norm) > 0).all()
    assert distances(x_adv, x, norm).max() <= EPS[norm] + 1e-6
    inputs = []
    model.register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach().clone()))
    given = PGD(EPS[norm], 0.0, 1, norm=norm)(model, x, y, start=x + 3)
    expected = (x + EPS[norm]).clamp(max=1) if norm == "linf" else (x + EPS[norm] / 8).clamp(max=1)  # 64 equal pixels
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-6)
    assert inputs[0].equal(x + 3)  # used as given: no step leaves it outside


# Random numbers


@both_norms
def test_noise_depends_on_seed_epoch_and_index_only(norm):
    # float64: the sums of a convolution may be taken in another order when the batch has another size.
    model, (x, y) = network("bn", torch.float64), batch(8, torch.float64)
    attack = PGD(EPS[norm], EPS[norm] / 4, 3, norm=norm, restarts=2)
    key = key_for(8)
    whole = attack(model, x, y, key=key)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    permuted = attack(model, x[order], y[order], key=Key(key.seed, key.epoch, key.index[order]))
    torch.testing.assert_close(permuted, whole[order], rtol=0, atol=1e-9)
    parts = [attack(model, x[s], y[s], key=Key(key.seed, key.epoch, key.index[s])) for s in (slice(0, 1), slice(1, 8))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-9)
    assert not attack(model, x, y, key=key_for(8, seed=4)).equal(whole)
    assert not attack(model, x, y, key=key_for(8, epoch=1)).equal(whole)


@both_norms
def test_without_a_key_torch_seeds(norm):
    model, (x, y) = network(), batch()
    attack = PGD(EPS[norm], 0.01, 2, norm=norm)
    torch.manual_seed(7)
    first, second = attack(model, x, y), attack(model, x, y)
    torch.manual_seed(7)
    assert attack(model, x, y).equal(first)
    assert not first.equal(second)


def test_torch_generator_is_unchanged_where_no_noise_is_drawn():
    model, (x, y) = network(), batch()
    state = torch.get_rng_state()
    FGSM(0.1)(model, x, y)
    PGD(0.1, 0.01, 1)(model, x, y, start=x)
    PGD(0.1, 0.01, 1)(model, x, y, key=key_for(6))
    assert torch.get_rng_state().equal(state)


@both_norms
@pytest.mark.parametrize("loss", ["ce", "margin", "cw"])
def test_restarts_are_never_weaker(norm, loss):
    model, (x, _) = network(), batch(32)
    y = model(x).argmax(dim=1)
    options = {"norm": norm, "loss": loss}
    eps = EPS[norm] / 2
    one = PGD(eps, eps / 4, 3, **options)(model, x, y, key=key_for(32))
    more = PGD(eps, eps / 4, 3, restarts=4, **options)(model, x, y, key=key_for(32))
    fooled = {name: model(adv).argmax(dim=1) != y for name, adv in (("one", one), ("more", more))}
    assert (fooled["more"] | ~fooled["one"]).all()
    same = fooled["more"] == fooled["one"]
    losses = {name: LOSSES[loss](model(adv), y)[same] for name, adv in (("one", one), ("more", more))}
    assert (losses["more"] >= losses["one"]).all()
    assert not more.equal(one)


@both_norms
@pytest.mark.parametrize("bn", ["eval", "batch_stats"])
def test_restarts_in_one_batch_or_in_turn_are_the_best_of_single_runs(norm, bn):
    model, (x, y) = network("bn", torch.float64), batch(8, torch.float64)
    attack = PGD(EPS[norm], EPS[norm] / 4, 3, norm=norm, restarts=3, bn=bn)
    found = attack(model, x, y, key=key_for(8))
    single = PGD(EPS[norm], EPS[norm] / 4, 3, norm=norm, bn=bn)
    runs = []
    for draw in range(3):
        start = x + ThreatModel(norm, EPS[norm]).uniform(x, key_for(8), draw=draw)
        runs.append(single(model, x, y, start=single.threat.project_(start, x)))
    with attack_mode(model, bn), torch.no_grad():
        outputs = [model(run) for run in runs]
    for i in range(8):
        scores = [(bool(z[i].argmax() != y[i]), cross_entropy(z[i : i + 1], y[i : i + 1]).item()) for z in outputs]
        best = max(range(3), key=lambda k: scores[k])
        torch.testing.assert_close(found[i], runs[best][i], rtol=0, atol=1e-9)


def test_restarts_share_one_batch():
    model, (x, y), sizes = network(), batch(), []
    model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    PGD(0.1, 0.02, 2, restarts=3)(model, x, y, key=key_for(6))
    assert sizes == [18, 18, 18]


@both_norms
def test_early_stop_does_not_move_the_fooled(norm):
    model, (x, y) = network(dtype=torch.float64), batch(24, torch.float64)
    y[::2] = model(x).argmax(dim=1)[::2]
    options = {"norm": norm, "random_start": False}
    step, sizes = EPS[norm] / 5, []
    handle = model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    stopped = PGD(EPS[norm], step, 6, early_stop=True, **options)(model, x, y)
    handle.remove()
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[1] < len(x)
    # Each example is where a run of k steps leaves it, k the first at which it is fooled.
    expected, active = x.clone(), model(x).argmax(dim=1) == y
    for k in range(1, 7):
        run = PGD(EPS[norm], step, k, **options)(model, x, y)
        expected[active] = run[active]
        active &= model(run).argmax(dim=1) == y
    torch.testing.assert_close(stopped, expected, rtol=0, atol=1e-9)


def test_early_stop_of_all_and_with_restarts():
    model, (x, y) = network(), batch()
    y = (model(x).argmax(dim=1) + 1) % 10
    assert PGD(0.1, 0.02, 5, random_start=False, early_stop=True)(model, x, y).equal(x)
    y = model(x).argmax(dim=1)
    plain, stopped = (PGD(0.1, 0.05, 5, restarts=3, early_stop=stop)(model, x, y, key=key_for(6)) for stop in (0, 1))
    fooled = [model(x_adv).argmax(dim=1) != y for x_adv in (plain, stopped)]
    assert (fooled[1] | ~fooled[0]).all()


def test_kl_attack_moves_outputs_away_from_those_on_x():
    model, (x, y) = network(dtype=torch.float64), batch(dtype=torch.float64)
    forwards = []
    model.register_forward_pre_hook(lambda module, args: forwards.append(1))
    start = x + 0.001
    found = PGD(0.1, 0.03, 2, loss="kl")(model, x, y, start=start)
    assert len(forwards) == 3  # those on x are computed once
    p, x_adv = model(x).softmax(1).detach(), start.clone()
    for _ in range(2):
        leaf = x_adv.clone().requires_grad_()
        (p * (p.log() - model(leaf).log_softmax(1))).sum().backward()
        x_adv = (x_adv + 0.03 * leaf.grad.sign()).clamp(x - 0.1, x + 0.1).clamp(0, 1)
    torch.testing.assert_close(found, x_adv, rtol=0, atol=1e-12)
    assert PGD(0.1, 0.03, 2, loss="kl")(model, x, (y + 1) % 10, start=start).equal(found)


class Confident(nn.Module):
    """Logits so far apart that probabilities are 0 in float32."""

    def forward(self, x):
        return torch.stack([1000 * x.flatten(1).sum(1), -1000 * x.flatten(1).sum(1)], dim=1)


def test_kl_of_probabilities_of_zero_is_finite():
    x, y = torch.rand(4, 1, 3, 3), torch.zeros(4, dtype=torch.int64)
    assert PGD(0.1, 0.05, 3, loss="kl")(Confident(), x, y, start=x + 0.01).isfinite().all()
    assert LOSSES["kl"](Confident()(x), Confident()(x).log_softmax(1)).equal(torch.zeros(4))


class Nowhere(nn.Module):
    """Logits of nan for one of the images."""

    def __init__(self):
        super().__init__()
        self.model = network()

    def forward(self, x):
        return self.model(x).index_fill(0, torch.tensor([0]), torch.nan)


def test_an_example_of_nan_is_not_taken_for_a_fooled_one():
    x, y = batch()
    y = network()(x).argmax(dim=1)
    for early_stop in (False, True):
        with pytest.raises(NonFiniteError):
            PGD(0.1, 0.02, 3, random_start=False, early_stop=early_stop)(Nowhere(), x, y)


class Half(nn.Module):
    """A network whose inside runs in a narrow type, and whose gradients are small."""

    def __init__(self, dtype, scale):
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.dtype, self.scale = torch.randn(64, 10), dtype, scale

    def forward(self, x):
        return (x.flatten(1).to(self.dtype) * self.scale) @ self.weight.to(self.dtype)


@pytest.mark.parametrize(("dtype", "scale"), [(torch.bfloat16, 1.0), (torch.float16, 1.0), (torch.float16, 1e-6)])
def test_narrow_types_keep_loss_sign_and_step_in_float32(dtype, scale):
    x, y = batch()
    found = PGD(0.1, 0.03, 1, random_start=False)(Half(dtype, scale), x, y)
    wide = Half(torch.float32, torch.tensor(scale, dtype=dtype).float().item())
    expected = PGD(0.1, 0.03, 1, random_start=False)(wide, x, y)
    assert found.dtype == torch.float32
    assert found.equal(expected) or (found == expected).double().mean() > 0.97  # gradients near 0 may round over it
    assert ((found - x).abs().amax(dim=(1, 2, 3)) > 0.029).all()


class Deceptive(nn.Module):
    """Ten classes. Above 0.59 class 1 beats class 0 at a cross-entropy of 0.7; below, class 0 wins at one of 2.3."""

    def forward(self, x):
        fooled = torch.tensor([0.0, 0.01] + [-50.0] * 8)
        right = torch.tensor([0.0] + [-0.01] * 9)
        return torch.where(x > 0.59, fooled, right) + 0 * x


def test_restarts_prefer_the_fooled_to_the_larger_loss():
    attack = PGD(0.1, 0.0, 1, restarts=30)
    x, y = torch.full((50, 1), 0.5), torch.zeros(50, dtype=torch.int64)
    x_adv = attack(Deceptive(), x, y, key=key_for(50))
    # One draw is above 0.59 with probability 0.05: one run fools few of the 50, 30 runs nearly 80 %.
    assert (x_adv > 0.59).sum() > 25


# What is unchanged


@both_norms
def test_out_is_filled_and_returned_and_x_is_unchanged(norm):
    model, (x, y) = network(), batch()
    before = x.clone()
    out = torch.full_like(x, torch.nan)
    attack = PGD(EPS[norm], 0.02, 3, norm=norm, restarts=2)
    result = attack(model, x, y, key=key_for(6), out=out)
    assert result is out
    assert not out.requires_grad
    assert out.equal(attack(model, x, y, key=key_for(6)))
    assert x.equal(before)
    assert not attack(model, x.requires_grad_(), y).requires_grad
    assert x.grad is None
    for free in (PGD(0.0, 0.0, 1), FGSM(0.0, norm=norm)):
        assert free(model, x, y).data_ptr() != x.data_ptr()


@both_norms
@pytest.mark.parametrize("steps", [1, 3])
def test_gradient_of_the_last_step(norm, steps):
    model, (x, y), key = network(), batch(), key_for(6)
    options = {"norm": norm, "random_start": True}
    gradient = torch.empty_like(x)
    PGD(EPS[norm], 0.05, steps, **options)(model, x, y, key=key, gradient=gradient)
    zero = PGD(EPS[norm], 0.0, 1, **options)(model, x, y, key=key)
    before = zero if steps == 1 else PGD(EPS[norm], 0.05, steps - 1, **options)(model, x, y, key=key)
    leaf = before.clone().requires_grad_()
    (expected,) = torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)
    with pytest.raises(ConfigError, match="without restarts"):
        PGD(EPS[norm], 0.05, steps, restarts=2, **options)(model, x, y, key=key, gradient=gradient)
    with pytest.raises(ConfigError, match="shape of x"):
        PGD(EPS[norm], 0.05, steps, **options)(model, x, y, key=key, gradient=gradient[1:])


# Inputs


@both_norms
def test_channels_last_in_channels_last_out(norm):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10)).double()
    x = torch.rand(5, 3, 8, 8, dtype=torch.float64)
    y = torch.arange(5)
    attack = PGD(EPS[norm], 0.02, 3, norm=norm, restarts=2)
    expected = attack(model, x, y, key=key_for(5))
    last = x.contiguous(memory_format=torch.channels_last)
    result = attack(model, last, y, key=key_for(5))
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert expected.is_contiguous()
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-9)
    mixed = attack(model, last, y, key=key_for(5), out=torch.empty_like(x))
    torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-9)


@both_norms
def test_strided_images_and_n_1(norm):
    model, (x, y) = network("bn"), batch()
    attack = PGD(EPS[norm], 0.02, 2, norm=norm)
    for view in (x.transpose(2, 3), x[:1].expand(6, -1, -1, -1), torch.stack([x, x], dim=-1)[..., 0]):
        expected = attack(model, view.contiguous(), y, key=key_for(6))
        torch.testing.assert_close(attack(model, view, y, key=key_for(6)), expected, rtol=0, atol=1e-6)
    assert attack(model, x[:1], y[:1]).shape == (1, 1, 8, 8)


def test_images_of_any_rank():
    flat, volume = nn.Linear(6, 3), nn.Sequential(nn.Flatten(), nn.Linear(2 * 27, 3))
    y = torch.tensor([0, 1])
    for model, x in ((flat, torch.rand(6, 2).T), (volume, torch.rand(2, 2, 3, 3, 3))):
        for norm in EPS:
            assert PGD(0.1, 0.1, 2, norm=norm)(model, x, y).shape == x.shape


def test_under_no_grad_and_autocast():
    model, (x, y) = network(), batch()
    attack = PGD(0.1, 0.02, 2)
    expected = attack(model, x, y, key=key_for(6))
    with torch.no_grad():
        assert attack(model, x, y, key=key_for(6)).equal(expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attack(model, x, y, key=key_for(6)).dtype == torch.float32


X, Y = batch()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X + 0.5}, r"\[0, 1\]"),
        ({"x": X - 0.5}, r"\[0, 1\]"),
        ({"x": X + torch.tensor([0.0] * 7 + [torch.nan])}, r"\[0, 1\].* nan"),
        ({"x": (X * 255).to(torch.uint8)}, "float32 or float64.*uint8"),
        ({"x": X.half()}, "float32 or float64.*float16"),
        ({"x": X[:0], "y": Y[:0]}, "empty"),
        ({"y": Y[:5]}, r"labels of shape \(6,\)"),
        ({"y": F.one_hot(Y, 10)}, r"labels of shape \(6,\)"),
        ({"y": Y.float()}, "int64"),
        ({"y": Y.int()}, "int64"),
        ({"y": torch.full_like(Y, -100)}, "labels of 0 or more"),
        ({"start": X[:1]}, "start"),
        ({"out": torch.empty(1)}, "out"),
        ({"out": torch.empty_like(X, dtype=torch.float64)}, "out"),
        ({"out": X}, "memory"),
        ({"key": key_for(1)}, "key for 6"),
        ({"key": key_for(7)}, "key for 6"),
    ],
)
@both_norms
def test_bad_inputs(norm, change, message):
    model, before = network(), X.clone()
    inputs = {"x": X, "y": Y} | change
    with pytest.raises(DataError, match=message):
        PGD(0.1, 0.02, 2, norm=norm)(model, **inputs)
    assert X.equal(before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PGD(-0.1, 0.1, 1), "eps"),
        (lambda: PGD(math.nan, 0.1, 1), "eps"),
        (lambda: PGD(math.inf, 0.1, 1), "eps"),
        (lambda: PGD(0.1, math.nan, 1), "step"),
        (lambda: PGD(0.1, -0.1, 1), "step"),
        (lambda: PGD(0.1, 0.1, 0), "steps"),
        (lambda: PGD(0.1, 0.1, 1, restarts=0), "restarts"),
        (lambda: PGD(0.1, 0.1, 1, restarts=2, random_start=False), "restarts"),
        (lambda: PGD(0.1, 0.1, 1, restarts=2)(network(), X, Y, start=X), "restarts"),
        (lambda: PGD(0.1, 0.1, 1, early_stop=True, bn="train"), "early_stop with bn='train'"),
        (lambda: PGD(0.1, 0.1, 1, norm="l1"), "'l1'; known norms: linf, l2"),
        (lambda: PGD(0.1, 0.1, 1, loss="mse"), "'mse'; known losses: ce"),
        (lambda: PGD(0.1, 0.1, 1, bn="off"), "'off'; known modes: eval"),
        (lambda: FGSM(0.1, bn="off"), "known modes"),
        (lambda: CW(-1), "eps"),
        (lambda: attack_mode(network(), "off").__enter__(), "known modes"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


class Broken(nn.Module):
    """Finite logits whose gradient is nan, or nan logits."""

    def __init__(self, finite):
        super().__init__()
        self.finite = finite

    def forward(self, x):
        x = x.flatten(1)[:, :10]
        return x + (x - x).abs().sqrt() if self.finite else x * torch.nan


@both_norms
@pytest.mark.parametrize("finite", [True, False])
def test_models_that_are_not_finite(norm, finite):
    with pytest.raises(NonFiniteError, match="nan or infinite"):
        PGD(0.1, 0.02, 1, norm=norm, random_start=False)(Broken(finite), X, Y)
