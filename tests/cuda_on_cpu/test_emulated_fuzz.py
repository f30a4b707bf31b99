"""Random calls of every op: emulated CUDA kernels, references and CPU kernels agree; see fuzz_cases.py."""

import pytest
from cuda_on_cpu.fuzz_cases import CASES, run_case
from helpers.memory import nan_in_fresh_memory

ON_EVERY_RUN = 28  # cases of each op: 308 in all


@pytest.mark.parametrize("name", CASES)
def test_backends_agree(emulated, name):
    with nan_in_fresh_memory():
        for seed in range(ON_EVERY_RUN):
            run_case(emulated, name, seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_backends_agree_in_many_cases(emulated, name):
    with nan_in_fresh_memory():
        for seed in range(ON_EVERY_RUN, 500):
            run_case(emulated, name, seed)
