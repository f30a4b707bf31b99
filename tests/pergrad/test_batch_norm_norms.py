"""Norms under batch norm in training mode: what is exact is exact, and what is calibrated sums up right."""

import copy
import dataclasses
import io

import pytest
import torch
from helpers.toy_models import ToyModel, cross_entropy, images, norms_of, rows, weight
from torch import nn
from torch.utils._pytree import tree_map

from pyengm import per_example_grad_norms
from pyengm.errors import ConfigError, UnsupportedOperationError
from pyengm.models import build
from pyengm.optim import ENGM
from pyengm.pergrad import (
    NormEstimator,
    backward_by_weights,
    clipped_backward,
    engine,
    exact_norms,
    norm_estimator,
)
from pyengm.pergrad.batch_norm import lowrank, projection, regression
from pyengm.pergrad.exact import exact_gradients, exact_squares
from pyengm.pergrad.norm_estimator import _tensors

SQUARES_ROUNDING = 1e-9  # relative, float64: what is subtracted is as large as what is left


class FrozenBatchNorm(nn.Module):
    """Batch norm whose statistics are the batch's, held constant."""

    def __init__(self, layer):
        super().__init__()
        self.weight, self.bias, self.eps = layer.weight, layer.bias, layer.eps

    def forward(self, x):
        axes, shape = (0, *range(2, x.dim())), (1, -1, *[1] * (x.dim() - 2))
        mean, var = x.detach().mean(axes), x.detach().var(axes, unbiased=False)
        y = (x - mean.view(shape)) / (var.view(shape) + self.eps).sqrt()
        return y if self.weight is None else y * self.weight.view(shape) + self.bias.view(shape)


def frozen(model):
    """The model with the same parameters and frozen statistics."""
    twin = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    for module in list(twin.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(module, name, FrozenBatchNorm(child))
    return twin


def ready(model):
    """Float64, and no parameter at the 0 or 1 that it starts with."""
    model = model.double().train()
    for p in model.parameters():
        if p.dim() < 2:
            p.data += 0.2 * torch.randn_like(p)
    return model


def head(features=None):
    return nn.Sequential(nn.Flatten(), nn.Linear(features, 3))


def pre_activation():
    """Two batch norms at the end read one stream, to which two convolutions are added."""

    def forward(m, x):
        stream = m.a(x) + m.b(torch.tanh(x))
        return m.h((torch.relu(m.n(stream)) + torch.tanh(m.o(stream + m.c(x)))).mean((2, 3)))

    parts = {name: nn.Conv2d(3, 4, 3, padding=1) for name in "abc"}
    return ToyModel(forward, n=nn.BatchNorm2d(4), o=nn.BatchNorm2d(4), h=nn.Linear(4, 3), **parts)


def two_readers():
    """The output of a convolution goes to a batch norm and past it."""
    return ToyModel(
        lambda m, x: (lambda z: m.h((torch.relu(m.n(z)) + z.tanh()).mean((2, 3))))(m.a(x)),
        a=nn.Conv2d(3, 4, 3), n=nn.BatchNorm2d(4), h=nn.Linear(4, 3),
    )  # fmt: skip


def siamese():
    """Frames of examples share one batch norm."""
    return ToyModel(
        lambda m, x: m.h(torch.relu(m.n(m.a(x.reshape(-1, 1, 7, 6)))).mean((2, 3)).view(len(x), 3, 4).mean(1)),
        a=nn.Conv2d(1, 4, 3), n=nn.BatchNorm2d(4), h=nn.Linear(4, 3),
    )  # fmt: skip


# In each of these every batch norm is reached from its layers by additions alone, and none follows behind it.
COMPLETE = {
    "conv": lambda: (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), head(80)), images(7)),
    "conv without bias": lambda: (
        nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), head(80)), images(7)
    ),
    "norm without weights": lambda: (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.ReLU(), head(80)), images(7)
    ),
    "stride": lambda: (
        nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), head(48)), images(7)
    ),
    "groups": lambda: (
        nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), nn.ReLU(), head(120)), images(7, c=4)
    ),
    "depthwise": lambda: (
        nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), nn.ReLU(), head(80)), images(7, c=4)
    ),
    "more weights than pixels": lambda: (
        nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), head(144)), images(7, 16, 2, 3)
    ),
    "groups, more weights than pixels": lambda: (
        nn.Sequential(nn.Conv2d(16, 24, 3, padding=1, groups=2), nn.BatchNorm2d(24), nn.ReLU(), head(144)),
        images(7, 16, 2, 3),
    ),
    "conv1d": lambda: (
        nn.Sequential(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), head(24)), torch.randn(7, 4, 6).double()
    ),
    "conv3d": lambda: (
        nn.Sequential(nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3), nn.ReLU(), head(24)), torch.randn(7, 2, 3, 3, 3).double()
    ),
    "linear": lambda: (nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)), rows(7)),
    "linear without bias": lambda: (
        nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)), rows(7)
    ),
    "pre-activation": lambda: (pre_activation(), images(7)),
    "two readers": lambda: (two_readers(), images(7)),
    "frames": lambda: (siamese(), images(7)),
}  # fmt: skip
DEEP = {
    "transposed": lambda: (
        nn.Sequential(nn.ConvTranspose2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), head(196)), images(7, 3, 3, 3)
    ),
    "conv after conv": lambda: (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5),
                      nn.ReLU(), head(30)),
        images(7),
    ),
    "input norm": lambda: (nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.ReLU(), head(80)), images(7)),
    "preact_resnet18": lambda: (
        build("preact_resnet18", width=4, image_size=16, num_classes=3), torch.rand(6, 3, 16, 16).double()
    ),
    "resnet18": lambda: (build("resnet18", width=4, image_size=16, num_classes=3), torch.rand(6, 3, 16, 16).double()),
}  # fmt: skip
NETS = {**COMPLETE, **DEEP}


def fresh(name):
    torch.manual_seed(0)
    model, x = NETS[name]()
    return ready(model), x


def check_fit(norms, true):
    """Factors are fitted so that over the calibrating examples the squares come out right, each relative to its own."""
    torch.testing.assert_close((norms / true).square().mean().item(), 1.0, rtol=1e-6, atol=0)


def start(model, x):
    losses, params = cross_entropy(model, x), list(model.parameters())
    return losses, params, engine.prepare(losses, params)


@pytest.mark.parametrize("name", NETS)
def test_statistics_held_constant(name):
    model, x = fresh(name)
    losses, params, found = start(model, x)
    total, _ = found.squares()
    twin = cross_entropy(frozen(model), x)
    torch.testing.assert_close(twin, losses, rtol=1e-10, atol=0)
    torch.testing.assert_close(total.sum(0).sqrt(), norms_of(twin, params), rtol=1e-10, atol=0)
    losses.sum().backward()  # the graph is kept, and no hook on it


def sketched(found, steps=2):
    """Squares under constant statistics, and what corrects them, along as many directions as `projection.RANK`."""
    bases = projection.Bases()
    for _ in range(steps):
        bases = found.refine(bases).orthonormal()
    sketches = engine.Sketches(bases, features={})
    squares, _ = found.squares(sketches=sketches)
    return squares, sketches


@pytest.fixture
def all_directions(monkeypatch):
    """Every direction of a layer's input is kept, so that nothing is left out."""
    monkeypatch.setattr(projection, "RANK", 10**6)


@pytest.mark.parametrize("name", COMPLETE)
def test_the_correction_is_exact_where_it_is_complete(name, all_directions):
    model, x = fresh(name)
    losses, params, found = start(model, x)
    squares, sketches = sketched(found)
    total = regression.corrected({}, squares, sketches.layers)
    groups = [[params[k] for k in group.leaves] for group in found.usage.groups]
    exact = exact_squares(losses, groups, range(len(x)))
    scale = exact.sum(0)
    assert ((total - exact).abs() <= SQUARES_ROUNDING * scale).all()
    raw, _ = found.squares()
    assert ((raw - exact).abs() > 1e-4 * scale).any()  # there is something to correct


@pytest.mark.parametrize("name", [name for name in NETS if name not in ("transposed", "input norm")])
def test_the_statistics_pass_is_exact_along_its_direction(name, all_directions, monkeypatch):
    """sum_i v_i g_i of every layer, for the leading left singular vector v of the statistics' derivatives."""
    monkeypatch.setattr(lowrank, "MAX_RANK", 1)
    model, x = fresh(name)
    losses, _, found = start(model, x)
    _, sketches = sketched(found)
    v = lowrank._directions(found.frozen, sketches, 1)[:, 0]
    lowrank.add_statistics(found, sketches)
    weights = {row: found.usage.groups[row].weights[0] for row in sketches.layers}
    exact = torch.autograd.grad(losses, [found.edge(k) for k in weights.values()], v)
    for layer, g in zip(sketches.layers.values(), exact, strict=True):
        torch.testing.assert_close(torch.tensordot(v, layer.own + layer.push, 1), layer.along(g[None])[0])


def test_parts_of_a_batch_stand_for_the_whole():
    """The field of each part is that of a batch norm's derivatives with means over the part's images."""
    torch.manual_seed(0)
    layer, x = nn.BatchNorm2d(4).double(), torch.randn(6, 4, 3, 2).double().requires_grad_()
    nn.init.normal_(layer.weight)
    losses = layer(x).square().sum((1, 2, 3))
    (norm,) = engine.prepare(losses, layer).frozen
    first, second, g = torch.randn(2, 4).double(), torch.randn(2, 4).double(), torch.randn_like(x)
    part = torch.tensor([0, 1, 1, 0, 1, 1])
    with torch.no_grad():
        found = lowrank.StatisticsField(norm, first, second, part).input_gradient(g)
    xhat = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), unbiased=False, keepdim=True) + layer.eps).sqrt()
    scale = norm.scale().view(1, 4, 1, 1)
    for k in range(2):
        mine = part == k
        mean, slope = (t[mine].mean((0, 2, 3), keepdim=True) for t in (g, g * xhat))
        own = (first[k].view(1, 4, 1, 1) + xhat[mine] * second[k].view(1, 4, 1, 1)) / (mine.sum() * 6)
        torch.testing.assert_close(found[mine], scale * (g[mine] - mean - xhat[mine] * slope) - own)


def test_the_statistics_pass_brings_norms_nearer(all_directions):
    model, x = fresh("preact_resnet18")
    losses, params, found = start(model, torch.cat([x, x.flip(2), x.flip(3), x.roll(3, 2)]))
    true, errors = norms_of(losses, params), []
    for add in (False, True):
        squares, sketches = sketched(found)
        if add:
            lowrank.add_statistics(found, sketches)
        total = regression.corrected({}, squares, sketches.layers).sum(0)
        errors.append((total.sqrt() / true - 1).square().mean())
    assert errors[1] < 0.85 * errors[0]


def test_norms_of_a_call():
    model, x = fresh("resnet18")
    params = list(model.parameters())
    losses = cross_entropy(model, x)
    true = norms_of(losses, params)
    torch.testing.assert_close(per_example_grad_norms(losses, params, norms="exact"), true, rtol=1e-10, atol=0)
    for norms in ("auto", "corrected", "lowrank"):
        found = per_example_grad_norms(losses, params, norms=norms)
        assert found.dtype == torch.float64
        # All 6 examples calibrate.
        assert (found / true - 1).abs().max() < 0.6
        check_fit(found, true)


@pytest.mark.parametrize("name", ["cnn4", "vgg8"])
@pytest.mark.parametrize("norms", ["corrected", "lowrank"])
def test_calibrated_norms_correlate_with_exact_ones(name, norms):
    torch.manual_seed(0)
    model = ready(build(name, width=4, image_size=16, num_classes=3))
    losses, params = cross_entropy(model, torch.rand(24, 3, 16, 16).double()), list(model.parameters())
    true, found = norms_of(losses, params), per_example_grad_norms(losses, params, norms=norms)
    assert torch.corrcoef(torch.stack([true, found]))[0, 1] > 0.5
    assert (found / true - 1).abs().median() < 0.25


@pytest.mark.parametrize("training", [True, False])
def test_examples_depend_on_statistics_that_are_not_tracked_in_both_modes(training, all_directions):
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(4, track_running_stats=False)
    model = ready(nn.Sequential(nn.Conv2d(3, 4, 3), layer, nn.ReLU(), head(80))).train(training)
    losses, params = cross_entropy(model, images(7)), list(model.parameters())
    assert len(engine.prepare(losses, params).frozen) == 1
    norms = per_example_grad_norms(losses, params, norms="exact")
    torch.testing.assert_close(norms, norms_of(losses, params), rtol=1e-10, atol=0)
    norms = per_example_grad_norms(losses, params, norms="corrected")
    torch.testing.assert_close(norms, norms_of(losses, params), rtol=1e-8, atol=0)


def test_eval_mode_after_training_mode():
    """The two modes run nodes of the same names."""
    model, x = fresh("resnet18")
    params = list(model.parameters())
    for training in (True, False, True, False):
        losses = cross_entropy(model.train(training), x)
        assert bool(engine.prepare(losses, params).frozen) == training
        if not training:
            norms = per_example_grad_norms(losses, params)
            torch.testing.assert_close(norms, norms_of(losses, params), rtol=1e-10, atol=0)


@pytest.mark.parametrize("track", [True, False])
def test_examples_are_independent_under_instance_norm(track):
    torch.manual_seed(0)
    norm = nn.InstanceNorm2d(4, affine=True, track_running_stats=track)
    model = ready(nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), head(80)))
    losses, params = cross_entropy(model, images(7)), list(model.parameters())
    assert not engine.prepare(losses, params).frozen
    torch.testing.assert_close(per_example_grad_norms(losses, params), norms_of(losses, params), rtol=1e-10, atol=0)


def test_one_example():
    model, x = fresh("conv")
    losses, params = cross_entropy(model, x[:1]), list(model.parameters())
    torch.testing.assert_close(per_example_grad_norms(losses, params), norms_of(losses, params), rtol=1e-10, atol=0)


class TestZeros:
    """A norm layer or a head that starts at zero, as in the residual branches of many training recipes."""

    def zeroed(self):
        torch.manual_seed(0)
        model = ready(
            ToyModel(
                lambda m, x: (lambda z: m.h(torch.relu(z + m.n(m.a(z))).mean((2, 3))))(torch.relu(m.o(m.b(x)))),
                a=nn.Conv2d(4, 4, 3, padding=1),
                n=nn.BatchNorm2d(4),
                b=nn.Conv2d(3, 4, 3),
                o=nn.BatchNorm2d(4),
                h=nn.Linear(4, 3),
            )
        )
        nn.init.zeros_(model.n.weight)
        return model, images(7)

    @pytest.mark.parametrize("norms", ["corrected", "lowrank"])
    def test_every_kind_of_norms(self, norms):
        model, x = self.zeroed()
        params = list(model.parameters())
        for gamma in (0.0, 1.0, 0.0):
            nn.init.constant_(model.n.weight, gamma)
            losses = cross_entropy(model, x)
            found, true = per_example_grad_norms(losses, params, norms=norms), norms_of(losses, params)
            check_fit(found, true)

    @pytest.mark.parametrize("norms", ["corrected", "lowrank"])
    def test_factors_of_parameters_that_come_to_life(self, norms):
        """Their factor was never fitted; the norms are calibrated all the same."""
        model, x = self.zeroed()
        estimator, params = NormEstimator(norms), list(model.parameters())
        for gamma in (0.0, 1.0):
            nn.init.constant_(model.n.weight, gamma)
            losses = cross_entropy(model, x)
            found, true = estimator.norms(losses, params, estimator.prepare(losses, params)), norms_of(losses, params)
            assert (found / true - 1).abs().median() < 0.1

    def test_frozen_squares(self):
        model, x = self.zeroed()
        params = list(model.parameters())
        for gamma in (0.0, 1.0, 0.0, 1.0):
            nn.init.constant_(model.n.weight, gamma)
            total, _ = engine.prepare(cross_entropy(model, x), params).squares()
            true = norms_of(cross_entropy(frozen(model), x), params)
            torch.testing.assert_close(total.sum(0).sqrt(), true, rtol=1e-10, atol=0)


def batches(model, number, n=9):
    for seed in range(number):
        generator = torch.Generator().manual_seed(seed)
        yield cross_entropy(model, torch.randn(n, 3, 7, 6, generator=generator, dtype=torch.float64))


def run(estimator, losses, params):
    return estimator.norms(losses, params, estimator.prepare(losses, params))


def counted(monkeypatch):
    """The numbers of examples of which exact derivatives are taken."""

    calls = []

    def count(losses, targets, examples, *rest):
        calls.append(len(examples))
        return exact_gradients(losses, targets, examples, *rest)

    monkeypatch.setattr(norm_estimator, "exact_gradients", count)
    return calls


class TestEstimator:
    @pytest.mark.parametrize("kind", ["corrected", "lowrank"])
    def test_calibrating_examples_come_out_right_on_average(self, kind):
        model, x = fresh("conv after conv")
        losses, params = cross_entropy(model, x), list(model.parameters())
        estimator = NormEstimator(kind, examples=len(x))
        found = run(estimator, losses, params)
        check_fit(found, norms_of(losses, params))

    @pytest.mark.parametrize(("interval", "examples"), [(3, 4), (7, 20), (1, 2)])
    def test_interval_and_number_of_examples(self, interval, examples, monkeypatch):
        """At every interval-th call, and at some in between while the model is new."""
        calls = counted(monkeypatch)
        model, _ = fresh("conv after conv")
        estimator, params, due = (
            NormEstimator("corrected", max_refit_interval=interval, examples=examples),
            list(model.parameters()),
            [],
        )
        for k, losses in enumerate(batches(model, 3 * interval)):
            before = len(calls)
            run(estimator, losses, params)
            due += [k] * (len(calls) - before)
        assert set(calls) == {min(examples, 9)}
        assert len(set(due)) == len(due)
        assert {0, interval, 2 * interval} <= set(due)
        assert [k for k in due if k > interval] == [k for k in due if k > interval and k % interval == 0]

    @pytest.mark.parametrize("kind", ["corrected", "lowrank"])
    def test_every_eighth_call_after_a_fit_updates_it_by_one_example(self, kind, monkeypatch):
        calls = counted(monkeypatch)
        model, _ = fresh("conv after conv")
        params, estimator, ranks = list(model.parameters()), NormEstimator(kind, max_refit_interval=32), set()
        for losses in batches(model, 32 + 28):  # fits at 0, 1, 3, 7, 15 and 31
            before, made = copy.deepcopy(estimator), len(calls)
            norms = run(estimator, losses, params)
            taken = calls[made:]
            if before.due:
                assert taken == [8]
            elif before.steps_since_fit % 8:
                assert taken == []
                assert estimator.fit_errors is None
            else:
                assert taken == [1]
                before.steps_since_fit += 1  # updates nothing
                estimated, exact = run(before, losses, params), norms_of(losses, params)
                found = (estimated / exact - 1).abs()
                example = (found - estimator.fit_errors).abs().argmin()
                torch.testing.assert_close(found[example], estimator.fit_errors[0], rtol=1e-6, atol=1e-9)
                assert not norms.equal(estimated)
                assert estimator.running_error != before.running_error
                ranks.add(int(estimated.argsort().argsort()[example]))
        assert len(ranks) >= 3  # small norms and large ones

    @pytest.mark.parametrize("kind", ["corrected", "lowrank"])
    def test_updates_mend_a_fit_that_has_become_wrong(self, kind, monkeypatch):
        errors = {}
        for interval in (norm_estimator.UPDATE_INTERVAL, 10**9):
            monkeypatch.setattr(norm_estimator, "UPDATE_INTERVAL", interval)
            model, _ = fresh("conv after conv")
            params, estimator = list(model.parameters()), NormEstimator(kind)
            for losses in batches(model, 8):
                run(estimator, losses, params)
            of_exact = torch.tensor([1.44, 1, 1, 1, 1, 1, 1.44, 1.44]).double()[:, None]  # a, xa and ta: norms * 1.2
            estimator._fit = dataclasses.replace(estimator._fit, moments=estimator._fit.moments * of_exact)
            estimator.refit_interval = 10**9
            found = [
                (run(estimator, losses, params) / norms_of(losses, params) - 1).abs().mean()
                for losses in batches(model, 130)
            ]
            errors[interval] = torch.stack(found[-8:]).mean()
        assert errors[10**9] > 0.15
        assert errors[8] < 0.05

    def test_fits_and_updates_stay_in_place(self):
        """All that a plain call reads, from the first fit on."""
        model, _ = fresh("conv after conv")
        params, estimator, first = list(model.parameters()), NormEstimator("corrected"), None
        for losses in batches(model, 26):  # fits at 0, 1, 3, 7 and 15, and an update at 23
            before = estimator.memory
            run(estimator, losses, params)
            assert (estimator.memory is before) == (first is not None)
            tensors = _tensors(estimator._fit, estimator._bases)
            first = first or {name: (t.data_ptr(), t.clone()) for name, t in tensors.items()}
            assert {name: t.data_ptr() for name, t in tensors.items()} == {name: at for name, (at, _) in first.items()}
        assert not any(t.equal(first[name][1]) for name, t in tensors.items())

    def test_what_changes_the_structure_takes_other_memory(self):
        model, x = fresh("groups")
        params, estimator = list(model.parameters()), NormEstimator("corrected", max_refit_interval=1)

        def takes_other_memory(change):
            before = estimator.memory
            change()
            return estimator.memory is not before

        def fit(chosen=params):
            run(estimator, cross_entropy(model, x), chosen)

        assert takes_other_memory(fit)
        assert not takes_other_memory(fit)
        assert takes_other_memory(lambda: fit(params[:2]))  # other parameters
        assert takes_other_memory(estimator.forget)
        assert takes_other_memory(fit)
        assert takes_other_memory(lambda: estimator.load_state_dict(estimator.state_dict()))
        assert copy.deepcopy(estimator).memory is not estimator.memory
        with pytest.MonkeyPatch.context() as patch:  # the last fit is taken, where bases of groups turn apart
            patch.setattr(regression, "held_out_errors", lambda *args: torch.full((8,), torch.inf, dtype=torch.float64))
            assert not takes_other_memory(fit)
        (w,) = estimator._fit.maps.values()
        assert w.equal(torch.eye(8).double().repeat(2, 1))  # it starts anew
        assert not takes_other_memory(fit)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(estimator, "_refined", lambda found: projection.Bases())
            assert takes_other_memory(fit)  # the layer has no gradient in this batch
        assert estimator._fit.maps == estimator._bases == {}

    def test_states_are_copies(self):
        model, _ = fresh("conv after conv")
        params, estimators = list(model.parameters()), [NormEstimator("corrected", max_refit_interval=1)]
        for losses in batches(model, 2):
            run(estimators[0], losses, params)
        state = estimators[0].state_dict()
        before = copy.deepcopy(state)
        for _ in range(2):
            estimators.append(NormEstimator("corrected", max_refit_interval=1))
            estimators[-1].load_state_dict(state)
        for estimator in estimators:
            run(estimator, next(batches(model, 1)), params)
        assert str(state) == str(before)
        assert str(estimators[1].state_dict()) == str(estimators[2].state_dict()) == str(estimators[0].state_dict())
        assert str(estimators[0].state_dict()) != str(state)

    def test_plain_calls(self):
        model, _ = fresh("conv after conv")
        params = list(model.parameters())
        for kind in ("corrected", "lowrank", "exact"):
            estimator, plain = NormEstimator(kind), ""
            for losses in batches(model, 26):
                plain += ".p"[estimator.is_plain]
                run(estimator, losses, params)
            expected = {"corrected": "p.p.ppp.ppppppp.ppppppp.pp", "lowrank": "p" + 25 * ".", "exact": 26 * "."}
            assert plain == expected[kind]  # the first call looks at a new graph
        model.eval()
        estimator = NormEstimator("corrected")
        for losses in batches(model, 3):
            run(estimator, losses, params)
            assert estimator.is_plain
            estimator.count_replay()
        assert estimator.steps_since_fit == 0  # examples are independent

    def test_a_batch_with_nan_updates_no_fit(self):
        model, x = fresh("conv")
        estimator, params = NormEstimator("corrected"), list(model.parameters())
        run(estimator, cross_entropy(model, x), params)
        estimator.refit_interval, estimator.steps_since_fit = 100, norm_estimator.UPDATE_INTERVAL
        before = copy.deepcopy(estimator.state_dict())
        x_inf = x.clone()
        x_inf[2] = torch.inf
        losses = model(x_inf).logsumexp(1).nan_to_num(1.0, 1.0, 1.0)
        assert not run(estimator, losses, params).isfinite().all()
        after = estimator.state_dict()
        assert after["fit"]["moments"].equal(before["fit"]["moments"])
        assert after["running_error"] == before["running_error"]
        assert estimator.fit_errors is None

    def test_nothing_is_calibrated_where_examples_are_independent(self, monkeypatch):
        calls = counted(monkeypatch)
        model, x = fresh("conv")
        losses = cross_entropy(model.eval(), x)
        norms = run(NormEstimator("corrected"), losses, list(model.parameters()))
        torch.testing.assert_close(norms, norms_of(losses, model.parameters()), rtol=1e-10, atol=0)
        assert calls == []

    @pytest.mark.parametrize("kind", ["corrected", "lowrank"])
    def test_resuming_from_a_state_changes_nothing(self, kind):
        model, _ = fresh("conv after conv")
        params = list(model.parameters())
        first = NormEstimator(kind, max_refit_interval=3, examples=4)
        second = NormEstimator(kind, max_refit_interval=3, examples=4)
        for k, losses in enumerate(batches(model, 8)):
            norms = run(first, losses, params)
            if k == 4:
                memory = io.BytesIO()
                torch.save(first.state_dict(), memory)
                memory.seek(0)
                plain = tree_map(
                    lambda t: torch.tensor(t.tolist(), dtype=t.dtype) if torch.is_tensor(t) else t, torch.load(memory)
                )  # as from text: no strides are kept
                second.load_state_dict(plain)
            if k > 4:
                assert run(second, losses, params).equal(norms)

    @pytest.mark.parametrize("kind", ["corrected", "lowrank"])
    def test_errors_of_a_fit_are_those_of_the_one_before(self, kind, all_directions):
        model, _ = fresh("conv after conv")
        params = list(model.parameters())
        estimator = NormEstimator(kind, max_refit_interval=3, examples=9)  # all of a batch
        for k, losses in enumerate(batches(model, 8)):
            before = copy.deepcopy(estimator)
            before.refit_interval = 10**9  # fits no more
            run(estimator, losses, params)
            if k == 0:
                assert estimator.fit_errors is None  # nothing was there before it
            elif before.steps_since_fit < estimator.steps_since_fit:
                assert estimator.fit_errors is None
            else:
                expected = (run(before, losses, params) / norms_of(losses, params) - 1).abs()
                found = estimator.fit_errors
                torch.testing.assert_close(found.sort().values, expected.sort().values, rtol=1e-6, atol=1e-9)
                assert found.max() > 1e-4
        estimator.forget()
        assert estimator.fit_errors is None

    def test_errors_of_a_fit_leave_out_examples_without_a_gradient(self):
        model, _ = fresh("conv after conv")
        params = list(model.parameters())
        estimator = NormEstimator("corrected", max_refit_interval=1, examples=9)
        for losses in batches(model, 2):
            run(estimator, losses * (torch.arange(len(losses)) > 1), params)
        assert estimator.fit_errors.shape == (7,)
        assert estimator.fit_errors.isfinite().all()

    def test_errors_of_fits_come_with_the_weights(self):
        model, _ = fresh("conv after conv")
        estimator, found = NormEstimator("corrected", max_refit_interval=2, examples=4), []
        for losses in batches(model, 4):
            used = backward_by_weights(losses, model.parameters(), lambda norms, _: norms, estimator)
            found.append(used.fit_errors)
        assert [errors is None for errors in found[:2]] == [True, False]
        assert all(errors is None or errors.shape == (4,) for errors in found)
        model.eval()  # nothing is estimated any more
        used = backward_by_weights(next(batches(model, 1)), model.parameters(), lambda norms, _: norms, estimator)
        assert used.fit_errors is None

    def test_other_parameters_are_calibrated_anew(self, monkeypatch):
        calls = counted(monkeypatch)
        model, x = fresh("conv after conv")
        estimator, params = NormEstimator("corrected"), list(model.parameters())
        for k, chosen in enumerate((params, params, params[:4], params[:4], params)):
            before, losses = len(calls), cross_entropy(model, x)
            norms = run(estimator, losses, chosen)
            if k in (0, 2, 4):
                assert len(calls) == before + 1
                check_fit(norms, norms_of(losses, chosen))

    def test_forgetting(self, monkeypatch):
        calls = counted(monkeypatch)
        model, x = fresh("conv")
        estimator, params = NormEstimator("corrected"), list(model.parameters())
        for _ in range(2):
            run(estimator, cross_entropy(model, x), params)
            estimator.forget()
        assert len(calls) == 2

    def test_a_batch_with_nan_changes_no_fit(self):
        model, x = fresh("conv")
        estimator, params = NormEstimator("corrected", max_refit_interval=1), list(model.parameters())
        run(estimator, cross_entropy(model, x), params)
        before = copy.deepcopy(estimator.state_dict())
        x_inf = x.clone()
        x_inf[2] = torch.inf
        losses = model(x_inf).logsumexp(1).nan_to_num(1.0, 1.0, 1.0)
        assert not run(estimator, losses, params).isfinite().all()
        after = estimator.state_dict()
        assert after.pop("steps_since_fit") == before.pop("steps_since_fit") + 1
        assert after["fit"]["moments"].equal(before["fit"]["moments"])
        assert all(after["bases"][row].equal(q) for row, q in before["bases"].items())
        assert all(after["fit"]["maps"][row].equal(w) for row, w in before["fit"]["maps"].items())
        assert run(estimator, cross_entropy(model, x), params).isfinite().all()

    def test_last_batch_of_another_size(self):
        model, _ = fresh("conv")
        estimator, params = NormEstimator("corrected"), list(model.parameters())
        for n in (9, 9, 4, 9, 2):
            losses = next(batches(model, 1, n))
            assert run(estimator, losses, params).shape == (n,)

    def test_exact(self):
        model, x = fresh("conv after conv")
        losses, params = cross_entropy(model, x), list(model.parameters())
        assert run(NormEstimator("exact"), losses, params).equal(exact_norms(losses, params))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"norms": "best"}, "norms is 'best'; known: auto, exact, corrected, lowrank"),
            ({"max_refit_interval": 0}, "got 0, 8"),
            ({"examples": 0}, ", 0"),
        ],
    )
    def test_wrong_options(self, options, message):
        with pytest.raises(ConfigError, match=message):
            NormEstimator(**options)


@pytest.mark.parametrize("norms", ["corrected", "lowrank"])
def test_computed_weights_have_a_factor_alone(norms):
    torch.manual_seed(0)
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    model = ready(nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU(), head(80)))
    losses, params = cross_entropy(model, images(7)), list(model.parameters())
    assert sketched(engine.prepare(losses, params))[1].layers == {}
    check_fit(per_example_grad_norms(losses, params, norms=norms), norms_of(losses, params))


@pytest.mark.parametrize("norms", ["corrected", "lowrank"])
@pytest.mark.parametrize("name", ["conv after conv", "stride", "groups", "frames", "resnet18"])
def test_memory_formats(name, norms):
    model, x = fresh(name)
    expected = per_example_grad_norms(cross_entropy(model, x), model, norms=norms)
    model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    found = per_example_grad_norms(cross_entropy(model, x), model, norms=norms)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_float32_and_autocast(dtype):
    model, x = fresh("conv")
    model, x = model.float(), x.float()
    params = list(model.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        losses, twin = cross_entropy(model, x), cross_entropy(frozen(model), x)
    total, _ = engine.prepare(losses, params).squares()
    rtol = 1e-1 if dtype == torch.bfloat16 else 1e-3
    torch.testing.assert_close(total.sum(0).sqrt(), norms_of(twin, params).double(), rtol=rtol, atol=0)


def test_clipping_takes_two_passes():
    """The gradient is exactly that of the reweighted loss, statistics included."""
    model, x = fresh("resnet18")
    params = list(model.parameters())
    used = clipped_backward(cross_entropy(model, x), params, 1.0)
    expected = torch.autograd.grad((cross_entropy(model, x) * used.weights).mean(), params)
    for p, g in zip(params, expected, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-9, atol=1e-12)


def test_a_scaled_input_of_a_norm():
    """A parameter between a layer and its norm: nothing is corrected there, and the calibration still sums up."""
    torch.manual_seed(0)
    model = ready(
        ToyModel(lambda m, x: m.h(torch.relu(m.n(m.a(x) * m.w))), a=nn.Linear(6, 5), w=weight(5), n=nn.BatchNorm1d(5),
            h=nn.Linear(5, 3))
    )  # fmt: skip
    losses, params = cross_entropy(model, rows(7)), list(model.parameters())
    for norms in ("corrected", "lowrank"):
        found = per_example_grad_norms(losses, params, norms=norms)
        check_fit(found, norms_of(losses, params))


def examples(seed, wrong=1.0, m=8):
    """Examples whose exact gradients along Q are wrong * (own + push) in the one layer, and 0 elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    own, push = (torch.randn(m, 5, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    along = wrong * (own + push)
    layer = projection.LayerSketch(own, push, lambda values: values)
    return regression.FitExamples(
        along.square().sum((1, 2))[None], own.square().sum((1, 2))[None], {0: layer}, {0: along}
    )


class TestRegression:
    def alone(self, sums):
        return sums

    def test_a_layer_that_follows_a_map(self):
        fitted = regression.fit(examples(0, 0.5), None, 0.0, self.alone)
        assert regression.norm_errors(fitted, examples(1, 0.5)).max() < 0.02  # the ridge pulls toward 1
        assert regression.norm_errors(regression.fit(examples(0), None, 0.0, self.alone), examples(1)).max() < 1e-9

    def test_few_examples_stay_near_the_last_fit(self):
        """One example names fewer numbers than a map has: the others are those of the last fit."""
        last = regression.fit(examples(0, 0.5, 64), None, 0.0, self.alone)
        toward = regression.fit(examples(1, 0.5, 1), last, 0.5, self.alone)
        anew = regression.fit(examples(1, 0.5, 1), None, 0.0, self.alone)
        held = examples(2, 0.5, 32)
        errors = [regression.norm_errors(fitted, held).mean() for fitted in (last, toward, anew)]
        assert errors[1] < 0.02
        assert errors[2] > 5 * errors[1]

    def test_sums_add_up_over_fits(self):
        parts = [examples(seed, 0.7) for seed in range(2)]
        first = regression.fit(parts[0], None, 0.0, self.alone)
        both = regression.fit(parts[1], first, 1.0, self.alone)
        expected = sum(regression.fit(part, None, 0.0, self.alone).products[0] for part in parts)
        torch.testing.assert_close(both.products[0], expected)

    def test_a_fit_in_turned_bases(self):
        fitted = regression.fit(examples(0, 0.5), None, 0.0, self.alone)
        q = torch.linalg.qr(torch.randn(3, 3).double()).Q
        bases = projection.Bases({0: torch.eye(3).double()[None]}), projection.Bases({0: q[None]})
        held = examples(1, 0.5)
        turned = projection.LayerSketch(held.sketches[0].own @ q, held.sketches[0].push @ q, lambda values: values)
        torch.testing.assert_close(
            fitted.rotated(*bases).squares(held.squares, {0: turned}), fitted.squares(held.squares, held.sketches)
        )

    def test_a_fit_that_is_worse_on_its_own_examples_is_not_taken(self, monkeypatch):
        model, x = fresh("conv after conv")
        params, estimator = list(model.parameters()), NormEstimator("corrected", max_refit_interval=1)
        run(estimator, cross_entropy(model, x), params)
        before = copy.deepcopy(estimator._fit)
        fits = []

        def spoiled(*args):
            fits.append(real(*args))
            return regression.Fit({row: 3 * w for row, w in fits[-1].maps.items()}, *list(vars(fits[-1]).values())[1:])

        real = regression.fit
        monkeypatch.setattr(regression, "fit", spoiled)
        run(estimator, cross_entropy(model, x), params)
        assert len(fits) == 2  # to two halves, and then no further
        assert estimator._fit.moments.equal(before.moments)
        assert estimator.fit_error is not None
        monkeypatch.setattr(regression, "fit", real)
        for losses in batches(model, 6):
            run(estimator, losses, params)
        assert not estimator._fit.moments.equal(before.moments)


def _fit_with_others(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(80, 3)).double()
    x, params = images() + rank, list(model.parameters())
    estimator = NormEstimator("corrected", examples=2)
    run(estimator, cross_entropy(model, x), params)
    alone = per_example_grad_norms(cross_entropy(model, x), params)  # of this process alone
    torch.distributed.destroy_process_group()
    torch.save((estimator.state_dict(), alone), f"{folder}/fit{rank}")


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_processes_share_a_fit(tmp_path):
    torch.multiprocessing.spawn(_fit_with_others, (str(tmp_path),), nprocs=2)
    (first, one), (second, other) = (torch.load(tmp_path / f"fit{rank}", weights_only=False) for rank in range(2))
    assert first["bases"].keys() == second["bases"].keys()
    assert all(first["bases"][row].equal(second["bases"][row]) for row in first["bases"])
    assert first["fit"]["moments"].equal(second["fit"]["moments"])
    assert all(first["fit"]["maps"][row].equal(second["fit"]["maps"][row]) for row in first["bases"])
    assert first["bases"]
    assert not one.equal(other)


class SyncBatchNorm(torch.autograd.Function):
    """A node of the name of torch's, which runs on GPUs alone."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g


@pytest.mark.parametrize("norms", ["auto", "exact", "corrected", "lowrank"])
def test_statistics_of_all_processes_are_refused(norms):
    model = ToyModel(lambda m, x: m.h(SyncBatchNorm.apply(m.a(x))), a=nn.Linear(6, 5), h=nn.Linear(5, 3)).double()
    for call in (per_example_grad_norms, lambda *args, **options: clipped_backward(*args, 1.0, **options)):
        with pytest.raises(UnsupportedOperationError, match="leave its conversion out") as refused:
            call(cross_entropy(model, rows(7)), model, norms=norms)
        assert "exact" not in str(refused.value)
    assert all(p.grad is None for p in model.parameters())


def _step_with_own_statistics(rank, folder):
    """Each process has its own batch, statistics and norms; the gradient is the mean of the clipped ones."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    errors = {}
    for norms in ("exact", "corrected", "lowrank"):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Tanh(),
            nn.Flatten(), nn.Linear(24, 3),
        ).double()  # fmt: skip
        x, twin = images(8) + rank, copy.deepcopy(model)
        wrapped = nn.parallel.DistributedDataParallel(model)
        optimizer = ENGM(model.parameters(), alpha=0.5, norms=norms)
        for _ in range(2):
            optimizer.zero_grad()
            used = optimizer.backward(cross_entropy(wrapped, x))
        losses, params = cross_entropy(twin, x), list(twin.parameters())
        exact = exact_norms(losses, params)
        expected = torch.autograd.grad((losses * used.weights).mean(), params)
        gradient = torch.cat([g.flatten() for g in expected])
        torch.distributed.all_reduce(gradient)
        found = torch.cat([p.grad.flatten() for p in model.parameters()])
        errors[norms] = (found - gradient / 2).abs().max().item(), (used.norms / exact - 1).abs().max().item()
    try:  # torch itself has no statistics of all processes on CPUs, so that gloo can run none
        nn.SyncBatchNorm(3)(torch.randn(4, 3, 2, 2))
        refused = ""
    except ValueError as error:
        refused = str(error)
    torch.distributed.destroy_process_group()
    torch.save((errors, refused), f"{folder}/errors{rank}")


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_statistics_of_each_process(tmp_path):
    torch.multiprocessing.spawn(_step_with_own_statistics, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        errors, refused = torch.load(tmp_path / f"errors{rank}")
        assert "SyncBatchNorm" in refused
        assert all(gradient < 1e-12 for gradient, _ in errors.values())
        assert errors["exact"][1] < 1e-10
        assert max(errors["corrected"][1], errors["lowrank"][1]) < 0.15
