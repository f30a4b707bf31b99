"""PTX with one kind of instruction changed, as if it were translated wrongly: the fuzz cases find every one."""

import re
import shutil
from typing import NamedTuple

import pytest
from cuda_on_cpu.emulator import Emulator
from cuda_on_cpu.fuzz_cases import run_case
from cuda_on_cpu.ptx.compile_ptx import build
from helpers.memory import nan_in_fresh_memory

pytestmark = pytest.mark.slow

CASES = 40  # of the op that runs the changed kernel


class Fault(NamedTuple):
    """A change of the PTX of one source: all places that match."""

    name: str
    source: str
    pattern: str
    new: str
    case: str
    message: str  # what the emulator or the comparison says of it


FAULTS = [
    Fault("a sum for a difference", "row_sums", r"sub\.s64", "add.s64", "row_sums", "outside all tensors|not close"),
    Fault("one row too many", "row_sums", r"setp\.ge\.s64", "setp.gt.s64", "row_sums", "outside all tensors"),
    Fault("addresses taken for aligned", "row_sums", r"(and\.b64\s+\S+ \S+) 15;", r"\1 0;", "row_sums", "misaligned"),
    Fault("a lane further", "row_sums", r"(shfl\.sync\.bfly\.b32\s+\S+ \S+) %r\d+", r"\1 1", "row_sums", "not close"),
    Fault("factors with a sign", "philox", r"mul\.wide\.u32", "mul.wide.s32", "philox", "not equal|not close"),
    Fault("a shift with a sign", "philox", r"shr\.u32", "shr.s32", "philox", "not equal|not close"),
    Fault("a bound with a sign", "crop_flip", r"setp\.ge\.u64", "setp.ge.s64", "crop_flip", "outside all tensors"),
    Fault("no barriers", "regression_weights", r"bar\.sync\s+0;", "", "regression", "a race|nobody wrote"),
    Fault("no fences", "row_norms", r"membar\.gl;", "", "row_norms", "a race"),
    Fault("a weak read", "atas_step", r"ld\.volatile\.global", "ld.global", "atas_step_", "a race"),
    Fault("another 16-bit type", "pgd_linf_step", r"rn\.bf16", "rn.f16", "pgd_linf_step_", "not equal|not close"),
    Fault("nan for numbers", "pgd_linf_step", r"setp\.num", "setp.nan", "pgd_linf_step_", "not equal|not close"),
    Fault("x_adv as a constant", "pgd_linf_step", r"ld\.global\.(?=[vfu])", "ld.global.nc.", "pgd_linf_step_",
          r"ld\.global\.nc"),
    Fault("a product for a quotient", "clip_weights", r"div\.rn", "mul.rn", "clip_weights", "not equal|not close"),
]  # fmt: skip


def found(emulator: Emulator, case: str) -> str:
    """What the first case says that fails, or nothing."""
    with nan_in_fresh_memory():
        for seed in range(CASES):
            try:
                run_case(emulator, case, seed)
            except AssertionError as error:
                return str(error)
    return ""


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_a_changed_instruction_is_found(ptx_emulator, tmp_path, fault):
    shutil.copytree(ptx_emulator.path.parent, tmp_path / "build")
    ptx = tmp_path / "build" / f"{fault.source}.ptx"
    text, changes = re.subn(fault.pattern, fault.new, ptx.read_text())
    assert changes > 0
    ptx.write_text(text)
    broken = Emulator(build(tmp_path / "build"))
    try:
        assert re.search(fault.message, found(broken, fault.case))
    finally:
        broken.release_stacks()
