"""Gradients of losses that are weighted by their gradient norms: against the explicit sum, one pass and two."""

import contextlib
import copy
import math

import pytest
import torch
import torch.distributed as dist
from helpers.toy_models import (
    TOY_MODELS,
    ToyModel,
    cross_entropy,
    filled,
    fresh,
    gradients,
    images,
    mart,
    norms_of,
    rows,
    trades,
    weight,
)
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pyengm import per_example_grad_norms, weighted_backward
from pyengm.errors import ConfigError, NonFiniteError
from pyengm.optim import ENGM
from pyengm.pergrad import NormEstimator, backward, backward_by_weights, clipped_backward

ROUNDING = 1e-10  # of the longest gradient, float64


@pytest.fixture(params=["one pass", "two passes"])
def passes(request, monkeypatch):
    if request.param == "two passes":
        monkeypatch.setattr(backward, "_one_pass", lambda found: False)
    return request.param


def expected(losses, params, alpha=None):
    """Gradients (n, P), an alpha that clips about half of them, weights (n,) and the mean of the weighted gradients."""
    found = gradients(losses, params)
    norms = found.norm(dim=1)
    alpha = norms.sort().values[len(norms) // 2].item() * 0.9 if alpha is None else alpha
    weights = (alpha / norms).clamp(max=1)
    return found, alpha, weights, weights @ found / len(found)


def check_clipped(loss, model, x):
    params, twin = list(model.parameters()), copy.deepcopy(model)  # a forward pass may move the state of a model
    found, alpha, weights, mean = expected(loss(twin, x), twin.parameters())
    used = clipped_backward(loss(model, x), params, alpha)
    torch.testing.assert_close(used.norms, found.norm(dim=1), rtol=1e-10, atol=0)
    torch.testing.assert_close(used.weights, weights, rtol=1e-10, atol=0)
    assert (filled(params) - mean).norm() <= ROUNDING * found.norm(dim=1).max()
    return used


@pytest.mark.parametrize("name", TOY_MODELS)
def test_clipped(name, passes):
    model, loss, x = fresh(name)
    check_clipped(loss, model, x)
    model.zero_grad()
    check_clipped(loss, model, x)


@pytest.mark.parametrize("loss", [trades, mart])
@pytest.mark.parametrize(
    "name", ["class token", "encoder layer", "layer twice", "tied to its transpose", "weight norm"]
)
def test_losses_of_two_forward_passes(name, loss, passes):
    model, _, x = fresh(name)
    check_clipped(loss, model, x)


def test_gradients_that_are_there_are_added_to(passes):
    model, loss, x = fresh("residual, in place")
    params = list(model.parameters())
    _, alpha, _, mean = expected(loss(model, x), params)
    loss(model, x).sum().backward()
    before = filled(params)
    clipped_backward(loss(model, x), params, alpha)
    torch.testing.assert_close(filled(params), before + mean, rtol=1e-10, atol=1e-13)


def test_hooks_on_parameters_run(passes):
    """Those that run after a gradient is added, once; as in any backward pass."""
    model, loss, x = fresh("residual, in place")
    params = list(model.parameters())
    _, alpha, _, mean = expected(loss(model, x), params)
    seen = []
    model.conv.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    model.stem.weight.register_hook(lambda g: seen.append(g.clone()))
    clipped_backward(loss(model, x), params, alpha)
    torch.testing.assert_close(filled(params), mean, rtol=1e-10, atol=1e-13)
    assert any(g.equal(model.conv.weight.grad) for g in seen if g.shape == model.conv.weight.shape)
    assert any(g.equal(model.stem.weight.grad) for g in seen if g.shape == model.stem.weight.shape)


def test_only_the_given_parameters_are_touched(passes):
    model, loss, x = fresh("residual, in place")
    x.requires_grad_()
    some = [model.conv.weight, model.h.bias]
    _, alpha, _, mean = expected(loss(model, x), some)
    clipped_backward(loss(model, x), some, alpha)
    torch.testing.assert_close(filled(some), mean, rtol=1e-10, atol=1e-13)
    assert x.grad is None
    assert all(p.grad is None for p in model.parameters() if all(p is not q for q in some))


@pytest.mark.parametrize("name", ["residual, in place", "class token", "ragged", "bilinear twice", "weight norm"])
def test_a_parameter_given_twice(name, passes):
    model, loss, x = fresh(name)
    params = list(model.parameters())
    _, alpha, _, mean = expected(loss(model, x), params)
    clipped_backward(loss(model, x), [*params, *params], alpha)
    torch.testing.assert_close(filled(params), mean, rtol=1e-10, atol=1e-13)


def test_memory_format_and_dtype_of_gradients(passes):
    model, loss, x = fresh("channels last")
    check_clipped(loss, model, x)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3)).bfloat16()
    clipped_backward(cross_entropy(model, rows().bfloat16()), model.parameters(), 0.5)
    assert all(p.grad.dtype == torch.bfloat16 for p in model.parameters())


def test_the_graph_is_freed(passes):
    model, loss, x = fresh("residual, in place")
    losses = loss(model, x)
    clipped_backward(losses, model.parameters(), 1.0)
    with pytest.raises(RuntimeError, match="second time"):
        losses.sum().backward()


def test_weights_of_any_kind(passes):
    model, loss, x = fresh("encoder layer")
    params = list(model.parameters())
    found = gradients(loss(model, x), params)
    used = backward_by_weights(loss(model, x), params, lambda norms, _: norms.argsort().to(norms) - 2, NormEstimator())
    torch.testing.assert_close(filled(params), used.weights.double() @ found / len(x), rtol=1e-9, atol=1e-12)
    assert used.weights.tolist() == (found.norm(dim=1).argsort() - 2).tolist()


def test_micro_batches_add_up_to_the_mean(passes):
    model, loss, x = fresh("residual, in place")
    params = list(model.parameters())
    loss(model, x[:4]).mean().backward()
    whole = filled(params)
    model.zero_grad()
    for part in (x[:2], x[2:4]):
        y = torch.arange(4)[:2] + (0 if part.data_ptr() == x.data_ptr() else 2)
        losses = nn.functional.cross_entropy(model(part), y % 3, reduction="none")
        backward_by_weights(losses, params, lambda norms, _: torch.ones_like(norms), NormEstimator(), accumulate=2)
    torch.testing.assert_close(filled(params), whole, rtol=1e-10, atol=1e-13)
    model.zero_grad()
    clipped_backward(loss(model, x[:4]), params, 1e30)
    torch.testing.assert_close(filled(params), whole, rtol=1e-10, atol=1e-13)


class Overflow(torch.autograd.Function):
    """Multiplies by one; a gradient above 65504 becomes infinite, as in half precision."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return torch.where(g.abs() > 65504, torch.inf * g.sign(), g)


@pytest.mark.parametrize("name", ["residual, in place", "class token", "trades", "ragged", "frames"])
@pytest.mark.parametrize("with_norms", [True, False])
def test_input_gradients(name, with_norms, passes):
    model, loss, x = fresh(name)
    params, x = list(model.parameters()), x.requires_grad_()
    found, alpha, _, mean = expected(loss(model, x), params)
    (gradient,) = torch.autograd.grad(loss(model, x).sum(), x)
    used = backward_by_weights(
        loss(model, x),
        params,
        lambda norms, _: (alpha / norms).clamp(max=1),
        NormEstimator(),
        inputs=x,
        input_norms=with_norms,
    )
    assert (used.input_norms is not None) == with_norms
    if with_norms:
        torch.testing.assert_close(used.input_norms, gradient.flatten(1).norm(dim=1), rtol=1e-10, atol=0)
    torch.testing.assert_close(used.norms, found.norm(dim=1), rtol=1e-10, atol=0)
    assert (filled(params) - mean).norm() <= ROUNDING * found.norm(dim=1).max()
    weighted = used.weights.view(-1, *[1] * (x.dim() - 1)) * gradient / len(x)
    torch.testing.assert_close(x.grad, weighted, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("name", ["residual, in place", "class token", "weight norm", "bilinear twice"])
def test_input_norms_alone(name, passes):
    model, loss, x = fresh(name)
    params, x = list(model.parameters()), x.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(model, x).sum(), x)
    weigh = lambda _, input_norms: 1 / (1 + input_norms)  # noqa: E731
    used = backward_by_weights(loss(model, x), params, weigh, None, inputs=x, input_norms=True)
    torch.testing.assert_close(used.input_norms, gradient.flatten(1).norm(dim=1), rtol=1e-10, atol=0)
    assert used.norms is None
    found = gradients(loss(model, x), params)
    torch.testing.assert_close(filled(params), used.weights @ found / len(x), rtol=1e-9, atol=1e-12)


def test_inputs_that_do_not_fit():
    model, loss, x = fresh("residual, in place")
    with pytest.raises(ValueError, match="require grad"):
        backward_by_weights(loss(model, x), model.parameters(), lambda norms, _: norms, NormEstimator(), inputs=x)
    other = x.clone().requires_grad_()
    with pytest.raises(ValueError, match="do not depend on inputs"):
        backward_by_weights(loss(model, x), model.parameters(), lambda norms, _: norms, NormEstimator(), inputs=other)


class TestGradScaler:
    def step(self, model, x, scaler, alpha):
        opt = ENGM(model.parameters(), lr=0.1, alpha=alpha)
        opt.zero_grad()
        used = opt.backward(cross_entropy(model, x), scaler=scaler)
        scaler.step(opt)
        scaler.update()
        return used

    def test_clipped_and_scaled(self, passes):
        model, loss, x = fresh("residual, in place")
        params = list(model.parameters())
        found, alpha, weights, mean = expected(loss(model, x), params)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        used = backward_by_weights(
            loss(model, x), params, lambda norms, _: (alpha / norms).clamp(max=1), NormEstimator(), scaler=scaler
        )
        torch.testing.assert_close(used.norms, found.norm(dim=1), rtol=1e-10, atol=0)
        torch.testing.assert_close(used.weights, weights, rtol=1e-10, atol=0)
        torch.testing.assert_close(filled(params), 2.0**10 * mean, rtol=1e-10, atol=1e-10)

    def test_overflow_of_one_example_skips_the_step(self, passes):
        torch.manual_seed(0)
        model = ToyModel(lambda m, x: m.h(Overflow.apply(m.a(x))), a=nn.Linear(6, 6), h=nn.Linear(6, 3)).double()
        x = rows() * torch.tensor([1, 1, 1, 1, 1e-6]).double()[:, None]
        before = [p.detach().clone() for p in model.parameters()]
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22)
        used = self.step(model, x, scaler, alpha=0.1)
        assert not used.norms.isfinite().all()
        assert all(p.equal(q) for p, q in zip(model.parameters(), before, strict=True))
        assert scaler.get_scale() == 2.0**21
        for _ in range(20):
            self.step(model, x, scaler, alpha=0.1)
        assert not any(p.equal(q) for p, q in zip(model.parameters(), before, strict=True))

    def test_without_a_scaler_it_is_an_error(self, passes):
        model = ToyModel(lambda m, x: m.h(m.a(x) * m.w), a=nn.Linear(6, 6), h=nn.Linear(6, 3), w=weight(6)).double()
        x = rows()
        per_example_grad_norms(model(x).logsumexp(1).nan_to_num(1.0, 1.0, 1.0), model.parameters())
        x[3] = torch.inf
        losses = model(x).logsumexp(1).nan_to_num(1.0, 1.0, 1.0)
        with pytest.raises(NonFiniteError, match=r"\[3\]"):
            clipped_backward(losses, model.parameters(), 1.0)
        assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", ["residual, in place", "class token", "trades", "mart"])
def test_autocast(name, passes):
    model, loss, x = fresh(name)
    model, x = model.float(), x.float()
    params = list(model.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, again = loss(model, x), loss(model, x)
    found, alpha, _, mean = expected(losses, params)
    used = clipped_backward(again, params, alpha)
    torch.testing.assert_close(used.norms, found.norm(dim=1), rtol=3e-2, atol=0)
    assert all(p.grad.dtype == torch.float32 for p in params if p.grad is not None)
    assert (filled(params) - mean).norm() <= 3e-2 * found.norm(dim=1).max()


def test_one_example(passes):
    model, loss, x = fresh("residual, in place")
    check_clipped(loss, model, x[:1])


def test_batch_norm_in_training_mode_with_exact_norms():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3)).double()
    x = images()
    found, alpha, _, mean = expected(cross_entropy(model, x), list(model.parameters()))
    clipped_backward(cross_entropy(model, x), model.parameters(), alpha, norms="exact")
    assert (filled(model.parameters()) - mean).norm() <= ROUNDING * found.norm(dim=1).max()


@pytest.mark.parametrize("norms", ["auto", "corrected", "lowrank"])
def test_batch_norm_in_training_mode(norms):
    """Only the weights are approximate: the gradient is that of the reweighted loss."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3)).double()
    x, params = images(), list(model.parameters())
    found = gradients(cross_entropy(model, x), params)
    alpha = found.norm(dim=1).median().item()
    used = clipped_backward(cross_entropy(model, x), params, alpha, norms=norms)
    assert (used.weights < 1).any()
    assert (filled(params) - used.weights @ found / len(x)).norm() <= ROUNDING * found.norm(dim=1).max()


def test_unknown_kind_of_norms():
    with pytest.raises(ConfigError, match="norms is 'some'"):
        clipped_backward(weight(3) * 2, [weight(1)], 1.0, norms="some")


@contextlib.contextmanager
def process_group(folder, rank=0, world=1, store="store"):
    dist.init_process_group("gloo", init_method=f"file://{folder}/{store}", rank=rank, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


STYLES = {
    "plain": {},
    "find_unused": {"find_unused_parameters": True},
    "static_graph": {"static_graph": True},
    "bucket_view": {"gradient_as_bucket_view": True},
}


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo")
class TestDistributed:
    @pytest.mark.parametrize("style", STYLES)
    @pytest.mark.parametrize("name", ["residual, in place", "class token", "tied to its transpose", "trades"])
    def test_one_process(self, name, style, tmp_path, passes):
        model, loss, x = fresh(name)
        params = list(model.parameters())
        found, alpha, _, mean = expected(loss(model, x), params)
        with process_group(tmp_path):
            wrapped = DistributedDataParallel(model, **STYLES[style])
            for _ in range(3):  # a static graph is another one from its second pass on
                model.zero_grad()
                losses = loss(wrapped, x)
                norms = per_example_grad_norms(losses, params)
                torch.testing.assert_close(norms, norms_of(loss(model, x), params), rtol=1e-10, atol=0)
                used = clipped_backward(losses, params, alpha)
                torch.testing.assert_close(used.norms, found.norm(dim=1), rtol=1e-10, atol=0)
                assert (filled(params) - mean).norm() <= ROUNDING * found.norm(dim=1).max()

    def test_layers_outside_of_the_wrapped_model(self, tmp_path):
        """A second branch that the sink of the wrapped model does not stand above."""
        torch.manual_seed(0)
        model, branch = nn.Sequential(nn.Linear(6, 6), nn.Tanh()).double(), nn.Linear(6, 3).double()
        head, x = nn.Linear(6, 3).double(), rows()
        params = [*model.parameters(), *branch.parameters(), *head.parameters()]
        with process_group(tmp_path):
            wrapped = DistributedDataParallel(model, find_unused_parameters=True)
            losses = cross_entropy(lambda x: head(wrapped(x)) + branch(x), x)
            norms = per_example_grad_norms(losses, params)
        torch.testing.assert_close(norms, norms_of(cross_entropy(lambda x: head(model(x)) + branch(x), x), params))

    def test_two_processes(self, tmp_path):
        """Gradients are the mean over the processes of their clipped gradients."""
        means = []
        for rank in range(2):
            model, loss, x = fresh("residual, in place")
            means.append(expected(loss(model, x + rank), model.parameters(), alpha=0.5)[3])
        torch.multiprocessing.spawn(_worker, (str(tmp_path),), nprocs=2)
        wrong = []
        for rank in range(2):
            for (style, step), grads in torch.load(tmp_path / f"grads{rank}").items():
                if not torch.allclose(grads, sum(means) / 2, rtol=1e-9, atol=1e-12):
                    wrong.append((rank, style, step))
        assert not wrong, f"gradients that were not reduced (process, style, step): {wrong}"


def _worker(rank, folder):
    torch.set_num_threads(1)
    found = {}
    for style, options in STYLES.items():
        model, loss, x = fresh("residual, in place")
        with process_group(folder, rank, 2, store=style):
            wrapped = DistributedDataParallel(model, **options)
            for step in range(3):
                model.zero_grad()
                clipped_backward(loss(wrapped, x + rank), model.parameters(), 0.5)
                found[style, step] = filled(model.parameters())
    torch.save(found, f"{folder}/grads{rank}")


def test_alpha_without_bound_is_the_mean():
    model, loss, x = fresh("class token")
    loss(model, x).mean().backward()
    whole = filled(model.parameters())
    model.zero_grad()
    clipped_backward(loss(model, x), model.parameters(), math.inf)
    torch.testing.assert_close(filled(model.parameters()), whole, rtol=1e-10, atol=1e-13)


def test_sparse_gradients_stay_sparse():
    table = nn.Embedding(7, 6, sparse=True).double()
    model = ToyModel(lambda m, x: m.h(m.a(x).mean(1)), a=table, h=nn.Linear(6, 3)).double()
    losses = cross_entropy(model, torch.arange(20).view(5, 4) % 7)
    clipped_backward(losses, model.parameters(), 1.0)
    assert table.weight.grad.is_sparse


def automatic(norms):
    """Automatic clipping (Bu et al. 2023)."""
    return 1 / (norms + 0.01)


def per_sample(norms):
    """Per-sample clipping, to the mean norm."""
    return (norms.mean() / norms).clamp(max=1)


def geometry_aware(norms):
    """GAIRAT-like (Zhang et al. 2021, Eq. 6): by the steps kappa of 10 that an attack took, normalised."""
    kappa = torch.arange(len(norms)) % 11
    weights = (1 + torch.tanh(-1 + 5 * (1 - 2 * kappa.double() / 10))) / 2
    return weights / weights.mean()


@pytest.mark.parametrize("weights", [automatic, per_sample, geometry_aware, lambda norms: -norms.square()])
@pytest.mark.parametrize("name", ["encoder layer", "residual, in place"])
def test_public_weights_from_norms(name, weights, passes):
    model, loss, x = fresh(name)
    params = list(model.parameters())
    found = gradients(loss(model, x), params)
    used = weighted_backward(loss(model, x), model, weights)
    chosen = weights(found.norm(dim=1))
    torch.testing.assert_close(used.norms, found.norm(dim=1), rtol=1e-10, atol=0)
    torch.testing.assert_close(used.weights.double(), chosen.double(), rtol=1e-9, atol=0)
    torch.testing.assert_close(filled(params), chosen.double() @ found / len(x), rtol=1e-9, atol=1e-12)


def test_public_weights_under_batch_norm():
    """The gradient is exactly that of the losses with these weights, and an estimator fits once for several calls."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3)).double()
    params, estimator = list(model.parameters()), NormEstimator()
    for k in range(2):
        x, seen = images(7), []
        used = weighted_backward(
            cross_entropy(model, x),
            model,
            lambda norms, seen=seen: seen.append(norms) or automatic(norms),
            norms=estimator,
        )
        losses = cross_entropy(model, x)
        expected_grads = torch.autograd.grad((losses * used.weights).mean(), params)
        for p, g in zip(params, expected_grads, strict=True):
            torch.testing.assert_close(p.grad, g, rtol=1e-9, atol=1e-12)
        assert seen[0].equal(used.norms)
        assert not seen[0].requires_grad
        assert estimator.steps_since_fit == 1 + k * (estimator.refit_interval > 1)
        estimator.refit_interval = 10
        model.zero_grad()


def test_weights_of_another_shape():
    model, loss, x = fresh("encoder layer")
    with pytest.raises(ValueError, match=r"expected weights of shape .*, got \(\)"):
        weighted_backward(loss(model, x), model, lambda norms: norms.sum())
