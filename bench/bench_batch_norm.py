"""A PGD-10 training step with ENGM under batch norm, in units of the same step with MSGD.

    pytest -s bench/bench_batch_norm.py

The cost of a fit of the norms is measured separately and added as a share: one fit in `NormEstimator.interval` steps.
"""

import time
from collections.abc import Callable
from statistics import median

import pytest
import torch
from torch.nn import functional as F

from pyengm import ENGM, MSGD
from pyengm.attacks import PGD
from pyengm.models import build
from pyengm.pergrad import NormEstimator

N, WIDTH = 32, 32
ROUNDS = 7


def _settled(kind: str) -> NormEstimator:
    """An estimator whose next fit is a whole interval away."""
    estimator = NormEstimator(kind)
    estimator.gap = estimator.interval
    return estimator


@pytest.mark.parametrize("model_name", ["resnet18", "preact_resnet18"])
@pytest.mark.parametrize("kind", ["frozen", "corrected"])
def test_adversarial_step(relative_cost, benchmark, kind, model_name):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build(model_name, norm_layer="bn", width=WIDTH).train()
    x, y = torch.rand(N, 3, 32, 32), torch.arange(N) % 10
    attack = PGD(eps=8 / 255, step_size=2 / 255, steps=10)
    msgd = MSGD(model.parameters(), lr=1e-4)
    engm = ENGM(model.parameters(), lr=1e-4, alpha=1.0, norms=kind)

    def losses() -> torch.Tensor:
        return F.cross_entropy(model(x), y, reduction="none")

    def step(optimizer) -> Callable[[], None]:
        def run() -> None:
            x_adv = attack(model, x, y)
            optimizer.zero_grad()
            optimizer.backward(F.cross_entropy(model(x_adv), y, reduction="none"))
            optimizer.step()

        return run

    for _ in range(2):
        step(engm)()  # computes the plan, and fits
    engm.norms.gap = 10**6
    relative_cost(step(engm), step(msgd), ROUNDS, kind=kind, model=model_name)
    if benchmark.disabled:
        return

    params: list[torch.Tensor] = list(model.parameters())
    per_example = losses()
    fits = [
        (_seconds(NormEstimator(kind), per_example, params), _seconds(_settled(kind), per_example, params))
        for _ in range(3)
    ]
    share = median(a - b for a, b in fits) / NormEstimator(kind).interval / benchmark.extra_info["unit"]
    benchmark.extra_info["fits"] = share
    benchmark.extra_info["ratio with fits"] = benchmark.extra_info["ratio"] + share
    print(f"\n{model_name}, {kind}: {benchmark.extra_info['ratio']:.3f} + {share:.3f} for the fits")


def _seconds(estimator: NormEstimator, losses: torch.Tensor, params: list[torch.Tensor]) -> float:
    found = estimator.prepare(losses, params)
    assert found is not None
    if estimator.gap > 1:  # a plan's groups and a fit, as after the first call
        estimator._leaves = [group.leaves for group in found.usage.groups]
        estimator._exact = estimator._estimated = torch.ones(len(estimator._leaves), dtype=torch.float64)
    start = time.perf_counter()
    estimator.norms(losses, params, found)
    return time.perf_counter() - start
