"""The report on a table: our figures beside the paper's, their differences, and the orders of the rows."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations, groupby
from typing import Any, TypedDict

import numpy as np

from pyengm.evaluation.attack_registry import DISTANCES
from pyengm.reproduce.tables import Column, Figure, PaperTable
from pyengm.training.multi_seed import sample_deviation


class Collapse(TypedDict):
    """A fall of the accuracy under attack on training images, in [0, 1].

    Attributes:
        epoch: The epoch, counted from 1, after which it was found.
        before: The accuracy after the epoch before.
        after: The accuracy after that epoch.
        last: The accuracy after the last epoch of the run, which may have recovered.
    """

    epoch: int
    before: float
    after: float
    last: float


def make_report(
    table: PaperTable,
    scale: str,
    results: Mapping[str, Mapping[int, dict[str, Any]]],
    failed: Mapping[str, str],
    differences: Mapping[str, Sequence[str]],
    collapsed: Mapping[str, Mapping[int, Sequence[Collapse]]],
) -> dict[str, Any]:
    """Makes the content of the results.json of a table. Figures are in the paper's units.

    Args:
        table: The table.
        scale: The scale of the runs.
        results: The results.json of each run with its times, by row and seed.
        failed: The reasons of runs that failed, by run.
        differences: The ways in which the runs of a row differ from the paper's, in words, by row.
        collapsed: The cases of catastrophic overfitting by row and seed; rows without it are left out.
    """
    rows = []
    for row in table.rows:
        runs = results.get(row.name, {})
        ours = {column.name: figure for column in table.columns if (figure := our_figure(column, list(runs.values())))}
        rows.append(
            {
                "name": row.name,
                "trained": row.options is not None,
                "seeds": list(runs),
                "paper": {name: vars(figure) for name, figure in row.paper.items()},
                "ours": {name: vars(figure) for name, figure in ours.items()},
                "difference": {name: ours[name].value - row.paper[name].value for name in ours if name in row.paper},
            }
        )
    shared = [line for line in next(iter(differences.values()), []) if all(line in own for own in differences.values())]
    own = {name: [line for line in lines if line not in shared] for name, lines in differences.items()}
    return {
        "table": table.name,
        "title": table.title,
        "source": table.source,
        "scale": scale,
        "columns": [column.name for column in table.columns],
        "rows": rows,
        "orders": [order for column in table.columns if (order := compare_orders(column.name, rows))],
        "differences": {name: lines for name, lines in {"all rows": shared, **own}.items() if lines},
        "missing": {
            column.name: f"the runs have no {column.ours}"
            for column in table.columns
            if column.ours and any(row["seeds"] and column.name not in row["ours"] for row in rows)
        },
        "notes": list(table.notes),
        "collapsed": {
            name: {str(seed): list(falls) for seed, falls in seeds.items()} for name, seeds in collapsed.items()
        },
        "failed": dict(failed),
    }


def our_figure(column: Column, runs: Sequence[dict[str, Any]]) -> Figure | None:
    """Returns the mean and the sample standard deviation of a column's figure over the runs, in the paper's units.

    The result is None where no run has the figure.
    """
    values = [value for run in runs if column.ours and (value := look_up(run, column.ours)) is not None]
    return Figure(float(np.mean(values)), sample_deviation(values)) if values else None


def look_up(results: dict[str, Any], path: str) -> float | None:
    """Returns a figure of results.json, shares in per cent; None where it is missing."""
    *groups, key = path.split(".")
    for group in groups:
        results = results.get(group, {})
    value = results.get(key)
    is_share = path.partition(".")[0] in ("best", "last", "transfer") and key not in DISTANCES
    return value if value is None or not is_share else 100 * value


def compare_orders(column: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Compares the orders of the rows, from the highest figure to the lowest, in the paper and in our runs.

    Rows of equal figures share a list. Pairs that are equal in the paper are not counted. The result is None where
    fewer than two rows have both figures.
    """
    both = {
        row["name"]: (row["paper"][column]["value"], row["ours"][column]["value"])
        for row in rows
        if column in row["difference"]
    }
    both = {name: figures for name, figures in both.items() if all(map(math.isfinite, figures))}
    if len(both) < 2:
        return None
    apart = [(a, b) for a, b in combinations(both.values(), 2) if a[0] != b[0]]
    return {
        "column": column,
        "paper": _ranks({name: figures[0] for name, figures in both.items()}),
        "ours": _ranks({name: figures[1] for name, figures in both.items()}),
        "pairs": len(apart),
        "pairs_in_the_same_order": sum((a[0] - b[0]) * (a[1] - b[1]) > 0 for a, b in apart),
    }


def _ranks(figures: Mapping[str, float]) -> list[list[str]]:
    ordered = sorted(figures, key=lambda name: -figures[name])
    return [list(equal) for _, equal in groupby(ordered, key=figures.get)]
