"""The emulator finds kernels that are broken on purpose: what it does not report is worth something."""

import re
import shutil

import pytest
from cuda_on_cpu.compile_kernels import build
from cuda_on_cpu.emulator import Emulator
from cuda_on_cpu.fuzz_cases import run_case
from cuda_on_cpu.mutants import QUICK, SLOW, broken_sources
from helpers.memory import nan_in_fresh_memory

CASES = 25  # of each op that runs the broken kernel


def found(emulator: Emulator, cases: tuple[str, ...]) -> str:
    """What the first case says that fails, or nothing."""
    with nan_in_fresh_memory():
        for seed in range(CASES):
            for name in cases:
                try:
                    run_case(emulator, name, seed)
                except AssertionError as error:
                    return str(error)
    return ""


@pytest.fixture(scope="module")
def quick(emulator, tmp_path_factory) -> Emulator:
    """One build of all quick mutants, which are in different files; what is not broken is not compiled again."""
    folder = tmp_path_factory.mktemp("mutants")
    shutil.copytree(emulator.path.parent, folder / "build")
    return Emulator(build(folder / "build", sources=broken_sources(folder, *QUICK)))


@pytest.mark.parametrize(("mutant", "message"), QUICK.items(), ids=[mutant.name for mutant in QUICK])
def test_a_fault_is_found(quick, mutant, message):
    assert re.search(message, found(quick, mutant.cases))


@pytest.mark.slow
@pytest.mark.parametrize("mutant", SLOW, ids=[mutant.name for mutant in SLOW])
def test_every_fault_is_found(emulator, tmp_path, mutant):
    shutil.copytree(emulator.path.parent, tmp_path / "build")
    broken = Emulator(build(tmp_path / "build", sources=broken_sources(tmp_path, mutant)))
    try:
        assert found(broken, mutant.cases)
    finally:
        broken.release_stacks()
