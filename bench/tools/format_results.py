"""Tables from the JSON of bench_pergrad.py: cd bench && python -m tools.format_results pergrad.json [more.json ...]

Time and memory are in units of a plain forward and backward step of the same model and batch.
"""

import json
import sys
from pathlib import Path
from statistics import median

MAIN_N = 32
GROWTH_WIDTH = 16


def main() -> None:
    runs = []
    for path in sys.argv[1:]:
        report = json.loads(Path(path).read_text())
        runs += [run["extra_info"] for run in report["benchmarks"] if "table" in run["extra_info"]]
        machine, commit = report["machine_info"], report["commit_info"]
        changes = " with changes" if commit["dirty"] else ""
        print(f"{machine['cpu'].get('brand_raw', machine['machine'])}, Python {machine['python_version']}, ", end="")
        print(f"commit {commit['id'][:7]}{changes}, {report['datetime'][:10]}")
    print("versions:", ", ".join(sorted({run["version"] for run in runs})))

    for title, column, chosen in (
        (f"n = {MAIN_N}, by width", "width", [run for run in runs if run["n"] == MAIN_N]),
        (f"width {GROWTH_WIDTH}, by n", "n", _growing(runs)),
    ):
        times = [run for run in chosen if run["table"] == "time"]
        _table(f"time, {title}", times, column, "ratio", ("unit", 1e3, "ms"))
        memory = [run for run in chosen if run["table"] == "memory"]
        _table(f"peak memory of the process, {title}", memory, column, "peak ratio", ("plain peak", 1, "MiB"))
        _table(f"the step's part of it, {title}", memory, column, "own ratio", ("plain own", 1, "MiB"))


def _growing(runs: list[dict]) -> list[dict]:
    names = {run["name"] for run in runs if run["n"] != MAIN_N}
    return [run for run in runs if run["name"] in names and run["width"] == GROWTH_WIDTH]


def _table(title: str, runs: list[dict], column: str, key: str, unit: tuple[str, float, str]) -> None:
    """Prints one row per step and one column per width or n, the plain step first; later runs replace earlier ones."""
    if not runs:
        return
    columns = sorted({run[column] for run in runs})
    cells = {(run["name"], run[column]): f"{run[key]:.2f}" for run in runs}
    names = list(dict.fromkeys(run["name"] for run in runs))
    unit_key, factor, symbol = unit
    plain = [median(run[unit_key] for run in runs if run[column] == value) for value in columns]
    rows = [["", *map(str, columns)], [f"plain step, {symbol}", *(f"{factor * value:.0f}" for value in plain)]]
    rows += [[name, *(cells.get((name, value), "-") for value in columns)] for name in names]
    widths = [max(map(len, entries)) for entries in zip(*rows, strict=True)]
    print(f"\n{title}")
    for first, *rest in rows:
        print("  ".join([first.ljust(widths[0]), *map(str.rjust, rest, widths[1:])]))


if __name__ == "__main__":
    main()
