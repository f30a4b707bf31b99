"""The small cases that gpu_check.sh runs under compute-sanitizer: every CUDA kernel is among them."""

from cuda_on_cpu.signatures import kernel_names
from tools.every_kernel import every_kernel

from pyengm.ops import available_backends


def test_every_cuda_kernel_is_called(emulated):
    emulated.calls.clear()
    with emulated.replaces_cpu_kernels(seed=1):
        every_kernel("cpu")
    assert {*emulated.calls} == {*kernel_names()}


def test_the_kernels_are_those_of_the_module(emulated):
    kernels = {name for name in dir(emulated.module) if not name.startswith("_")}
    assert kernels == {*kernel_names(), "rows_workspace"}


def test_on_the_cpu():
    assert "cpu" in available_backends()
    assert every_kernel("cpu") > 50
