"""How the runs of a comparison were made."""

import hashlib
from collections.abc import Sequence
from typing import Any

from pyengm.comparison.entries import ComparedRun, Entry
from pyengm.comparison.options import differing_options, value_text
from pyengm.report.scrub import scrub
from pyengm.training.run_folder import RunFolder


def describe_entries(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Returns the entries as plain values for JSON.

    Args:
        entries: The entries.

    Returns:
        For each its name, the options that differ between the entries, and its runs: folder, seed, command, versions
        and state of the code, machine, images by their use, and the SHA-256 of results.json and metrics.jsonl.
    """
    differing = differing_options([entry.options for entry in entries])
    return [
        {
            "name": entry.name,
            "options": {name: value_text(name, entry.options.get(name)) for name in differing},
            "runs": [_describe_run(run) for run in entry.runs],
        }
        for entry in entries
    ]


def made_by(entries: Sequence[Entry]) -> list[str]:
    """Returns a line for each run: entry, seed, the commit or version that made it, and the command."""
    lines = []
    for entry in entries:
        for run in entry.runs:
            command = " ".join(map(str, (run.source.environment or {}).get("command") or ())) or "not recorded"
            lines.append(f"{entry.name}, seed {run.seed}: {code_of_run(run)}, {command}")
    return lines


def code_of_run(run: ComparedRun) -> str:
    """Returns the commit of pyengm that made a run, or its version where it was no checkout."""
    environment = run.source.environment or {}
    state = (environment.get("git") or {}).get("pyengm") or {}
    if commit := state.get("commit"):
        return f"commit {commit[:12]}{' with changes' if state.get('dirty') else ''}"
    version = (environment.get("versions") or {}).get("pyengm")
    return f"pyengm {version}" if version else "unknown code"


def _describe_run(run: ComparedRun) -> dict[str, Any]:
    environment = run.source.environment or {}
    known = {name: environment.get(name) for name in ("command", "versions", "git", "machine", "processes", "data")}
    return {"folder": scrub(run.folder.path.resolve().name), "seed": run.seed, **known, "sha256": _digests(run.folder)}


def _digests(run: RunFolder) -> dict[str, str]:
    files = (run.results, run.metrics, *sorted((run.path / "evaluations").glob("*.json")))
    there = {str(path.relative_to(run.path)): path for path in files if path.is_file()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in there.items()}
