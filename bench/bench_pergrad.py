"""The clipped gradient in units of a plain step, against other libraries and naive loops, on one CPU thread.

    pip install opacus backpack-for-pytorch
    pip install transformers git+https://github.com/awslabs/fast-differential-privacy
    cd bench && pytest bench_pergrad.py --benchmark-json=pergrad.json && python -m tools.format_results pergrad.json

Libraries that are not installed are skipped. A library whose gradient differs from ours fails.
"""

import pytest
import torch
from baselines.per_example_libraries import BASELINES, OURS, PLAIN, STEPS, Step
from tools.memory import measure
from torch import Tensor, nn
from torch.nn import functional as F

from pyengm.models import build
from pyengm.pergrad import per_example_grad_norms

N = 32
SLOW = ("the paper's loop", "BackPACK gradients")  # many seconds a step: fewer rounds, and only at width 32
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
    error = _error(name, width, n)
    assert error < 1e-3, f"{name} computes a gradient that differs from pyengm's"
    model, x, y = _problem(width, n)
    alpha = _median_norm(model, x, y)
    step, unit = _build(name, model, x, y, alpha), _build(PLAIN, model, x, y, alpha)
    info = {"table": "time", "name": name, "version": STEPS[name].version(), "width": width, "n": n, "error": error}
    relative_cost(step, unit, rounds, **info)


def _error(name: str, width: int, n: int) -> float:
    """Relative error of the gradient against pyengm's two passes, in float32."""
    model, x, y = _problem(width, n)
    # Rounding can change the sign of a ReLU's input, which alone changes a gradient by some 1e-3.
    _replace_relu(model)
    alpha = _median_norm(model, x, y)
    steps = [_build(which, model, x, y, alpha) for which in (name, "pyengm, two passes")]
    gradient, expected = (torch.cat([part.flatten() for part in step()]) for step in steps)
    return ((gradient - expected).norm() / expected.norm()).item()


def _memory(benchmark, name: str, width: int, n: int) -> None:
    _build(name, *_problem(8, 1), 1.0)  # skips libraries that are not installed
    plain = measure(PLAIN, width, n)
    memory = benchmark.pedantic(measure, args=(name, width, n), rounds=1)
    peak, own = memory["peak"], memory["peak"] - memory["before"]
    plain_peak, plain_own = plain["peak"], plain["peak"] - plain["before"]
    benchmark.extra_info.update(
        {"table": "memory", "name": name, "version": STEPS[name].version(), "width": width, "n": n}
        | {"plain peak": plain_peak, "peak": peak, "peak ratio": peak / plain_peak}
        | {"plain own": plain_own, "own": own, "own ratio": own / plain_own}
    )


def _problem(width: int, n: int) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    return build("resnet18", norm_layer="gn", width=width), torch.rand(n, 3, 32, 32), torch.arange(n) % 10


def _replace_relu(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.ReLU):
            setattr(module, name, nn.SiLU())
        _replace_relu(child)


def _median_norm(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The median norm: as alpha it clips half of the examples."""
    losses = F.cross_entropy(model(x), y, reduction="none")
    return per_example_grad_norms(losses, model.parameters()).median().item()


def _build(name: str, model: nn.Module, x: Tensor, y: Tensor, alpha: float) -> Step:
    try:
        return STEPS[name].build(model, x, y, alpha)
    except ImportError as error:
        pytest.skip(f"{name} cannot be imported: {error}")
