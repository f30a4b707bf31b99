"""The faults that gpu_check.sh plants for compute-sanitizer are faults: the emulator reports each of them."""

import subprocess

import pytest
from cuda_on_cpu.compile_kernels import CSRC, build_program, obstacle

SOURCE = CSRC.parent / "bench/tools/planted_faults.cu"


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    if (reason := obstacle()) is not None:
        pytest.skip(reason)
    return build_program(SOURCE, tmp_path_factory.mktemp("planted"))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("bounds", "outside all tensors"),
        ("race", "a race"),
        ("unwritten", "nobody wrote"),
        ("barrier", "barrier"),
    ],
)
def test_each_is_reported(program, fault, message):
    done = subprocess.run([program, fault], capture_output=True, text=True)
    assert done.returncode == 99
    assert message in done.stderr


def test_without_a_fault_nothing_is(program):
    done = subprocess.run([program, "none"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_another_word_is_an_error(program):
    assert subprocess.run([program, "overflow"], capture_output=True).returncode == 2
