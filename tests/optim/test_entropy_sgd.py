"""Entropy-SGD against a second derivation of its formulas, written for one flat vector in float64."""

import copy
import itertools
import math
import pickle

import pytest
import torch
from helpers.small_problems import cnn4, images_and_labels, theta
from torch import nn
from torch.nn import functional as F

from pyengm import EntropySGD, EntropySGD2
from pyengm.attacks import PGD
from pyengm.errors import ConfigError, NonFiniteError
from pyengm.ops import Key
from pyengm.optim import CLOSURE_OPTIMIZERS

KINDS = list(CLOSURE_OPTIMIZERS.values())


def network(norm="gn", dtype=torch.float64):
    return cnn4(norm, dtype)


def batch(seed, n=5, dtype=torch.float64):
    return images_and_labels(n, seed, dtype)


def closure_of(model, start=0):
    """Draws batch number start, start + 1, ..."""
    seeds = itertools.count(start)
    dtype = next(model.parameters()).dtype

    def closure():
        x, y = batch(next(seeds), dtype=dtype)
        return F.cross_entropy(model(x), y, reduction="none")

    return closure


def flat_gradient(model, values, closure):
    """The gradient of the closure's mean loss at the weights `values`."""
    nn.utils.vector_to_parameters(values, model.parameters())
    return torch.cat([g.flatten() for g in torch.autograd.grad(closure().mean(), list(model.parameters()))])


def derived(
    model, closure, steps, *, inner_steps, second=False, published=False, nesterov=True, momentum=0.9, noise=0.0, seed=0
):
    """theta after some outer steps, from the formulas with mu, nu and x' themselves; weight decay 0.01, rates 0.1."""
    lr, rate, a, gamma0, gamma1, decay = 0.2, 0.1, 0.75, 0.3, 0.5, 0.01
    generator = torch.Generator().manual_seed(seed)
    x, outer = theta(model), None
    for t in range(steps):
        gamma = gamma0 * (1 + gamma1) ** t
        if published:
            opening = flat_gradient(model, x, closure)
            outer = opening if outer is None else outer
        walker, mu, nu, inner = x.clone(), x.clone(), x**2, torch.zeros_like(x)
        for _ in range(inner_steps):
            g = flat_gradient(model, walker, closure) + decay * walker
            inner = momentum * inner + g
            d = g + momentum * inner if nesterov else inner
            normal = torch.cat(
                [torch.randn(p.shape, generator=generator, dtype=x.dtype).flatten() for p in model.parameters()]
            )
            d = d - gamma * (x - walker) - noise / math.sqrt(0.5 * rate) * normal
            walker = walker - rate * d
            mu, nu = a * mu + (1 - a) * walker, a * nu + (1 - a) * walker**2
        step = (x - mu) / (1 - gamma * (nu - mu**2)) if second else x - mu
        step = step + decay * x
        outer = step if outer is None else momentum * outer + step
        x = x - lr * (step + momentum * outer if nesterov else outer)
    return x


OPTIONS = {"lr": 0.2, "weight_decay": 0.01, "inner_lr": 0.1, "averaging": 0.75, "gamma0": 0.3, "gamma1": 0.5}


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("noise", [0.0, 0.01])
@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_three_outer_steps_by_the_formulas(kind, published, noise, nesterov):
    model, twin = network(), network()
    options = {"nesterov": nesterov, "noise": noise, "inner_steps": 5}
    optimizer = kind(model.parameters(), **OPTIONS, **options, as_published=published, seed=3)
    closure = closure_of(model)
    for _ in range(3):
        optimizer.step(closure)
    second = kind is EntropySGD2
    expected = derived(twin, closure_of(twin), 3, second=second, published=published, seed=3, **options)
    torch.testing.assert_close(theta(model), expected, rtol=0, atol=1e-6)
    assert optimizer.t == 3


@pytest.mark.parametrize("kind", KINDS)
def test_without_inner_steps_it_is_nesterov_sgd(kind):
    model, twin = network("bn", torch.float32), network("bn", torch.float32)
    optimizer = kind(model.parameters(), lr=0.1, inner_steps=0)
    plain = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    closure, other = closure_of(model), closure_of(twin)
    for _ in range(4):
        optimizer.step(closure)
        plain.zero_grad()
        other().mean().backward()
        plain.step()
    assert all(a.equal(b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))


class TestSecondOrder:
    def quadratic(self, kind, **options):
        curvature = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
        w = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
        optimizer = kind([w], lr=0.3, momentum=0.0, nesterov=False, weight_decay=0.0, noise=0.0, **options)
        for _ in range(3):
            optimizer.step(lambda: (0.5 * curvature * w**2).sum()[None])
        return w.detach(), curvature

    def test_on_a_quadratic_it_is_a_linear_recursion(self):
        """x'_k - x = ((1 - c)^k - 1) f x with c = 0.1 (h + gamma) and f = h / (h + gamma), for every eigenvalue h."""
        a, gamma, rate, steps = 0.6, 0.8, 0.1, 7
        found, h = self.quadratic(EntropySGD2, inner_steps=steps, averaging=a, gamma0=gamma, inner_lr=rate)
        x = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
        weights = [a**steps, *((1 - a) * a ** (steps - k) for k in range(1, steps + 1))]
        moved = [((1 - rate * (h + gamma)) ** k - 1) * h / (h + gamma) for k in range(steps + 1)]
        mean = sum(w * m for w, m in zip(weights, moved, strict=True))
        variance = sum(w * m**2 for w, m in zip(weights, moved, strict=True)) - mean**2
        for _ in range(3):
            x = x + 0.3 * mean * x / (1 - gamma * variance * x**2)
        torch.testing.assert_close(found, x, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("options", [{"averaging": 0.0}, {"gamma0": 0.0}, {"inner_steps": 0}])
    def test_without_covariance_it_is_the_first_order(self, options):
        assert self.quadratic(EntropySGD2, **options)[0].equal(self.quadratic(EntropySGD, **options)[0])

    def test_the_divisor_is_bounded(self):
        found, _ = self.quadratic(EntropySGD2, gamma0=1e9, inner_lr=1e-9, inner_steps=50, averaging=0.9)
        assert found.isfinite().all()
        with pytest.raises(ConfigError, match="floor is 0"):
            EntropySGD2([nn.Parameter(torch.zeros(1))], floor=0.0)


class TestSteps:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("way", ["state_dict", "torch.save", "deepcopy", "pickle"])
    def test_resumes_bitwise_after_a_copy(self, kind, way, tmp_path):
        model = network("bn", torch.float32)
        optimizer = kind(model.parameters(), inner_steps=3, gamma1=0.5, noise=0.1, buffers=model.buffers())
        closure = closure_of(model)
        for _ in range(2):
            optimizer.step(closure)
        if way in ("deepcopy", "pickle"):
            pair = (model, optimizer)
            twin, other = copy.deepcopy(pair) if way == "deepcopy" else pickle.loads(pickle.dumps(pair))
        else:
            twin = copy.deepcopy(model)
            other = kind(twin.parameters(), lr=0.7, inner_steps=1, buffers=twin.buffers(), seed=9)
            state = copy.deepcopy(optimizer.state_dict())
            if way == "torch.save":
                torch.save(state, tmp_path / "state.pt")
                state = torch.load(tmp_path / "state.pt", weights_only=True)
            other.load_state_dict(state)
        for m, o in ((model, optimizer), (twin, other)):
            continued = closure_of(m, start=6)
            for _ in range(2):
                o.step(continued)
        assert all(a.equal(b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))
        assert other.t == 4

    def test_seeds_differ(self):
        results = []
        for seed in (0, 0, 1):
            model = network()
            EntropySGD(model.parameters(), inner_steps=2, noise=0.1, seed=seed).step(closure_of(model))
            results.append(theta(model))
        assert results[0].equal(results[1])
        assert not results[0].equal(results[2])

    def test_schedules_move_the_outer_rate(self):
        model = network()
        optimizer = EntropySGD(model.parameters(), lr=1.0, inner_steps=1)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1])
        closure = closure_of(model)
        optimizer.step(closure)
        schedule.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
        assert optimizer.inner_lr == 0.1

    def test_a_switch_to_sgd(self):
        model = network()
        optimizer = EntropySGD(model.parameters(), inner_steps=3)
        optimizer.step(closure_of(model))
        optimizer.switch_to_sgd()
        twin = copy.deepcopy(model)
        plain = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
        closure, other = closure_of(model, 10), closure_of(twin, 10)
        for _ in range(2):
            optimizer.step(closure)
            plain.zero_grad()
            other().mean().backward()
            plain.step()
        assert theta(model).equal(theta(twin))
        resumed = EntropySGD(twin.parameters())
        resumed.load_state_dict(optimizer.state_dict())
        assert resumed.inner_steps == 0

    @pytest.mark.parametrize("kind", KINDS)
    def test_epochs_of_sgd_before_and_after(self, kind):
        """As three optimisers one after the other would do it."""
        options = {"weight_decay": 0.01, "gamma1": 0.5, "noise": 0.01, "seed": 3}
        model, twin = network("bn", torch.float32), network("bn", torch.float32)
        optimizer = kind(model.parameters(), inner_steps=2, from_epoch=1, until_epoch=3, **options)
        sgd = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}
        parts = (
            ("sgd", torch.optim.SGD(twin.parameters(), **sgd), 1),
            ("walk", kind(twin.parameters(), inner_steps=2, **options), 2),
            ("sgd", torch.optim.SGD(twin.parameters(), **sgd), 2),
        )
        closure, other, epoch = closure_of(model), closure_of(twin), 0
        for part, plain, epochs in parts:
            for _ in range(epochs):
                optimizer.start_epoch(epoch)
                epoch += 1
                for _ in range(3):
                    assert optimizer.current_inner_steps == (2 if part == "walk" else 0)
                    optimizer.step(closure)
                    if part == "walk":
                        plain.step(other)
                    else:
                        plain.zero_grad()
                        other().mean().backward()
                        plain.step()
        assert all(a.equal(b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))
        assert (optimizer.inner_steps, optimizer.t) == (2, 6)

    @pytest.mark.parametrize("stop", [1, 2, 3, 4])
    def test_epochs_outlive_a_stop(self, stop):
        """At the end of an epoch, before the switch, and within an epoch, right after it."""
        model = network("bn", torch.float32)
        spans = {"from_epoch": 1, "until_epoch": 2, "noise": 0.1}
        optimizer, closure = EntropySGD(model.parameters(), inner_steps=2, **spans), closure_of(model)
        steps = 0
        for epoch in range(3):
            optimizer.start_epoch(epoch)
            for _ in range(2):
                optimizer.step(closure)
                steps += 1
                if steps == stop:
                    twin, drawn = copy.deepcopy(model), {1: 1, 2: 2, 3: 4, 4: 6}[stop]
                    state = copy.deepcopy(optimizer.state_dict())
        other, closure = EntropySGD(twin.parameters(), inner_steps=9), closure_of(twin, drawn)
        other.load_state_dict(state)
        for step in range(stop, 6):
            if step % 2 == 0:
                other.start_epoch(step // 2)
            other.step(closure)
        assert all(a.equal(b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))

    @pytest.mark.parametrize(
        "options", [{}, {"from_epoch": 1}, {"until_epoch": 9}, {"inner_steps": 0, "until_epoch": 2}]
    )
    def test_epochs_that_change_nothing_leave_the_momentum(self, options):
        model, twin = network(), network()
        optimizer = EntropySGD(model.parameters(), **{"inner_steps": 2} | options)
        plain = EntropySGD(twin.parameters(), inner_steps=options.get("inner_steps", 2))
        closure, other = closure_of(model), closure_of(twin)
        for epoch in (1, 2, 3):
            optimizer.start_epoch(epoch)
            optimizer.step(closure)
            plain.step(other)
        assert theta(model).equal(theta(twin))

    def test_a_state_from_before_there_were_epochs(self):
        model = network()
        optimizer = EntropySGD(model.parameters(), inner_steps=2)
        optimizer.step(closure_of(model))
        state = optimizer.state_dict()
        for group in state["param_groups"]:
            for name in ("epoch", "from_epoch", "until_epoch"):
                del group[name]
        optimizer = EntropySGD(model.parameters())
        optimizer.load_state_dict(state)
        assert (optimizer.epoch, optimizer.from_epoch, optimizer.until_epoch) == (None, 0, None)
        assert optimizer.current_inner_steps == 2

    def test_knobs_by_group(self):
        model = network()
        head = {"params": model.head.parameters(), "inner_lr": 1e-12}
        rest = [*model.block1.parameters(), *model.block2.parameters(), *model.dense.parameters()]
        before = model.head.weight.detach().clone()
        EntropySGD([head, {"params": rest}], lr=1.0, inner_steps=2, noise=0.0, weight_decay=0.0).step(closure_of(model))
        torch.testing.assert_close(model.head.weight, before, rtol=0, atol=1e-9)

    def test_the_loss_that_comes_back(self):
        model = network()
        losses, draw = [], closure_of(model)

        def closure():
            losses.append(draw())
            return losses[-1]

        mean = EntropySGD(model.parameters(), inner_steps=4).step(closure)
        assert len(losses) == 4
        assert mean.item() == pytest.approx(torch.stack([each.mean() for each in losses]).mean().item())
        first = EntropySGD(model.parameters(), inner_steps=4, as_published=True).step(closure)
        assert len(losses) == 9
        assert first.item() == pytest.approx(losses[4].mean().item())

    def test_a_step_with_fewer_inner_steps(self):
        """As by an optimiser that has them from the start; the attribute, and the steps after, keep theirs."""
        weights = []
        for change_attribute in (True, False):
            model = network()
            optimizer, closure = EntropySGD(model.parameters(), inner_steps=4), closure_of(model)
            for inner_steps in (4, 2, 0, 4):
                if change_attribute:
                    optimizer.inner_steps = inner_steps
                    optimizer.step(closure)
                else:
                    optimizer.step(closure, inner_steps=inner_steps)
                    assert (optimizer.inner_steps, optimizer.closures_per_step) == (4, 4)
            assert optimizer.t == 4
            weights.append(theta(model))
        assert weights[0].equal(weights[1])

    @pytest.mark.parametrize(("inner_steps", "from_epoch"), [(-1, 0), (1.5, 0), (True, 0), (2, 1)])
    def test_inner_steps_that_a_step_cannot_have(self, inner_steps, from_epoch):
        model = network()
        optimizer = EntropySGD(model.parameters(), inner_steps=4, from_epoch=from_epoch)
        optimizer.start_epoch(0)
        expected = "0, as this is a step of plain SGD" if from_epoch else "a whole number >= 0"
        with pytest.raises(ValueError, match=rf"inner_steps of the step is {inner_steps}; expected {expected}"):
            optimizer.step(closure_of(model), inner_steps=inner_steps)

    def test_adversarial_closures(self):
        model = network(dtype=torch.float32)
        attack, draws = PGD(0.02, 0.01, 2), itertools.count()

        def closure():
            t = next(draws)
            x, y = batch(0, n=20, dtype=torch.float32)
            x_adv = attack(model, x, y, key=Key(0, t, torch.arange(20)))
            return F.cross_entropy(model(x_adv), y, reduction="none")

        optimizer = EntropySGD(model.parameters(), lr=0.1, inner_steps=10)
        first, *_, last = (optimizer.step(closure).item() for _ in range(25))
        assert last < 0.7 * first

    def test_closures_that_perturb_the_weights(self):
        """As AWP does: in place, taken back after the backward pass, or through functional_call."""
        results = []
        for in_place in (True, False):
            model = network()
            optimizer = EntropySGD(model.parameters(), inner_steps=3)
            seeds = itertools.count()

            def closure(model=model, in_place=in_place, seeds=seeds):
                x, y = batch(next(seeds))
                shifted = {name: p + 0.1 * p.detach() for name, p in model.named_parameters()}
                if not in_place:
                    return F.cross_entropy(torch.func.functional_call(model, shifted, x), y, reduction="none")
                before = [p.detach().clone() for p in model.parameters()]

                @torch.no_grad()
                def put(values):
                    for p, value in zip(model.parameters(), values, strict=True):
                        p.copy_(value)

                put(shifted.values())
                return F.cross_entropy(model(x), y, reduction="none"), lambda: put(before)

            for _ in range(2):
                optimizer.step(closure)
            results.append(theta(model))
        torch.testing.assert_close(*results, rtol=0, atol=1e-12)

    def test_statistics_are_empty(self):
        model = network()
        optimizer = EntropySGD(model.parameters(), inner_steps=2)
        optimizer.step(closure_of(model))
        assert optimizer.statistics() == {}


class TestBuffers:
    def run(self, **options):
        model = network("bn")
        before = [b.clone() for b in model.buffers()]
        seen, draw = [], closure_of(model)

        def closure():
            losses = draw()
            seen.append([b.clone() for b in model.buffers()])
            return losses

        if options:
            options["buffers"] = model.buffers()
        EntropySGD(model.parameters(), inner_steps=4, **options).step(closure)
        return before, seen, list(model.buffers())

    def test_left_alone_they_follow_the_inner_steps(self):
        _, seen, after = self.run()
        assert all(a.equal(b) for a, b in zip(after, seen[-1], strict=True))

    def test_restored(self):
        before, _, after = self.run(buffer_rule="restore")
        assert all(a.equal(b) for a, b in zip(after, before, strict=True))

    def test_averaged_like_the_weights(self):
        before, seen, after = self.run(buffer_rule="average", averaging=0.6)
        for k, (start, found) in enumerate(zip(before, after, strict=True)):
            if found.is_floating_point():
                for values in seen:
                    start = 0.6 * start + 0.4 * values[k]
                torch.testing.assert_close(found, start)
            else:
                assert found == 4


class TestBadUse:
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_step_without_closure(self, kind):
        with pytest.raises(RuntimeError, match=r"call step\(closure\)"):
            kind(network().parameters()).step()

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_closure_that_fails_changes_nothing(self, kind):
        model = network("bn")
        optimizer = kind(model.parameters(), inner_steps=3, buffers=model.buffers())
        before = copy.deepcopy(model.state_dict())
        draw, calls = closure_of(model), itertools.count()

        def closure():
            return draw() * (math.nan if next(calls) == 2 else 1)

        with pytest.raises(NonFiniteError):
            optimizer.step(closure)
        assert all(before[name].equal(value) for name, value in model.state_dict().items())
        assert optimizer.t == 0

    def test_losses_of_the_wrong_shape(self):
        model = network()
        with pytest.raises(ValueError, match=r"shape \(n,\)"):
            EntropySGD(model.parameters()).step(lambda: closure_of(model)().mean())

    def test_arguments(self):
        params = list(network().parameters())
        with pytest.raises(ConfigError, match="buffer_rule is 'keep'; known: restore, average"):
            EntropySGD(params, buffer_rule="keep")
        with pytest.raises(ConfigError, match="minimises"):
            EntropySGD(params, maximize=True)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"from_epoch": -1}, "from_epoch is -1; expected a whole number >= 0"),
            ({"from_epoch": 1.5}, "from_epoch is 1.5"),
            ({"until_epoch": 0}, "until_epoch is 0; expected a whole number >= 1, or None"),
            ({"until_epoch": "ten"}, "until_epoch is 'ten'"),
            ({"from_epoch": 5, "until_epoch": 5}, "from_epoch and until_epoch are 5 and 5"),
        ],
    )
    def test_epochs_out_of_range(self, kind, options, message):
        with pytest.raises(ConfigError, match=message):
            kind(network().parameters(), **options)

    @pytest.mark.parametrize("options", [{"from_epoch": 1}, {"until_epoch": 1}])
    def test_epochs_that_are_not_given(self, options):
        model = network()
        optimizer = EntropySGD(model.parameters(), **options)
        with pytest.raises(RuntimeError, match=r"needs the epoch: call start_epoch\(epoch\)"):
            optimizer.step(closure_of(model))
