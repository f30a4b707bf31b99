"""A training step with ENGM under batch norm, with PGD-10 or no attack, in units of the same step with MSGD.

    pytest -s bench/bench_batch_norm.py

The cost of fits of the norms and of their updates is measured separately and added as a share: one fit in
`max_refit_interval` steps, and one update in `UPDATE_INTERVAL`.
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
from pyengm.pergrad.norm_estimator import UPDATE_INTERVAL

N, WIDTH = 32, 32
ROUNDS = 7


@pytest.mark.parametrize("steps", [10, 0])
@pytest.mark.parametrize("model_name", ["resnet18", "preact_resnet18"])
@pytest.mark.parametrize("norms", ["corrected", "lowrank"])
def test_step(relative_cost, benchmark, norms, model_name, steps):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build(model_name, norm_layer="bn", width=WIDTH).train()
    x, y = torch.rand(N, 3, 32, 32), torch.arange(N) % 10
    attack = PGD(eps=8 / 255, step_size=2 / 255, steps=steps) if steps else None
    msgd = MSGD(model.parameters(), lr=1e-4)
    engm = ENGM(model.parameters(), lr=1e-4, alpha=1.0, norms=norms)

    def losses() -> torch.Tensor:
        return F.cross_entropy(model(x if attack is None else attack(model, x, y)), y, reduction="none")

    def step(optimizer) -> Callable[[], None]:
        def run() -> None:
            per_example = losses()
            optimizer.zero_grad()
            optimizer.backward(per_example)
            optimizer.step()

        return run

    for _ in range(2):
        step(engm)()  # finds the weights in use, and fits
    engm.norms.refit_interval = 10**6
    relative_cost(step(engm), step(msgd), ROUNDS, norms=norms, model=model_name, steps=steps)
    if benchmark.disabled:
        return

    per_example = losses()
    params: list[torch.Tensor] = list(model.parameters())

    def seconds(steps_since_fit: int) -> float:
        engm.norms.refit_interval = engm.norms.max_refit_interval
        engm.norms.steps_since_fit = steps_since_fit
        found = engm.norms.prepare(per_example, params)
        start = time.perf_counter()
        engm.norms.norms(per_example, params, found)
        return time.perf_counter() - start

    shares = []
    for steps_since_fit in (engm.norms.max_refit_interval, UPDATE_INTERVAL):
        times = [seconds(steps_since_fit) - seconds(1) for _ in range(3)]
        shares.append(median(times) / steps_since_fit / benchmark.extra_info["unit"])
    benchmark.extra_info["fits"], benchmark.extra_info["updates"] = shares
    benchmark.extra_info["ratio with fits"] = benchmark.extra_info["ratio"] + sum(shares)
    attacked = f"PGD-{steps}" if steps else "no attack"
    parts = f"{benchmark.extra_info['ratio']:.3f} + {shares[0]:.3f} for the fits + {shares[1]:.3f} for their updates"
    print(f"\n{model_name}, {attacked}, {norms}: {parts}")
