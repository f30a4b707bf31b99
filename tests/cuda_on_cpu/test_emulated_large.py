"""Index arithmetic where sizes pass 2^31: of the last blocks of a grid, and of rows that all blocks share.

The memory is virtual: pages that no thread touches do not exist.
"""

import numpy as np
import pytest
import torch
from cuda_on_cpu.emulator import Emulator
from torch import Tensor

from pyengm import ops
from pyengm.ops import reference

pytestmark = pytest.mark.slow

NUMPY = {torch.float32: np.float32, torch.bfloat16: np.int16, torch.float16: np.int16, torch.uint8: np.uint8}
ROW = 16_384  # the longest row of one block
ROWS = 2**31 // ROW + 3
LAST = 2  # rows and blocks that are looked at


def zeros(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.from_numpy(np.zeros(shape, NUMPY[dtype])).view(dtype)


@pytest.fixture
def last_blocks(emulated):
    """Only the last blocks of each grid run: with checks of undefined arithmetic, without those of memory."""
    with Emulator(emulated.path, checks_memory=False).replaces_cpu_kernels(seed=1, last_blocks=LAST):
        yield


@pytest.fixture(scope="module")
def fast(way_in, emulated, tmp_path_factory) -> Emulator:
    return Emulator(way_in.build(tmp_path_factory.mktemp("fast"), checked=False))


def large_attack() -> tuple[list[Tensor], list[Tensor]]:
    """x_adv, grad and x of more than 2^31 elements, and copies of their last rows."""
    tensors = [zeros(ROWS, ROW) for _ in range(3)]
    for t in tensors:
        t[-LAST:] = torch.rand(LAST, ROW)
    return tensors, [t[-LAST:].clone() for t in tensors]


ATAS = {"eps": 0.1, "step_scale": 0.2, "c": 5.0, "min_step": 0.01, "max_step": 0.15}


def fosc_step(x_adv, grad, x, backend):
    active = torch.ones(len(x), dtype=torch.bool)
    return ops.fosc_step_(x_adv, grad, x, active, 0.03, 0.1, 0.0, backend=backend), x_adv, active


def atas_step(x_adv, grad, x, backend):
    v = torch.ones(len(x))
    return ops.atas_step_(x_adv, grad, x, v, **ATAS, backend=backend), x_adv, v


RUNS = {
    "row_norms": lambda x_adv, grad, x, backend: (ops.row_norms(grad, backend=backend),),
    "pgd_l2_step_": lambda x_adv, grad, x, backend: (ops.pgd_l2_step_(x_adv, grad, x, 0.5, 1.0, backend=backend),),
    "fosc": lambda x_adv, grad, x, backend: (ops.fosc(x_adv, grad, x, 0.1, backend=backend),),
    "fosc_step_": fosc_step,
    "atas_step_": atas_step,
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_the_last_rows(last_blocks, run):
    tensors, last = large_attack()
    for got, expected in zip(run(*tensors, None), run(*last, "reference"), strict=True):
        rtol = 0 if got.dtype == torch.bool else torch.finfo(got.dtype).eps
        torch.testing.assert_close(got[-LAST:], expected, rtol=rtol, atol=2.0**-30)  # sums of 16,384 terms below 2


def test_the_last_pieces_of_a_linf_step(last_blocks):
    tensors, last = large_attack()
    steps = torch.full((ROWS,), 0.03)
    columns = LAST * 512 * 8  # a block's threads have one access of eight elements each
    ops.pgd_linf_step_(*tensors, steps, 0.1)
    ops.pgd_linf_step_(*last, steps[-LAST:], 0.1, backend="reference")
    assert torch.equal(tensors[0][-1, -columns:], last[0][-1, -columns:])


def test_the_last_row_sums(last_blocks):
    g, x = (zeros(2**31 // 1000 + 5, 1000, dtype=torch.float32) for _ in "gx")
    g[-1], x[-1] = torch.rand(1000), torch.rand(1000)
    sums, dots = ops.row_sums(g, x)
    truth = torch.stack([g[-1].double().sum(), g[-1].double() @ x[-1].double()]).float()
    torch.testing.assert_close(torch.stack([sums[-1], dots[-1]]), truth, rtol=2**-22, atol=0)


def test_the_last_weights(last_blocks):
    norms = zeros(2**31 + 2**28, dtype=torch.float32)  # loops go round 9 times
    norms[-5:] = torch.tensor([0.5, 1.0, 2.0, 4.0, 8.0])
    assert ops.clip_weights(norms, 1.0)[-5:].tolist() == [1.0, 1.0, 0.5, 0.25, 0.125]


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_last_of_many_crops(last_blocks, channels_last):
    n = 2**31 // 3072 + 3
    images, zero = zeros(n, 3, 32, 32, dtype=torch.uint8), torch.zeros(n, dtype=torch.int64)
    images[-1] = torch.randint(0, 256, (3, 32, 32))
    got = ops.crop_flip(images, zero, zero, zero > 0, 0, channels_last=channels_last)
    assert torch.equal(got[-1], images[-1].float() / torch.tensor(255.0))


def test_a_crop_of_as_many_rows_as_there_may_be(last_blocks):
    images, zero = zeros(1, 1, 2**31 - 1, 1, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
    images[0, 0, -9:, 0] = 255
    got = ops.crop_flip(images, zero, zero, zero > 0, 0)[0, 0, -20:, 0]
    assert got.tolist() == 11 * [0.0] + 9 * [1.0]


def test_the_last_random_values(last_blocks):
    count, index = 2**30, torch.tensor([5, 6, 7])
    got = ops.philox_uniform(index, (count,), seed=3, purpose=1)[-1, -4:]
    words = reference.philox4x32([torch.tensor([c]) for c in (count // 4 - 1, 7, 0, 1)], (3, 0))
    assert got.tolist() == [(word.item() >> 8) / 2**24 for word in words]


def test_a_row_of_more_than_2_to_the_31(fast):
    row = zeros(1, 2**31 + 16_399)
    row[0, -1], row[0, 2**31] = 3.0, 4.0
    with fast.replaces_cpu_kernels(seed=1):
        assert ops.row_norms(row).item() == 5.0


def test_statistics_of_more_than_2_to_the_31(fast):
    x, y = (zeros(2**31 + 300, dtype=torch.float32) for _ in "xy")
    x[-1], y[-1], y[2**31] = 2.0, 3.0, 5.0
    with fast.replaces_cpu_kernels(seed=1):
        assert ops.regression_statistics(x, y).tolist() == [2.0**31 + 300, 2.0, 8.0, 4.0, 6.0]


def test_a_shared_row_that_begins_after_2_to_the_31(fast):
    d = 2**29 + 24
    x_adv, grad, x = (zeros(5, d) for _ in range(3))
    grad[-1, 0], grad[-1, -1] = 3.0, -4.0
    mask = torch.tensor([False, False, False, False, True])
    with fast.replaces_cpu_kernels(seed=1):
        ops.pgd_l2_step_(x_adv, grad, x, 0.5, 1.0, lo=-1.0, mask=mask)
    assert x_adv[-1, [0, 1, -2, -1]].tolist() == [torch.tensor(v).bfloat16().item() for v in (0.3, 0.0, 0.0, -0.4)]
