"""Two things timed in turn, so that noise disturbs both alike, and their ratios."""

import time
from collections.abc import Callable, Iterable

import torch


def in_turn(
    benchmark, step: Callable[[], object], unit: Callable[[], object], rounds: int
) -> list[tuple[float, float]]:
    """Seconds of (step, unit) by round, after one to warm up; [] with --benchmark-disable."""
    units: list[float] = []
    benchmark.pedantic(
        lambda: (step(), _synchronize()),
        setup=lambda: units.append(seconds(unit)),
        rounds=rounds,
        warmup_rounds=1,
    )
    return [] if benchmark.disabled else [*zip(benchmark.stats.stats.data, units[-rounds:], strict=True)]


def quantiles(ratios: Iterable[float]) -> list[float]:
    """p20, the median and p80."""
    ratios = sorted(ratios)
    return [ratios[int(q * len(ratios))] for q in (0.2, 0.5, 0.8)]


def in_words(ratios: Iterable[float]) -> str:
    """The median of the ratios (p20 to p80)."""
    p20, p50, p80 = quantiles(ratios)
    return f"{p50:.2f} ({p20:.2f} to {p80:.2f})"


def seconds(candidate: Callable[[], object]) -> float:
    _synchronize()
    start = time.perf_counter()
    candidate()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
