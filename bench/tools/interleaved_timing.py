"""Times two callables in turn, round by round, so that noise disturbs both alike, and describes their ratios."""

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture


def time_interleaved(
    benchmark: "BenchmarkFixture", step: Callable[[], object], unit: Callable[[], object], rounds: int
) -> list[tuple[float, float]]:
    """Times step and unit in turn, after one round of warm-up.

    Args:
        benchmark: The fixture of pytest-benchmark, which records the times of step.
        step: The callable of interest.
        unit: The callable that is compared with it; it runs before every call of step.
        rounds: How often both run.

    Returns:
        Seconds of (step, unit) by round; an empty list with --benchmark-disable.
    """
    unit_times: list[float] = []
    benchmark.pedantic(
        lambda: (step(), _synchronize()),
        setup=lambda: unit_times.append(time_call(unit)),
        rounds=rounds,
        warmup_rounds=1,
    )
    if benchmark.disabled or benchmark.stats is None:
        return []
    return [*zip(benchmark.stats.stats.data, unit_times[-rounds:], strict=True)]


def quantiles(ratios: Iterable[float]) -> list[float]:
    """p20, the median and p80."""
    ratios = sorted(ratios)
    return [ratios[int(q * len(ratios))] for q in (0.2, 0.5, 0.8)]


def format_quantiles(ratios: Iterable[float]) -> str:
    """The median of the ratios, with p20 and p80 in brackets."""
    p20, p50, p80 = quantiles(ratios)
    return f"{p50:.2f} ({p20:.2f} to {p80:.2f})"


def time_call(function: Callable[[], object]) -> float:
    """Seconds of one call, with the work that it leaves on the GPU."""
    _synchronize()
    start = time.perf_counter()
    function()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
