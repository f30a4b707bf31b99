"""Fixtures and options of the benchmarks: every round times a baseline and ours in turn, so that noise disturbs both.

Each benchmark calls `compare` or `relative_cost`, or measures for itself and calls `tabulate`. The tables are printed
at the end of the session, and written to the file that --tables names.
"""

import shlex
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import pytest
import torch
from baselines import author_baselines
from tools.interleaved_timing import format_quantiles, quantiles, time_call, time_interleaved
from tools.machine import describe_machine

WARM_UP = 5  # rounds
RATIOS = "baseline / pyengm, median of the rounds (p20 to p80)"
RELATIVE_COSTS = "step / unit, median of the rounds (p20 to p80)"
_tables: dict[str, list[dict[str, str]]] = defaultdict(list)  # rows by title; a row has its cells by column


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--baseline-dir", type=Path, help="folder with the authors' repositories, see author_baselines.py")
    parser.addoption("--tables", type=Path, help="new file for the tables of the session")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--tables")
    if path is not None and (path.exists() or not path.parent.is_dir()):
        raise pytest.UsageError(f"--tables {path}: expected a new file in a folder that exists")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch computes on one CPU thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tabulate() -> Callable[[str, dict[str, str]], None]:
    """tabulate(title, row) adds a row to the table of that title: cells by column, the same columns in all rows."""
    return lambda title, row: _tables[title].append(row)


@pytest.fixture
def author_repository(request) -> Callable[[str], tuple[Path, str]]:
    """author_repository(name) returns the folder with all repositories, and a title for the one of this name.

    It skips the benchmark where the repository is missing.
    """

    def find(name: str) -> tuple[Path, str]:
        root = request.config.getoption("--baseline-dir")
        repository, commit = author_baselines.REPOSITORIES[name]
        if root is None or not (root / name).is_dir():
            pytest.skip(f"--baseline-dir has no folder {name} with {repository} at {commit}")
        return root, f"{repository.partition('.com/')[2]} {commit[:7]}"

    return find


@pytest.fixture
def compare(benchmark, request, tabulate) -> Callable[..., None]:
    """compare(ours, baselines, rounds) times ours through pytest-benchmark, and tabulates baseline / ours by round."""

    def run(
        ours: Callable[[], object],
        baselines: dict[str, Callable[[], object]],
        rounds: int = 200,
        warm_up: int = WARM_UP,
    ) -> None:
        for name, theirs in baselines.items():
            times = [(time_call(theirs), time_call(ours)) for _ in range(rounds + warm_up)][warm_up:]
            ratios = [baseline / own for baseline, own in times]
            theirs_median, own_median = (
                f"{1e6 * sorted(column)[rounds // 2]:.1f} us" for column in zip(*times, strict=True)
            )
            row = {"benchmark": request.node.name, "baseline": name, "its median": theirs_median}
            tabulate(RATIOS, row | {"pyengm's": own_median, "ratio": format_quantiles(ratios)})
            benchmark.extra_info[f"ratio to {name}"] = quantiles(ratios)[1]
        benchmark.pedantic(ours, rounds=rounds, warmup_rounds=warm_up)

    return run


@pytest.fixture
def relative_cost(benchmark, request, tabulate) -> Callable[..., None]:
    """relative_cost(step, unit, rounds, **info) times step through pytest-benchmark, and unit before every round.

    extra_info gets info, the medians "seconds" and "unit", and the quantiles "p20", "ratio" and "p80" of step / unit.
    """

    def run(step: Callable[[], object], unit: Callable[[], object], rounds: int, **info: object) -> None:
        times = time_interleaved(benchmark, step, unit, rounds)
        if not times:
            return
        ratios = [own / one for own, one in times]
        own, one = (median(column) for column in zip(*times, strict=True))
        p20, p50, p80 = quantiles(ratios)
        benchmark.extra_info.update(info, seconds=own, unit=one, p20=p20, ratio=p50, p80=p80)
        row = {"benchmark": request.node.name, "unit": f"{1e3 * one:.1f} ms", "step": f"{1e3 * own:.1f} ms"}
        tabulate(RELATIVE_COSTS, row | {"ratio": format_quantiles(ratios)})

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not _tables:
        return
    for title, rows in _tables.items():
        terminalreporter.section(title)
        terminalreporter.write_line(describe_machine())
        for line in _format_table(rows):
            terminalreporter.write_line(line)
    path = config.getoption("--tables")
    if path is not None:
        # DIR stands for the path of the folder, which differs between machines.
        baselines = str(config.getoption("--baseline-dir") or "DIR")
        command = shlex.join(["pytest", *config.invocation_params.args]).replace(baselines, "DIR")
        tables = [f"{title}\n" + "\n".join(_format_table(rows)) for title, rows in _tables.items()]
        with open(path, "x") as file:
            file.write("\n\n".join([f"{command}\n{describe_machine()}", *tables]) + "\n")


def _format_table(rows: list[dict[str, str]]) -> list[str]:
    table = [tuple(rows[0]), *(tuple(row[column] for column in rows[0]) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
