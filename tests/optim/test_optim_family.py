"""The optimiser family against its formulas, against torch.optim.SGD, and as optimisers of any training loop."""

import copy
import math
import pickle

import pytest
import torch
from helpers.small_problems import cnn4, images_and_labels, losses_of, same_bits, theta
from torch import nn
from torch.nn import functional as F

import pyengm
from pyengm import AENGM, ENGM, FENGM, MGNC, MSGD, NENGM, SNGM, EntropySGD, Muon, PSClipSGD, scale_alpha
from pyengm.errors import ConfigError, NonFiniteError
from pyengm.models import build
from pyengm.optim import OPTIMIZERS
from pyengm.optim.statistics import noise_scale
from pyengm.pergrad import PerExampleStats, exact_norms

SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}


def network(norm="gn", dtype=torch.float32, seed=0):
    return cnn4(norm, dtype, seed)


def batch(n=7, dtype=torch.float32, seed=1):
    x, y = images_and_labels(n, seed, dtype)
    return x.requires_grad_(), y


def step(model, optimizer, x, y, **options):
    optimizer.zero_grad()
    used = optimizer.backward(losses_of(model, x, y), inputs=x, **options)
    optimizer.step()
    return used


def input_gradient(model, x, y):
    return torch.autograd.grad(losses_of(model, x, y).sum(), x)[0]


def gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def rows(model, x, y):
    """The gradients g_i, (n, parameters)."""
    losses = losses_of(model, x, y)
    params = list(model.parameters())
    return torch.stack(
        [torch.cat([g.flatten() for g in torch.autograd.grad(loss, params, retain_graph=True)]) for loss in losses]
    )


@pytest.fixture(params=OPTIMIZERS)
def kind(request):
    return OPTIMIZERS[request.param]


class TestWithoutWeights:
    @pytest.mark.parametrize("kind", [ENGM, AENGM, NENGM, PSClipSGD, MSGD, MGNC])
    @pytest.mark.parametrize("norm", ["gn", "bn"])
    def test_an_infinite_bound_is_torch_sgd(self, kind, norm):
        bound = {"MSGD": {}, "MGNC": {"max_norm": math.inf}}.get(kind.__name__, {"alpha": math.inf})
        huge = {"MSGD": {}, "MGNC": {"max_norm": 1e30}}.get(kind.__name__, {"alpha": 1e30})
        plain, model, close = network(norm), network(norm), network(norm)
        expected = torch.optim.SGD(plain.parameters(), **SGD)
        optimizer, bounded = kind(model.parameters(), **SGD, **bound), kind(close.parameters(), **SGD, **huge)
        for seed in range(4):
            x, y = batch(seed=seed)
            expected.zero_grad()
            F.cross_entropy(plain(x), y).backward()
            expected.step()
            assert step(model, optimizer, x, y) is None  # no norms are computed
            step(close, bounded, x, y)
        assert same_bits(model, plain)
        torch.testing.assert_close(theta(close), theta(plain), rtol=0, atol=1e-6)

    def test_no_inputs_are_needed_then(self):
        for kind in (AENGM, NENGM):
            model = network()
            assert kind(model.parameters(), alpha=math.inf).backward(losses_of(model, *batch())) is None
            assert all(p.grad is not None for p in model.parameters())


class TestMGNC:
    @pytest.mark.parametrize("share", [0.5, 2.0])
    def test_clips_the_whole_gradient_before_weight_decay(self, share):
        model, (x, y) = network(dtype=torch.float64), batch(dtype=torch.float64)
        g = rows(model, x, y).mean(0)
        bound, before = share * g.norm().item(), theta(model)
        optimizer = MGNC(model.parameters(), lr=0.1, weight_decay=0.01, max_norm=bound)
        step(model, optimizer, x, y)
        # torch divides by the norm + 1e-6
        expected = before - 0.1 * (min(1, share) * g + 0.01 * before)
        torch.testing.assert_close(theta(model), expected, rtol=0, atol=1e-6)
        assert optimizer.statistics()["total_norm"] == pytest.approx(g.norm().item(), rel=1e-9)
        assert MGNC(model.parameters()).max_norm == 25


class TestSNGM:
    def test_the_step_has_length_lr_before_momentum(self):
        model = network()
        optimizer = SNGM(model.parameters(), lr=0.3, weight_decay=0.0)
        before = theta(model)
        step(model, optimizer, *batch())
        first = theta(model) - before
        assert first.norm().item() == pytest.approx(0.3, rel=1e-5)
        step(model, optimizer, *batch(seed=2))
        second = theta(model) - before - first - 0.9 * first
        assert second.norm().item() == pytest.approx(0.3, rel=1e-5)

    @pytest.mark.parametrize("maximize", [False, True])
    @pytest.mark.parametrize("inside", [False, True])
    def test_weight_decay(self, inside, maximize):
        model, (x, y) = network(dtype=torch.float64), batch(dtype=torch.float64)
        optimizer = SNGM(model.parameters(), lr=0.1, weight_decay=0.2, decay_inside=inside, maximize=maximize)
        g, before = rows(model, x, y).mean(0), theta(model)
        g = -g if maximize else g
        step(model, optimizer, x, y)
        v = (g + 0.2 * before) / (g + 0.2 * before).norm() if inside else g / g.norm() + 0.2 * before
        torch.testing.assert_close(theta(model), before - 0.1 * v, rtol=0, atol=1e-12)
        assert optimizer.param_groups[0]["weight_decay"] == 0.2

    def test_a_gradient_of_zero_stays_zero(self):
        w = nn.Parameter(torch.ones(3))
        optimizer = SNGM([w], weight_decay=0.0)
        optimizer.backward((w * 0.0).sum()[None])
        optimizer.step()
        assert w.equal(torch.ones(3))


class TestPSClipSGD:
    @pytest.mark.parametrize("norm", ["gn", "bn"])
    @pytest.mark.parametrize("beta", [1.5, 2.0])
    def test_thresholds_grow_along_the_batch(self, norm, beta):
        model, (x, y) = network(norm, torch.float64), batch(dtype=torch.float64)
        g = rows(model, x, y)
        alpha, n = (g.norm(dim=1) / 2).median().item(), len(x)
        optimizer = PSClipSGD(model.parameters(), lr=0.1, weight_decay=0.0, alpha=alpha, beta=beta, norms="exact")
        before = theta(model)
        stats = step(model, optimizer, x, y)
        weights = [min(1.0, alpha * (k + 1) ** (1 / beta) / g[k].norm().item()) for k in range(n)]
        assert 0 < sum(weight < 1 for weight in weights) < n  # else the test shows less
        assert stats.weights.tolist() == pytest.approx(weights, rel=1e-9)
        expected = before - 0.1 * sum(weight * row for weight, row in zip(weights, g, strict=True)) / n
        torch.testing.assert_close(theta(model), expected, rtol=0, atol=1e-10)

    def test_a_step_that_was_left_out_does_not_count(self):
        """A GradScaler that backs off leaves calls behind that no step has used."""
        model, (x, y) = network(), batch()
        optimizer = PSClipSGD(model.parameters(), alpha=0.1)
        first, second = (optimizer.backward(losses_of(model, x, y)).weights for _ in range(2))
        assert first.equal(second)
        halves = [optimizer.backward(losses_of(model, x, y), accumulate=2).weights for _ in range(4)]
        assert halves[0].equal(first)
        assert halves[2].equal(first)
        assert halves[1].equal(halves[3])
        assert (halves[1] > first).any()

    def test_no_growth_is_engm(self):
        grown, model = network(), network()
        optimizers = PSClipSGD(grown.parameters(), alpha=0.5, beta=math.inf), ENGM(model.parameters(), alpha=0.5)
        for seed in range(3):
            step(grown, optimizers[0], *batch(seed=seed))
            step(model, optimizers[1], *batch(seed=seed))
        assert same_bits(grown, model)


class TestFENGM:
    @pytest.mark.parametrize("norm", ["gn", "bn"])
    @pytest.mark.parametrize("alpha", [1.0, 0.3])
    def test_every_contribution_has_norm_alpha(self, norm, alpha):
        model, (x, y) = network(norm, torch.float64), batch(dtype=torch.float64)
        g = rows(model, x, y)
        optimizer = FENGM(model.parameters(), alpha=alpha, norms="exact" if norm == "bn" else "auto")
        used = optimizer.backward(losses_of(model, x, y))
        assert FENGM(model.parameters()).alpha == 1.0
        torch.testing.assert_close(used.weights * g.norm(dim=1), torch.full((7,), alpha, dtype=torch.float64))
        expected = (alpha * g / g.norm(dim=1, keepdim=True)).mean(0)
        torch.testing.assert_close(gradient(model), expected, rtol=0, atol=1e-12)

    def test_a_gradient_of_zero_stays_zero(self):
        w = nn.Parameter(torch.ones(3))
        factors = torch.tensor([0.0, 1e-15, 1.0])
        used = FENGM([w]).backward(F.linear(factors[:, None].expand(3, 3), w[None])[:, 0])
        assert used.weights[0] == 0
        torch.testing.assert_close(w.grad, torch.full((3,), 2 / 3 / math.sqrt(3)))


class TestNENGM:
    @pytest.mark.parametrize("norm", ["gn", "bn"])
    @pytest.mark.parametrize("way", ["inputs", "input_gradient"])
    def test_weights_and_gradient(self, norm, way):
        model, (x, y) = network(norm, torch.float64), batch(dtype=torch.float64)
        g, g_x = rows(model, x, y), input_gradient(model, x, y)
        alpha = g_x.flatten(1).norm(dim=1).median().item()
        optimizer = NENGM(model.parameters(), alpha=alpha)
        given = {"inputs": x} if way == "inputs" else {"input_gradient": g_x}
        used = optimizer.backward(losses_of(model, x, y), **given)
        weights = (alpha / g_x.flatten(1).norm(dim=1)).clamp(max=1)
        torch.testing.assert_close(used.weights, weights, rtol=1e-12, atol=0)
        torch.testing.assert_close(gradient(model), (weights[:, None] * g).mean(0), rtol=0, atol=1e-12)
        assert used.norms is None
        assert (used.weights * used.input_norms).max() <= alpha * (1 + 1e-12)
        assert (x.grad is None) == (way == "input_gradient")
        if way == "inputs":
            torch.testing.assert_close(x.grad, weights.view(-1, 1, 1, 1) * g_x / len(x), rtol=1e-12, atol=0)

    @pytest.mark.parametrize("kind", [NENGM, AENGM])
    def test_bad_inputs(self, kind):
        model, (x, y) = network(), batch()
        optimizer = kind(model.parameters())
        with pytest.raises(ValueError, match=r"backward\(losses, inputs=x_adv\)"):
            optimizer.backward(losses_of(model, x, y))
        with pytest.raises(ValueError, match=r"shape \(7, ...\) that require grad"):
            optimizer.backward(losses_of(model, x, y), inputs=x.detach())
        with pytest.raises(ValueError, match="do not depend on inputs"):
            optimizer.backward(losses_of(model, x, y), inputs=batch()[0])
        with pytest.raises(ValueError, match=r"input_gradient of shape \(7, ...\)"):
            optimizer.backward(losses_of(model, x, y), input_gradient=x[:3])
        with pytest.raises(NonFiniteError, match=r"examples \[2\]"):
            optimizer.backward(
                losses_of(model, x, y), input_gradient=torch.ones(7, 1).index_fill(0, torch.tensor(2), math.inf)
            )
        assert all(p.grad is None for p in model.parameters())


class TestAENGM:
    def test_recovers_a_planted_line(self):
        """Losses c_i (<a, x_i> + <u, w>) have input gradients of norm c_i ||a|| and gradients of norm c_i ||u||."""
        torch.manual_seed(0)
        w = nn.Parameter(torch.zeros(1, 5, dtype=torch.float64))
        u, c = torch.randn(5, dtype=torch.float64), torch.rand(20, dtype=torch.float64) + 0.5
        x = torch.zeros(20, 3, dtype=torch.float64, requires_grad=True)
        optimizer = AENGM([w], tau=1, alpha=1.0)
        for _ in range(80):  # 0.7^80 is 4e-13 of the start
            optimizer.backward(2 * c * x.sum(1) + F.linear(c[:, None] * u, w)[:, 0], inputs=x)
        assert optimizer.gamma1 == pytest.approx(u.norm().item() / (2 * math.sqrt(3)), rel=1e-9)
        assert optimizer.gamma0 == pytest.approx(0, abs=1e-9)

    def test_a_line_with_an_intercept(self):
        w = nn.Parameter(torch.zeros(1, 1, dtype=torch.float64))
        x = torch.zeros(4, 1, dtype=torch.float64, requires_grad=True)
        c = torch.tensor([1.0, 2.0, 3.0, 5.0], dtype=torch.float64)
        losses = F.linear(3 * c[:, None] + 2, w)[:, 0] + (c[:, None] * x).sum(1)  # norms 3 c + 2, input norms c
        optimizer = AENGM([w], alpha=7.0, gamma_momentum=0.0)
        used = optimizer.backward(losses, inputs=x)
        assert (optimizer.gamma0, optimizer.gamma1) == pytest.approx((2.0, 3.0), rel=1e-9)
        torch.testing.assert_close(used.weights, (7 / (3 * c + 2)).clamp(max=1))

    @pytest.mark.parametrize("norm", ["gn", "bn"])
    @pytest.mark.parametrize("way", ["inputs", "input_gradient"])
    def test_follows_its_definition(self, norm, way):
        model = network(norm, torch.float64)
        norms = "exact" if norm == "bn" else "auto"
        optimizer = AENGM(model.parameters(), alpha=0.2, tau=3, norms=norms)
        g0, g1 = 0.0, 1.0
        for t in range(7):
            x, y = batch(dtype=torch.float64, seed=t)
            g, g_x = rows(model, x, y), input_gradient(model, x, y)
            a, b = g_x.flatten(1).norm(dim=1), g.norm(dim=1)
            if t % 3 == 0:
                slope, intercept = torch.linalg.lstsq(torch.stack([a, torch.ones_like(a)], 1), b[:, None]).solution
                g0, g1 = 0.7 * g0 + 0.3 * intercept.item(), 0.7 * g1 + 0.3 * slope.item()
            weights = (0.2 / (g1 * a + g0)).clamp(max=1)
            optimizer.zero_grad()
            given = {"inputs": x} if way == "inputs" else {"input_gradient": g_x}
            used = optimizer.backward(losses_of(model, x, y), **given)
            torch.testing.assert_close(used.weights, weights, rtol=1e-9, atol=0)
            torch.testing.assert_close(used.input_norms, a, rtol=1e-9, atol=0)
            torch.testing.assert_close(gradient(model), (weights[:, None] * g).mean(0), rtol=0, atol=1e-9)
            assert (used.norms is None) == (t % 3 > 0)
            optimizer.step()
        assert (optimizer.gamma0, optimizer.gamma1) == pytest.approx((g0, g1), rel=1e-9)

    def test_exact_weights_on_refresh_are_engms(self):
        model, twin = network(), network()
        optimizer = AENGM(model.parameters(), alpha=0.2, tau=1, use_exact_on_refresh=True)
        engm = ENGM(twin.parameters(), alpha=0.2)
        for seed in range(3):
            step(model, optimizer, *batch(seed=seed))
            step(twin, engm, *batch(seed=seed))
        torch.testing.assert_close(theta(model), theta(twin), rtol=0, atol=1e-6)

    def test_tau_changes_on_the_fly(self):
        model = network()
        optimizer = AENGM(model.parameters())
        assert (optimizer.alpha, optimizer.tau, optimizer.gamma_momentum) == (5.0, 50, 0.7)
        assert step(model, optimizer, *batch()).norms is not None
        assert step(model, optimizer, *batch()).norms is None
        optimizer.tau = 2
        assert step(model, optimizer, *batch()).norms is not None

    def test_one_example_and_equal_examples(self):
        model = network()
        optimizer = AENGM(model.parameters(), tau=1)
        step(model, optimizer, *batch(n=1))
        assert optimizer.gamma1 == pytest.approx(1.0)
        x, y = batch(n=1)
        used = step(model, optimizer, x.detach().repeat(4, 1, 1, 1).requires_grad_(), y.repeat(4))
        assert optimizer.gamma1 == pytest.approx(1.0, rel=1e-3)
        assert used.weights.isfinite().all()


class TestAsAnOptimizer:
    def test_constructed_from_parameters_alone(self, kind):
        model = network()
        optimizer = kind(model.parameters())
        assert isinstance(optimizer, torch.optim.Optimizer)
        group = optimizer.param_groups[0]
        assert (group["lr"], group["weight_decay"]) == (0.1, 5e-4)
        assert group["momentum"] == (0.95 if kind is Muon else 0.9)
        before = theta(model)
        step(model, optimizer, *batch())
        assert not theta(model).equal(before)

    @pytest.mark.parametrize("way", ["state_dict", "torch.save", "deepcopy", "pickle"])
    @pytest.mark.parametrize("norm", ["gn", "bn"])
    def test_resumes_bitwise_after_a_copy(self, kind, way, norm, tmp_path):
        model = network(norm)
        options = {"tau": 2} if kind is AENGM else {}
        optimizer = kind(model.parameters(), **options)
        for seed in range(3):
            step(model, optimizer, *batch(seed=seed))
        if way in ("deepcopy", "pickle"):
            pair = (model, optimizer)
            twin, other = copy.deepcopy(pair) if way == "deepcopy" else pickle.loads(pickle.dumps(pair))
        else:
            twin = copy.deepcopy(model)
            other = kind(twin.parameters(), lr=0.7, momentum=0.2)
            state = copy.deepcopy(optimizer.state_dict())
            if way == "torch.save":
                torch.save(state, tmp_path / "state.pt")
                state = torch.load(tmp_path / "state.pt", weights_only=True)
            other.load_state_dict(state)
        for seed in range(3, 6):
            step(model, optimizer, *batch(seed=seed))
            step(twin, other, *batch(seed=seed))
        assert same_bits(model, twin)

    def test_schedules(self, kind):
        model = network()
        optimizer = kind(model.parameters(), lr=1.0)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2])
        for lr in (1.0, 0.1, 0.01):
            assert optimizer.param_groups[0]["lr"] == pytest.approx(lr)
            step(model, optimizer, *batch())
            schedule.step()
        torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=10)

    def test_step_hooks_run_once(self, kind):
        model = network()
        torch.optim.SGD(model.parameters(), lr=0.1)  # torch wraps the step of each class that was ever built
        optimizer, calls = kind(model.parameters()), []
        optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
        optimizer.register_step_post_hook(lambda *_: calls.append("after"))
        step(model, optimizer, *batch())
        assert calls == ["before", "after"]

    def test_accumulation_is_the_whole_batch(self, kind):
        model, twin = network(), network()
        options = {"gamma_momentum": 1.0} if kind is AENGM else {}  # else the halves have a line each
        whole, halves = kind(model.parameters(), **options), kind(twin.parameters(), **options)
        for seed in range(3):
            x, y = batch(8, seed=seed)
            step(model, whole, x, y)
            halves.zero_grad()
            for part in (slice(0, 4), slice(4, 8)):
                piece = x[part].detach().requires_grad_()
                halves.backward(losses_of(twin, piece, y[part]), inputs=piece, accumulate=2)
            assert halves.statistics().keys() <= whole.statistics().keys() | {"total_norm"}
            halves.step()
        torch.testing.assert_close(theta(twin), theta(model), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"foreach": False}, {"nesterov": True}])
    def test_the_update_is_torchs(self, kind, options):
        model, twin = network(), network()
        optimizer, other = kind(model.parameters(), **options), kind(twin.parameters(), nesterov="nesterov" in options)
        for seed in range(2):
            step(model, optimizer, *batch(seed=seed))
            step(twin, other, *batch(seed=seed))
        torch.testing.assert_close(theta(model), theta(twin), rtol=0, atol=1e-7)

    @pytest.mark.parametrize("fused", [False, True])
    def test_a_scaler_changes_nothing(self, kind, fused):
        model, twin = network(), network()
        optimizer, other = kind(model.parameters(), fused=fused), kind(twin.parameters(), fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for seed in range(3):
            x, y = batch(seed=seed)
            step(model, optimizer, x, y)
            other.zero_grad()
            other.backward(losses_of(twin, x, y), inputs=x, scaler=scaler)
            scaler.step(other)
            scaler.update()
        torch.testing.assert_close(theta(twin), theta(model), rtol=0, atol=1e-6)

    def test_a_gradient_that_is_not_finite_is_skipped_by_the_scaler(self, kind):
        model, (x, y) = network(), batch()
        optimizer = kind(model.parameters())
        before, scaler = theta(model), torch.amp.GradScaler("cpu", init_scale=2.0**10)
        logits = model(x)
        zeros = logits[:, 0] - logits[:, 0].detach()
        losses = F.cross_entropy(logits, y, reduction="none") + zeros.sqrt()  # the derivative at 0 is infinite
        optimizer.backward(losses, inputs=x, scaler=scaler)
        scaler.step(optimizer)
        scaler.update()
        assert theta(model).equal(before)
        assert scaler.get_scale() == 2.0**9

    def test_clipping_afterwards(self, kind):
        model = network()
        optimizer = kind(model.parameters(), weight_decay=0.0)
        optimizer.backward(losses_of(model, *(b := batch())), inputs=b[0])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        before = theta(model)
        optimizer.step()
        length = 1.0 if kind is SNGM else 1e-3  # which is normalised in the step
        if kind is Muon:  # so are its matrices
            return
        assert (theta(model) - before).norm().item() == pytest.approx(0.1 * length, rel=1e-2)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("norm", ["gn", "bn"])
    def test_half_precision(self, kind, dtype, norm):
        model, twin, (x, y) = network(norm), network(norm), batch()
        optimizer, other = kind(model.parameters()), kind(twin.parameters())
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, enabled=dtype == torch.float16)
        for _ in range(2):  # AENGM's second step has no norms
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype):
                losses = losses_of(model, x, y)
            optimizer.backward(losses, inputs=x, scaler=scaler)
            scaler.step(optimizer)
            scaler.update()
            step(twin, other, x, y)
        moved = theta(twin) - theta(network(norm))
        # 8 bits, and batch norm of 7 examples; Muon raises small singular values with their errors, up to 3.4**5-fold
        assert (theta(model) - theta(twin)).norm() < (0.5 if kind is Muon else 0.1) * moved.norm()

    @pytest.mark.parametrize("way", ["inputs", "input_gradient"])
    def test_passes_over_the_graph(self, kind, way):
        """One, on models with independent examples, also for weights that depend on it."""
        model, passes = network(), []
        model.dense.register_forward_hook(
            lambda module, inputs, out: out.register_hook(lambda g: passes.append(g)) and None
        )
        optimizer = kind(model.parameters())
        for seed in range(3):
            x, y = batch(seed=seed)
            given = {"inputs": x} if way == "inputs" else {"input_gradient": input_gradient(model, x, y)}
            losses = losses_of(model, x, y)
            passes.clear()
            optimizer.backward(losses, **given)
            assert seed == 0 or len(passes) == 1  # the first call learns the graph


class TestBadUse:
    def test_losses(self, kind):
        model, (x, y) = network(), batch()
        optimizer = kind(model.parameters())
        with pytest.raises(ValueError, match=r"shape \(n,\)"):
            optimizer.backward(losses_of(model, x, y).mean(), inputs=x)
        with pytest.raises(ValueError, match="accumulate is 0"):
            optimizer.backward(losses_of(model, x, y), inputs=x, accumulate=0)
        assert all(p.grad is None for p in model.parameters())

    def test_step_without_backward(self, kind):
        optimizer = kind(network().parameters())
        with pytest.raises(RuntimeError, match=r"call backward\(losses\)"):
            optimizer.step()

    def test_losses_of_another_model(self, kind):
        model, (x, y) = network(), batch()
        with pytest.raises(ValueError, match="parameters that the optimiser was not given"):
            kind(network().parameters()).backward(losses_of(model, x, y), inputs=x)
        model.requires_grad_(False)
        with pytest.raises(ValueError, match="depend on none of the optimiser's parameters"):
            kind(network().parameters()).backward(losses_of(model, x, y), inputs=x)

    def test_parameters_that_were_left_out(self, kind):
        model, (x, y) = network(), batch()
        optimizer = kind(model.head.parameters())
        with pytest.raises(
            ValueError, match=r"8 parameters that the optimiser was not given \(shapes .*requires_grad_\(False\)"
        ):
            optimizer.backward(losses_of(model, x, y), inputs=x)
        for part in (model.block1, model.block2, model.dense):
            part.requires_grad_(False)
        step(model, optimizer, x, y)

    @pytest.mark.parametrize(
        ("kind", "name", "value"),
        [
            (PSClipSGD, "alpha", 0.0),
            (PSClipSGD, "beta", 0.0),
            (MGNC, "max_norm", 0.0),
            (ENGM, "alpha", -1.0),
            (AENGM, "alpha", 0),
            (AENGM, "tau", 0),
            (AENGM, "tau", 1.5),
            (AENGM, "gamma_momentum", 1.1),
            (NENGM, "alpha", math.nan),
            (FENGM, "alpha", math.inf),
            (SNGM, "decay_inside", 1),
            (EntropySGD, "inner_steps", -1),
            (EntropySGD, "inner_lr", 0.0),
            (EntropySGD, "averaging", 1.0),
            (EntropySGD, "noise", math.inf),
        ],
    )
    def test_knobs_out_of_range(self, kind, name, value):
        model = network()
        with pytest.raises(ConfigError, match=f"{name} is"):
            kind(model.parameters(), **{name: value})
        optimizer = kind(model.parameters())
        old = getattr(optimizer, name)
        with pytest.raises(ConfigError, match=f"{name} is"):
            setattr(optimizer, name, value)
        assert getattr(optimizer, name) == old

    def test_a_joint_knob_in_a_group(self):
        with pytest.raises(ConfigError, match="alpha is one value for all parameter groups"):
            ENGM([{"params": network().parameters(), "alpha": 3.0}])


class TestStatistics:
    def test_of_the_last_step(self):
        model = network()
        optimizer = AENGM(model.parameters(), alpha=0.5)
        assert optimizer.statistics() == {}
        used = step(model, optimizer, *batch(21))
        found = optimizer.statistics()
        assert found["clipped"] == pytest.approx((used.weights < 1).float().mean().item())
        for name, values in (("weight", used.weights), ("norm", used.norms), ("input_norm", used.input_norms)):
            assert found[f"{name}_mean"] == pytest.approx(values.mean().item(), rel=1e-5)
            for q in (10, 50, 90):
                assert found[f"{name}_p{q}"] == pytest.approx(values.quantile(q / 100).item(), rel=1e-5)
        optimizer.zero_grad()
        assert optimizer.statistics() == found
        step(model, optimizer, *batch(21, seed=5))
        assert "norm_mean" not in optimizer.statistics()  # none are computed between refreshes

    @pytest.mark.parametrize("calls", [1, 2])
    def test_noise_scale_of_the_clipped_gradients(self, calls):
        """tr(Sigma) / |G|^2 from the gradients of single examples, both without bias."""
        model = network(dtype=torch.float64)
        optimizer = ENGM(model.parameters(), alpha=0.7)
        found, used = [], []
        for seed in range(calls):
            x, y = batch(20, torch.float64, seed)
            found.append(rows(model, x, y))
            used.append(optimizer.backward(losses_of(model, x, y), accumulate=calls).weights)
        assert "noise_scale" not in optimizer.statistics()
        clipped = torch.cat(used)[:, None] * torch.cat(found)
        trace = clipped.var(0).sum()
        optimizer.step()
        expected = trace / (clipped.mean(0).square().sum() - trace / len(clipped))
        assert expected > 0
        assert optimizer.statistics()["noise_scale"] == pytest.approx(expected.item(), rel=1e-6)

    def test_a_mean_gradient_within_its_noise_has_no_noise_scale(self):
        used = PerExampleStats(torch.ones(4), torch.ones(4))
        assert noise_scale([used], torch.tensor(0.2), 1) == {}
        assert noise_scale([used], torch.tensor(0.5), 1) == {"noise_scale": pytest.approx(2.0)}
        assert noise_scale([used], torch.tensor(0.2), 4) == {"noise_scale": pytest.approx(64 / 11)}  # of 16 examples

    def test_errors_of_estimated_norms(self):
        """They show from the second fit on, and only where norms are estimates."""
        model, plain = network("bn"), network()
        optimizer, other = ENGM(model.parameters(), lr=0.01), ENGM(plain.parameters(), lr=0.01)
        for k in range(3):
            step(model, optimizer, *batch(seed=k))
            step(plain, other, *batch(seed=k))
            assert ("norm_error" in optimizer.statistics()) == (k > 0)
            assert "norm_error" not in other.statistics()
        assert optimizer.statistics()["norm_error"] == optimizer.norms.running_error > 0

    def test_of_all_calls_of_a_step(self):
        model = network()
        optimizer = ENGM(model.parameters(), alpha=0.5)
        parts = [optimizer.backward(losses_of(model, *batch(seed=seed)), accumulate=2) for seed in (1, 2)]
        expected = torch.cat([part.norms for part in parts]).mean().item()
        assert optimizer.statistics()["norm_mean"] == pytest.approx(expected, rel=1e-6)


class TestScaleAlpha:
    def test_the_papers_rule(self):
        with torch.device("meta"):
            assert scale_alpha(build("resnet18")) == pytest.approx(5.0)
            assert scale_alpha(build("wrn_34_10")) == pytest.approx(10.4, abs=0.25)  # of 46.2, not 48.2 million
            assert scale_alpha(build("resnet18"), alpha=0.5) == pytest.approx(0.5)
        with pytest.raises(ValueError, match="no parameter"):
            scale_alpha(nn.ReLU())


def test_calibration_works_with_batch_norm():
    """AENGM's norms under batch norm are the estimator's, and stay in state_dict."""
    model, (x, y) = network("bn"), batch(12)
    optimizer = AENGM(model.parameters(), tau=1)
    losses = losses_of(model, x, y)
    exact = exact_norms(losses, model.parameters())
    used = optimizer.backward(losses, inputs=x)
    assert torch.corrcoef(torch.stack([used.norms, exact]))[0, 1] > 0.5
    twin = AENGM(model.parameters(), tau=1)
    twin.load_state_dict(optimizer.state_dict())
    moments = twin.norms.state_dict()["fit"]["moments"]
    assert torch.is_tensor(moments)
    assert moments.equal(optimizer.norms.state_dict()["fit"]["moments"])


def test_every_name_is_exported():
    for name in (
        "MSGD",
        "MGNC",
        "SNGM",
        "ENGM",
        "FENGM",
        "AENGM",
        "NENGM",
        "PSClipSGD",
        "EntropySGD",
        "EntropySGD2",
        "scale_alpha",
    ):
        assert name in pyengm.__all__
        assert hasattr(pyengm, name)
