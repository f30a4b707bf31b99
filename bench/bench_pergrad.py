"""The clipped gradient of a ResNet-18 in plain steps, against other libraries and naive loops, on one CPU thread.

    pip install opacus backpack-for-pytorch
    pip install transformers git+https://github.com/awslabs/fast-differential-privacy
    cd bench && pytest bench_pergrad.py --benchmark-json=pergrad.json && python -m tools.format_results pergrad.json

Libraries that are not installed are skipped. A library whose gradient differs from ours fails. The libraries on other
models, among them transformers with dropped paths and padded texts: tools/compare_libraries.py.
"""

import pytest
from baselines.per_example_libraries import BASELINES, OURS, PLAIN, STEPS
from baselines.per_example_models import make
from tools.compare_libraries import SLOW, TOLERANCE, gradient_error, in_pairs
from tools.memory import measure

N = 32
GROWING = (*OURS, "fastDP", "Opacus ghost")  # the fastest library and the best known one
SIZES = (8, 16, 64, 128, 256)  # 32 is in the tests over the widths

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # of the libraries, about the newest torch
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.mark.parametrize("name", [*OURS, *BASELINES])
@pytest.mark.parametrize("width", [16, 32, 64])
def test_time(relative_cost, name, width):
    if name in SLOW and width != 32:
        pytest.skip("slow: only at width 32")
    _time(relative_cost, name, width, N, rounds=2 if name in SLOW else 5)


@pytest.mark.parametrize("name", GROWING)
@pytest.mark.parametrize("n", SIZES)
def test_time_with_n(relative_cost, name, n):
    _time(relative_cost, name, 16, n, rounds=5)


@pytest.mark.parametrize("name", [*OURS, *BASELINES])
@pytest.mark.parametrize("width", [16, 32, 64])
def test_memory(benchmark, name, width):
    if name in SLOW and width != 32:
        pytest.skip("slow: only at width 32")
    _memory(benchmark, name, width, N)


@pytest.mark.parametrize("name", GROWING)
@pytest.mark.parametrize("n", SIZES)
def test_memory_with_n(benchmark, name, n):
    _memory(benchmark, name, 16, n)


def _time(relative_cost, name: str, width: int, n: int, rounds: int) -> None:
    problem = make("resnet18", width=width, n=n)
    try:
        error = gradient_error(name, problem)
        step, unit = in_pairs(name, problem)
    except ImportError as missing:
        pytest.skip(f"{name} cannot be imported: {missing}")
    assert error < TOLERANCE, f"{name} computes a gradient that differs from pyengm's"
    info = {"table": "time", "name": name, "version": STEPS[name].version(), "width": width, "n": n, "error": error}
    relative_cost(step, unit, rounds, **info)


def _memory(benchmark, name: str, width: int, n: int) -> None:
    try:
        STEPS[name].build(make("resnet18", width=8, n=1), 1.0)
    except ImportError as missing:
        pytest.skip(f"{name} cannot be imported: {missing}")
    plain = measure(PLAIN, "resnet18", width=width, n=n)
    memory = benchmark.pedantic(lambda: measure(name, "resnet18", width=width, n=n), rounds=1)
    peak, own = memory["peak"], memory["peak"] - memory["before"]
    plain_peak, plain_own = plain["peak"], plain["peak"] - plain["before"]
    benchmark.extra_info.update(
        {"table": "memory", "name": name, "version": STEPS[name].version(), "width": width, "n": n}
        | {"plain peak": plain_peak, "peak": peak, "peak ratio": peak / plain_peak}
        | {"plain own": plain_own, "own": own, "own ratio": own / plain_own}
    )
