"""Interleaved comparisons: every round times a baseline and ours in turn, so that noise disturbs both alike.

Each benchmark test calls `compare`; the table of ratios is printed at the end of the session.
"""

import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

WARM_UP = 5  # rounds
_rows: list[tuple[str, ...]] = []


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture
def compare(benchmark, request) -> Callable:
    """compare(ours, baselines, rounds): times ours through pytest-benchmark and prints baseline / ours by round."""

    def run(ours: Callable[[], object], baselines: dict[str, Callable[[], object]], rounds: int = 200) -> None:
        for name, theirs in baselines.items():
            pairs = [(_seconds(theirs), _seconds(ours)) for _ in range(rounds + WARM_UP)][WARM_UP:]
            ratios = sorted(baseline / own for baseline, own in pairs)
            p20, p50, p80 = (ratios[int(q * rounds)] for q in (0.2, 0.5, 0.8))
            medians = [f"{1e6 * sorted(times)[rounds // 2]:.1f} us" for times in zip(*pairs, strict=True)]
            _rows.append((request.node.name, name, *medians, f"{p50:.2f} ({p20:.2f} to {p80:.2f})"))
            benchmark.extra_info[f"ratio to {name}"] = p50
        benchmark.pedantic(ours, rounds=rounds, warmup_rounds=WARM_UP)

    return run


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
    if not _rows:
        return
    terminalreporter.section("baseline / pyengm, median of the rounds (p20 to p80)")
    terminalreporter.write_line(_machine())
    table = [("benchmark", "baseline", "its median", "pyengm's", "ratio"), *_rows]
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
