"""Interleaved comparisons: every round times a baseline and ours in turn, so that noise disturbs both alike.

Each benchmark test calls `compare` or `price`; the tables of ratios are printed at the end of the session.
"""

import platform
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median

import pytest
import torch

WARM_UP = 5  # rounds
_rows: list[tuple[str, ...]] = []
_prices: list[tuple[str, ...]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--baseline-dir", type=Path, help="folder with the authors' repositories, see bench_authors.py")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture
def compare(benchmark, request) -> Callable:
    """compare(ours, baselines, rounds): times ours through pytest-benchmark and prints baseline / ours by round."""

    def run(
        ours: Callable[[], object],
        baselines: dict[str, Callable[[], object]],
        rounds: int = 200,
        warm_up: int = WARM_UP,
    ) -> None:
        for name, theirs in baselines.items():
            pairs = [(_seconds(theirs), _seconds(ours)) for _ in range(rounds + warm_up)][warm_up:]
            p20, p50, p80 = _quantiles(baseline / own for baseline, own in pairs)
            medians = [f"{1e6 * sorted(times)[rounds // 2]:.1f} us" for times in zip(*pairs, strict=True)]
            _rows.append((request.node.name, name, *medians, f"{p50:.2f} ({p20:.2f} to {p80:.2f})"))
            benchmark.extra_info[f"ratio to {name}"] = p50
        benchmark.pedantic(ours, rounds=rounds, warmup_rounds=warm_up)

    return run


@pytest.fixture
def price(benchmark, request) -> Callable:
    """price(step, unit, rounds, **info): times step through pytest-benchmark, a unit before every round.

    extra_info gets info, the medians "seconds" and "unit", and the quantiles "p20", "ratio" and "p80" of step / unit.
    """

    def run(step: Callable[[], object], unit: Callable[[], object], rounds: int, **info: object) -> None:
        units: list[float] = []
        benchmark.pedantic(
            lambda: (step(), _synchronize()),
            setup=lambda: units.append(_seconds(unit)),
            rounds=rounds,
            warmup_rounds=1,
        )
        if benchmark.disabled:
            return
        seconds, units = benchmark.stats.stats.data, units[-rounds:]
        p20, p50, p80 = _quantiles(own / one for own, one in zip(seconds, units, strict=True))
        benchmark.extra_info.update(info, seconds=median(seconds), unit=median(units), p20=p20, ratio=p50, p80=p80)
        medians = [f"{1e3 * median(times):.1f} ms" for times in (units, seconds)]
        _prices.append((request.node.name, *medians, f"{p50:.2f} ({p20:.2f} to {p80:.2f})"))

    return run


def _quantiles(ratios: Iterable[float]) -> list[float]:
    ratios = sorted(ratios)
    return [ratios[int(q * len(ratios))] for q in (0.2, 0.5, 0.8)]


def _seconds(candidate: Callable[[], object]) -> float:
    _synchronize()
    start = time.perf_counter()
    candidate()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def pytest_terminal_summary(terminalreporter) -> None:
    header = ("benchmark", "baseline", "its median", "pyengm's", "ratio")
    _print_table(terminalreporter, "baseline / pyengm, median of the rounds (p20 to p80)", header, _rows)
    header = ("benchmark", "unit", "step", "ratio")
    _print_table(terminalreporter, "step / unit, median of the rounds (p20 to p80)", header, _prices)


def _print_table(terminalreporter, title: str, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    if not rows:
        return
    terminalreporter.section(title)
    terminalreporter.write_line(_machine())
    table = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        terminalreporter.write_line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))


def _machine() -> str:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
    ).stdout.strip()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{_processor()}{gpu}, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}, commit {commit or 'unknown'}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
