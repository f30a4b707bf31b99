"""Learning-rate schedules: the rate of every step, by the papers' formulas and torch's."""

import math

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, OneCycleLR

from pyengm.training import TrainConfig, build_components, loop
from pyengm.training.schedule import (
    SCHEDULES,
    build_schedule,
    cosine,
    cyclic,
    nuat,
    piecewise,
    scale_milestones,
    with_warmup,
)


def sgd(lr: float = 0.5) -> torch.optim.SGD:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)


def rates(optimizer, schedule, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def built(kind: str, *, epochs: int = 2, steps_per_epoch: int = 10, milestones=(1,), **options) -> list[float]:
    optimizer = sgd()
    schedule = build_schedule(
        optimizer, kind, milestones=milestones, pct_start=0.4, epochs=epochs, steps_per_epoch=steps_per_epoch, **options
    )
    return rates(optimizer, schedule, epochs * steps_per_epoch)


class TestPiecewise:
    def test_whole_epochs(self):
        factor = piecewise((2, 4), steps_per_epoch=3)
        assert [factor(step) for step in (0, 5, 6, 11, 12, 20)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])

    def test_parts_of_epochs(self):
        factor = piecewise((0.5, 7.25), steps_per_epoch=100)
        assert [factor(step) for step in (0, 49, 50, 724, 725)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])

    @pytest.mark.parametrize("steps_per_epoch", [1, 7, 10, 98, 391])
    def test_every_step_of_a_run_can_be_named(self, steps_per_epoch):
        """step / steps_per_epoch is a milestone at that step, whatever its rounding."""
        for step in range(1, 3 * steps_per_epoch):
            factor = piecewise((step / steps_per_epoch,), steps_per_epoch)
            assert (factor(step - 1), factor(step)) == (1, 0.1)

    @pytest.mark.parametrize("decay", [0.1, 0.5])
    def test_is_that_of_torch_step_by_step(self, decay):
        optimizer = sgd()
        expected = rates(optimizer, MultiStepLR(optimizer, [5, 17, 31], gamma=decay), 40)
        assert built("piecewise", epochs=4, milestones=(0.5, 1.7, 3.1), decay=decay) == pytest.approx(expected)

    def test_of_a_shorter_run(self):
        assert scale_milestones((75, 90), 1 / 3) == (25, 30)
        assert scale_milestones((75.0, 90), 1) == (75, 90)
        assert scale_milestones((60, 120, 160), 1 / 100) == (0.6, 1.2, 1.6)
        assert scale_milestones((7.5, 10), 1) == (7.5, 10)
        assert scale_milestones((7.5, 10), 0.5) == (3.75, 5)


class TestCyclic:
    def test_triangle(self):
        factors = [cyclic(10, 0.4)(step) for step in range(10)]
        assert factors == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])

    @pytest.mark.parametrize("total", [1, 2, 3, 1000])
    def test_never_stands_still(self, total):
        factors = [cyclic(total, 0.4)(step) for step in range(total)]
        assert all(0 < factor <= 1 for factor in factors)


@pytest.mark.parametrize("steps", [3, 20, 101])
def test_one_cycle_is_that_of_torch(steps):
    optimizer = sgd()
    schedule = OneCycleLR(optimizer, max_lr=0.5, total_steps=steps, pct_start=0.4, cycle_momentum=False)
    expected = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps - 1):
        optimizer.step()
        schedule.step()
        expected.append(optimizer.param_groups[0]["lr"])
    assert built("one_cycle", epochs=1, steps_per_epoch=steps) == pytest.approx(expected)


def test_nuat():
    factors = [nuat(200)(step) for step in range(200)]
    assert factors[0] == pytest.approx(1 / 80)
    assert factors[79] == 1.0
    assert factors[130] == pytest.approx((180 - 130) / 100)
    assert factors[160] == factors[169] == pytest.approx(0.2)
    assert factors[170] == factors[179] == pytest.approx(0.02)
    assert factors[180] == factors[199] == pytest.approx(0.002)


def test_cosine_is_that_of_torch():
    optimizer = sgd()
    expected = rates(optimizer, CosineAnnealingLR(optimizer, T_max=20), 20)
    assert built("cosine") == pytest.approx(expected)
    assert min(cosine(20)(step) for step in range(20)) > 0


def test_constant():
    assert built("constant") == [0.5] * 20


class TestWarmUp:
    @pytest.mark.parametrize("kind", SCHEDULES)
    def test_rises_in_a_straight_line_on_top_of_any_schedule(self, kind):
        plain, warm = built(kind), built(kind, warmup_epochs=0.5)
        assert warm[:5] == pytest.approx([rate * k / 5 for k, rate in enumerate(plain[:5], start=1)])
        assert warm[5:] == plain[5:]
        assert min(warm) > 0

    @pytest.mark.parametrize("steps", [0, 0.5, 1])
    def test_of_one_step_or_less_is_none(self, steps):
        assert [with_warmup(lambda step: 0.7, steps)(step) for step in range(3)] == [0.7] * 3


class TestOfARun:
    def test_options_reach_the_schedule(self):
        config = TrainConfig.from_flat(
            schedule="piecewise", milestones=(1.5,), lr_decay=0.2, warmup_epochs=0.5, lr=0.1, epochs=3
        )
        components = build_components(config.resolve())
        n = len(components.batches)
        (factor,) = components.schedule.lr_lambdas
        expected = [min((k + 1) / (0.5 * n), 1) * (0.2 if k >= round(1.5 * n) else 1) for k in range(3 * n)]
        assert [factor(k) for k in range(3 * n)] == pytest.approx(expected)

    @pytest.mark.parametrize("kind", SCHEDULES)
    def test_goes_on_from_its_state(self, kind):
        options = {"milestones": (0.7,), "pct_start": 0.4, "epochs": 2, "steps_per_epoch": 10, "warmup_epochs": 0.3}
        whole = built(kind, milestones=(0.7,), warmup_epochs=0.3)
        optimizers = [sgd(), sgd()]
        first, second = (build_schedule(optimizer, kind, **options) for optimizer in optimizers)
        assert rates(optimizers[0], first, 7) == whole[:7]
        optimizers[1].load_state_dict(optimizers[0].state_dict())
        second.load_state_dict(first.state_dict())
        assert rates(optimizers[1], second, 13) == whole[7:]


class TestOfThePapers:
    """Schedules of the authors' code, as options of a run say them."""

    def test_free_at_on_imagenet(self):
        """0.1^(epoch // ceil(30 / m)) over ceil(90 / m) passes, m = 4 replays."""
        m = 4
        epochs, every = math.ceil(90 / m), math.ceil(30 / m)
        factor = piecewise(tuple(range(every, epochs, every)), 5)
        expected = [0.1 ** (step // 5 // every) for step in range(5 * epochs)]
        assert [factor(step) for step in range(5 * epochs)] == pytest.approx(expected)

    @pytest.mark.parametrize("method", ["fgsm_sdi", "fgsm_pgi"])
    def test_prior_guided_methods_count_steps(self, method):
        """At 100/110 and 105/110 of the steps of the run."""
        config = TrainConfig.from_flat(data="cifar10", method=method).resolve()
        factor, total = piecewise(config.schedule.milestones, 391), 110 * 391
        for step in range(0, total, 17):
            assert factor(step) == pytest.approx(0.1 ** sum(step >= total * k / 110 for k in (100, 105)))

    def test_sub_at_is_at_1_throughout_its_second_phase(self, tmp_path):
        path = tmp_path / "first.txt"
        path.write_text("\n".join(map(str, range(60))))
        config = TrainConfig.from_flat(
            train_indices=path, model="cnn4", width=2, method="sub_at", epochs=2, batch_size=20, lr=0.2
        )
        config = config.resolve()
        components = build_components(config)
        seen = []
        (group,) = components.optimizer.param_groups
        components.optimizer.register_step_pre_hook(lambda *_: seen.append((group["lr"], group["weight_decay"])))
        components.network.train()
        for epoch in range(2):
            components.method.start_epoch(components.network, epoch)
            for batch in components.batches.epoch(epoch):
                loop.update(config, components, [batch], epoch)
            components.method.finish_epoch(components.model, {})
        half = len(components.batches)
        assert len(seen) == 2 * half
        assert all(0 < rate <= 0.2 and decay > 0 for rate, decay in seen[:half])
        assert seen[half:] == [(1.0, 0.0)] * half
