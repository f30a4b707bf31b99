"""Results do not depend on which threads and blocks run first, and kernels that only a GPU may be asked to run."""

import pytest
import torch
from helpers.attack_tensors import attack_tensors

from pyengm import ops

SCHEDULES = [{"seed": 1, "resident": 1, "processors": 1}, {"seed": 2, "resident": 3, "largest_grid": 2},
             {"seed": 3, "resident": 8, "processors": 40}, {"seed": 4, "resident": 16, "processors": 132}]  # fmt: skip
ATAS = {"eps": 0.1, "step_scale": 0.2, "c": 5.0, "min_step": 0.01, "max_step": 0.15}


def fosc_step(x_adv, grad, x):
    active = torch.ones(len(x), dtype=torch.bool)
    return ops.fosc_step_(x_adv, grad, x, active, 0.03, 0.1, 0.0), x_adv, active


def atas_step(x_adv, grad, x):
    v = torch.ones(len(x), dtype=torch.float32)
    return ops.atas_step_(x_adv, grad, x, v, **ATAS), x_adv, v


def regression(x_adv, grad, x):
    norms, line = ops.row_norms(grad), torch.zeros(2, dtype=torch.float64)
    return ops.regression_weights(ops.row_norms(x), norms, line, 1.0)


RUNS = {
    "row_norms": lambda x_adv, grad, x: (ops.row_norms(grad),),
    "pgd_l2_step_": lambda x_adv, grad, x: (ops.pgd_l2_step_(x_adv, grad, x, 0.5, 1.0),),
    "fosc": lambda x_adv, grad, x: (ops.fosc(x_adv, grad, x, 0.1),),
    "fosc_step_": fosc_step,
    "atas_step_": atas_step,
    "row_sums": lambda x_adv, grad, x: ops.row_sums(grad, x),
    "regression": regression,
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("shape", [(9, 1000), (2, 16_400)])  # whole rows, and rows that several blocks share
def test_every_schedule_gives_the_same_bits(emulated, run, shape):
    results = []
    for schedule in SCHEDULES:
        with emulated.replaces_cpu_kernels(**schedule):
            results.append([t.clone() for t in run(*attack_tensors(shape))])
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("total", [0, 6])
def test_crop_flip_of_positions_that_do_not_exist_is_nan(emulated, total, channels_last):
    """Ops on the CPU refuse such positions, on CUDA the kernel must: a check would wait for the device."""
    shape = (3, 4, 8)
    images = torch.randint(0, 256, (total, *shape), dtype=torch.uint8)
    positions, zeros = torch.tensor([-1, total, 2**40, 0]), torch.zeros(4, dtype=torch.int64)
    out, flip = torch.zeros(4, *shape), torch.tensor([False, True, False, True])
    addresses = (t.data_ptr() for t in (out, images, positions, zeros, zeros, flip))
    emulated.configure(seed=5)
    emulated.call("crop_flip", *addresses, 4, total, *shape, 1, channels_last)
    assert out[:3].isnan().all()
    assert out[3].isnan().all() if total == 0 else out[3].isfinite().all()
