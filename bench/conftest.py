"""Interleaved comparisons: every round times each candidate once, so that a noisy machine disturbs all alike.

Each benchmark test calls `compare`; the table of ratios is printed at the end of the session.
"""

import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

_rows: list[tuple[str, str, str, str]] = []


@pytest.fixture
def compare(benchmark, request) -> Callable:
    """compare(ours, baselines, rounds): times ours through pytest-benchmark and prints baseline / ours by round."""

    def run(ours: Callable[[], object], baselines: dict[str, Callable[[], object]], rounds: int = 200) -> None:
        candidates = {"pyengm": ours, **baselines}
        times: dict[str, list[float]] = {name: [] for name in candidates}
        for round_number in range(rounds + 5):
            for name, candidate in candidates.items():
                _synchronize()
                start = time.perf_counter()
                candidate()
                _synchronize()
                if round_number >= 5:
                    times[name].append(time.perf_counter() - start)
        for name in baselines:
            ratios = sorted(theirs / own for theirs, own in zip(times[name], times["pyengm"], strict=True))
            p20, p50, p80 = (ratios[int(q * len(ratios))] for q in (0.2, 0.5, 0.8))
            median = sorted(times[name])[rounds // 2]
            _rows.append((request.node.name, name, f"{1e6 * median:.1f} us", f"{p50:.2f} ({p20:.2f} to {p80:.2f})"))
            benchmark.extra_info[f"ratio to {name}"] = p50
        benchmark.pedantic(ours, rounds=rounds, warmup_rounds=5)

    return run


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def pytest_terminal_summary(terminalreporter) -> None:
    if not _rows:
        return
    terminalreporter.section("median time of the baseline / pyengm's, round by round (p20 to p80)")
    terminalreporter.write_line(f"{_machine()}")
    widths = [max(len(row[i]) for row in _rows) for i in range(4)]
    for row in _rows:
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
