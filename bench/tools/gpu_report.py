"""The results of gpu_check.sh and gpu_train.sh as JSON and Markdown.

    cd bench && python -m tools.gpu_report FOLDER OUT KIND   # writes OUT/gpu_KIND_<gpu>.json and .md

FOLDER holds the files of a run: steps.tsv (step, how it ended, seconds, remark), tests.xml (JUnit), bench_*.json
(pytest-benchmark), train_*.json (timed_training.py). Any of them may be missing. machine.json is written on the first
call, so that reports between two steps take no time.
"""

import csv
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any
from xml.etree import ElementTree

REPO = Path(__file__).resolve().parents[2]
QUANTILES = ("p20", "p50", "p80")


def main(folder: str, out: str, kind: str) -> None:
    facts = Path(folder, "machine.json")
    if not facts.exists():
        facts.write_text(json.dumps(machine(), indent=2) + "\n")
    write(Path(folder), Path(out), kind)


def machine() -> dict[str, Any]:
    """GPU, driver, versions and commit; "unknown" where they cannot be found."""
    import torch  # seconds, which later calls need not spend

    from tools.machine import processor

    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return {
        "gpu": gpu.name if gpu else "none",
        "compute_capability": f"{gpu.major}.{gpu.minor}" if gpu else "none",
        "gpu_gib": round(gpu.total_memory / 2**30) if gpu else 0,
        "driver": _output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0],
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda or "none",
        "cudnn": str(torch.backends.cudnn.version()),
        "triton": _version("triton"),
        "nvcc": next(iter(re.findall(r"release ([\d.]+)", _output_of(_nvcc(), "--version"))), "unknown"),
        "pyengm": _version("pyengm"),
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def commit(repo: Path = REPO) -> str:
    """The commit of the tree, with a remark where it has changes; else the value of PYENGM_COMMIT; else "unknown"."""
    if Path(_output_of("git", "-C", repo, "rev-parse", "--show-toplevel")) != repo:  # no repository, or a parent's
        return os.environ.get("PYENGM_COMMIT") or "unknown"
    return _output_of("git", "-C", repo, "describe", "--always", "--exclude=*", "--dirty= with changes")


def write(folder: Path, out: Path, kind: str) -> None:
    """Writes both files and prints the Markdown.

    Args:
        folder: Folder with the files of a run, and machine.json with the result of `machine`.
        out: Folder for the results.
        kind: "check" or "train".

    Raises:
        SystemExit: Tests ran, and none of them passed.
    """
    report = collect(folder)
    stem = f"gpu_{kind}_{re.sub('[^a-z0-9]+', '_', report['machine']['gpu'].lower()).strip('_')}"
    text = markdown(report, f"gpu_{kind}.sh")
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{stem}.json").write_text(json.dumps(report, indent=2) + "\n")
    (out / f"{stem}.md").write_text(text)
    print(f"\n{text}\n{out / stem}.json and .md")
    for name, tests in report["tests"].items():
        if not tests["passed"]:
            sys.exit(f"{name}: no test passed, {tests['skipped']} were skipped; expected some to pass")


def collect(folder: Path) -> dict[str, Any]:
    """Everything in the files of a run, by kind: machine, steps, tests, benchmarks, runs."""
    steps = folder / "steps.tsv"
    rows = csv.reader(steps.read_text().splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE) if steps.exists() else ()
    return {
        "machine": json.loads((folder / "machine.json").read_text()),
        "steps": [dict(zip(("name", "ended", "seconds", "remark"), row, strict=True)) for row in rows],
        "tests": {path.stem: _junit(path) for path in sorted(folder.glob("*.xml"))},
        "benchmarks": [row for path in _filled(folder, "bench_*.json") for row in _benchmarks(path)],
        "runs": {path.stem[len("train_") :]: json.loads(path.read_text()) for path in _filled(folder, "train_*.json")},
    }


def _filled(folder: Path, pattern: str) -> list[Path]:
    return [path for path in sorted(folder.glob(pattern)) if path.stat().st_size]  # killed runs leave empty files


def _junit(path: Path) -> dict[str, Any]:
    """Counts of tests by outcome, and the names of those that failed, with the first line of their message."""
    counts: dict[str, int] = dict.fromkeys(("passed", "failed", "skipped"), 0)
    failures: list[dict[str, str]] = []
    for case in ElementTree.parse(path).iterfind(".//testcase[@name]"):  # an interrupted test has no name
        failure_node = next((child for child in case if child.tag in ("failure", "error")), None)
        ended = "failed" if failure_node is not None else "passed" if case.find("skipped") is None else "skipped"
        counts[ended] += 1
        if failure_node is not None:
            line = (failure_node.get("message") or "").partition("\n")[0]
            failures.append({"test": f"{case.get('classname')}::{case.get('name')}", "message": line})
    return {**counts, "failures": failures}


def _benchmarks(path: Path) -> list[dict[str, Any]]:
    found = json.loads(path.read_text())["benchmarks"]
    return [
        {"file": path.stem, "name": run["name"], "median": run["stats"]["median"], "info": run["extra_info"]}
        for run in found
    ]


def markdown(report: dict[str, Any], title: str) -> str:
    here = report["machine"]
    parts = [
        f"# {title} on {here['gpu']}",
        f"{here['date']}, commit {here['commit']}. {here['gpu']} (compute capability {here['compute_capability']}, "
        f"{here['gpu_gib']} GiB), driver {here['driver']}; {here['processor']}, {here['cores']} cores. "
        f"pyengm {here['pyengm']}, Python {here['python']}, torch {here['torch']} (CUDA {here['torch_cuda']}, "
        f"cuDNN {here['cudnn']}), Triton {here['triton']}, nvcc {here['nvcc']}.",
    ]
    steps = [(step["name"], step["ended"], f"{step['seconds']} s", step["remark"]) for step in report["steps"]]
    parts += _table("Steps", ("step", "", "time", "remark"), steps)
    counts = [
        (name, *(str(tests[key]) for key in ("passed", "failed", "skipped"))) for name, tests in report["tests"].items()
    ]
    parts += _table("Tests", ("", "passed", "failed", "skipped"), counts)
    failures = [(f["test"], f["message"]) for tests in report["tests"].values() for f in tests["failures"]]
    parts += _table("Failures", ("test", "message"), failures)
    parts += _table("Runs", RUN_HEADER, _run_rows(report["runs"]))
    for file in dict.fromkeys(run["file"] for run in report["benchmarks"]):
        parts += _benchmark_tables(file, [run for run in report["benchmarks"] if run["file"] == file])
    return "\n\n".join(parts) + "\n"


def _benchmark_tables(file: str, runs: list[dict[str, Any]]) -> list[str]:
    """Baseline / pyengm for benchmarks with baselines, above 1 where pyengm is faster; then all other figures."""
    ratios = [
        (run["name"], _format_time(run["median"]), key.removeprefix("ratio to "), _format_ratio(value))
        for run in runs
        for key, value in run["info"].items()
        if key.startswith("ratio to ")
    ]
    figures = []
    for run in runs:
        info = {key: value for key, value in run["info"].items() if not key.startswith("ratio to ")}
        if info or not run["info"]:
            text = ", ".join(f"{key} {_format_value(value)}" for key, value in info.items())
            figures.append((run["name"], _format_time(run["median"]), text))
    parts = _table(f"{file}: baseline / pyengm", ("benchmark", "pyengm's median", "baseline", "ratio"), ratios)
    return parts + _table(file, ("benchmark", "median", "figures"), figures)


def _format_ratio(value: Any) -> str:
    """A median alone, or a median with 20th and 80th percentiles."""
    if isinstance(value, dict):
        value = [value[name] for name in QUANTILES]
    if isinstance(value, Sequence):
        low, middle, high = value
        return f"{middle:.2f} ({low:.2f} to {high:.2f})"
    return f"{value:.2f}"


RUN_HEADER = (
    "run",
    "epochs",
    "first epoch",
    "an epoch",
    "images/s",
    "in epochs of MSGD",
    "natural",
    "PGD-20",
    "peak memory",
    "options",
)


def _run_rows(runs: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for name, run in runs.items():
        times = run["epoch_seconds"]
        steady = _steady(run)
        msgd = runs.get(name.replace("_engm", "_msgd"))
        plain = _steady(msgd) if msgd else None
        rows.append(
            (
                name,
                str(len(times)),
                f"{times[0]:.1f} s" if times else "-",
                f"{steady:.1f} s" if steady else "-",
                f"{run['images'] / steady:.0f}" if steady else "-",
                f"{steady / plain:.3f}" if steady and plain else "-",
                *(f"{100 * run[key]:.1f} %" if key in run else "-" for key in ("natural", "pgd20")),
                f"{run['peak_gib']:.1f} GiB" if "peak_gib" in run else "-",
                re.sub(r"--(data|data-dir) \S+ ?", "", " ".join(run["given"])),  # temporary folders
            )
        )
    return rows


def _steady(run: dict[str, Any]) -> float | None:
    """Seconds of an epoch: the median without the first epoch, which compiles kernels, where there are several."""
    times = run["epoch_seconds"]
    return median(times[1:] or times) if times else None


def _table(title: str, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    if not rows:
        return []
    lines = [header, ("---",) * len(header), *rows]
    body = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
    return [f"## {title}", body]


def _format_time(seconds: float) -> str:
    for unit, symbol in ((1, "s"), (1e-3, "ms")):
        if seconds >= unit:
            return f"{seconds / unit:.2f} {symbol}"
    return f"{seconds * 1e6:.1f} us"


def _format_value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _output_of(*command: str | Path) -> str:
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown" if done.returncode == 0 else "unknown"


def _nvcc() -> str:
    return (
        str(Path(os.environ["CUDA_HOME"].split(os.pathsep)[-1], "bin/nvcc")) if os.environ.get("CUDA_HOME") else "nvcc"
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


if __name__ == "__main__":
    main(*sys.argv[1:])
