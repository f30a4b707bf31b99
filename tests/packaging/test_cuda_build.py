"""The CUDA module without a GPU: it imports, is complete, fails cleanly and spills no registers."""

import re

import pytest
import torch
from helpers.cuobjdump import dump

from pyengm.ops import available_backends
from pyengm.ops._register import CPU_MODULE, CUDA_MODULE

pytestmark = pytest.mark.skipif("cuda" not in available_backends(), reason="no CUDA module was built")
CPU_ALONE = ("conv_", "philox4x32")  # kernels of convolutions are Triton's; the raw generator is for tests


def kernels(module: object) -> set[str]:
    return {name for name in dir(module) if not name.startswith("_")}


def test_every_memory_bound_family_is_there():
    expected = {name for name in kernels(CPU_MODULE) if not name.startswith(CPU_ALONE)}
    assert expected <= kernels(CUDA_MODULE)
    assert kernels(CUDA_MODULE) - expected <= {"rows_workspace"}
    for family in ("pgd_linf_step", "pgd_l2_step", "row_norms", "fosc", "fosc_step", "atas_step"):
        assert {f"{family}_{suffix}" for suffix in ("f32", "f64", "bf16", "f16")} <= expected


def test_arguments_are_those_of_the_cpu_module_after_device_and_stream():
    def arguments(module: object, name: str) -> list[str]:
        return re.findall(r"arg\d+: ([^,)]+)", getattr(module, name).__doc__)

    shared = (kernels(CPU_MODULE) & kernels(CUDA_MODULE)) - {"rows_workspace"}
    assert shared
    for name in shared:
        _device, stream, *rest = arguments(CUDA_MODULE, name)
        has_workspace = name.startswith(("pgd_l2_step", "row_norms", "fosc", "atas_step"))
        assert rest == arguments(CPU_MODULE, name) + ([stream] if has_workspace else []), (
            name
        )  # an address more: the workspace


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_every_kernel_fails_cleanly_without_a_driver():
    for name in kernels(CUDA_MODULE) - {"rows_workspace"}:
        kernel = getattr(CUDA_MODULE, name)
        count = len(re.findall(r"arg\d+:", kernel.__doc__))
        with pytest.raises(RuntimeError, match=r"pyengm on CUDA: .* failed"):
            kernel(0, 0, *[1] * (count - 2))


def test_only_long_rows_need_a_workspace():
    workspace = CUDA_MODULE.rows_workspace
    assert workspace(128, 0) == workspace(128, 1) == workspace(128, 3 * 32 * 32) == workspace(1, 8192) == 0
    for n, d in ((1, 8193), (1, 16385), (8, 3 * 224 * 224), (14_270, 3 * 224 * 224), (3, 2**32)):
        pieces = -(-d // 4096)  # of float64
        assert n * pieces * 24 <= workspace(n, d) <= n * (pieces * 24 + 40) + 32  # three sums each; counters, a move


@pytest.fixture(scope="module")
def usage() -> dict[tuple[str, str], dict[str, int]]:
    """Registers, stack and local memory by (architecture, mangled name)."""
    found, architecture, name = {}, "", ""
    for line in dump("-res-usage").splitlines():
        if match := re.match(r"arch = (\w+)", line):
            architecture = match[1]
        elif match := re.search(r"Function (\w+):", line):
            name = match[1]
        elif "REG:" in line:
            found[architecture, name] = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", line)}
    return found


def test_no_kernel_spills(usage):
    assert len(usage) > 60
    for (architecture, name), used in usage.items():
        assert used["LOCAL"] == 0, (architecture, name, used)
        reduces_large_angles = "6Normal" in name  # sin and cos of a double keep a table of pi's digits for them
        assert used["STACK"] == 0 or reduces_large_angles, (architecture, name, used)


def test_two_blocks_of_rows_fit_a_multiprocessor(usage):
    rows = [used["REG"] for (_, name), used in usage.items() if "whole_rows" in name or "cut_rows" in name]
    assert len(rows) >= 40
    assert max(rows) <= 64  # of 65536 registers, for 2 blocks of 512 threads


def test_every_storage_type_is_read_and_written_in_16_bytes(usage):
    (architecture, _), *_ = usage  # one of those that were built
    printed = dump("-arch", architecture, "-sass")
    kernels = {}
    for function in re.split(r"Function : ", printed)[1:]:
        kernels.setdefault(function.split(maxsplit=1)[0], []).append(function)
    steps = [name for name in kernels if "step_pieces" in name]
    rows = [name for name in kernels if "whole_rows" in name or "cut_rows" in name]
    writers = [*steps, *(name for name in rows if re.search("L2Step|FoscStep|Atas", name))]
    writers += [name for name in kernels if "crop_flip" in name or ("philox" in name and "fill" in name)]
    assert len(steps) == 4
    assert len(writers) >= 4 + 2 * 3 * 4 + 3
    for name in (*steps, *rows):
        assert all(".128" in re.sub(r"STG\S*", "", code) for code in kernels[name]), name
    for name in writers:
        assert all(re.search(r"STG\.E\S*\.128", code) for code in kernels[name]), name
