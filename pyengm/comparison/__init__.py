"""Runs side by side: curves over seeds, overfitting, sensitivity to options, and a table."""

from pyengm.comparison.comparison import Comparison, ComparisonFigure, compare
from pyengm.comparison.curves import EntryCurves
from pyengm.comparison.entries import Entry
from pyengm.comparison.formats import as_csv, as_latex, as_markdown, as_rich
from pyengm.comparison.overfitting import EntryOverfitting
from pyengm.comparison.provenance import describe_entries, made_by
from pyengm.comparison.sensitivity import SensitivityLine
from pyengm.comparison.table import ComparisonTable

__all__ = [
    "Comparison",
    "ComparisonFigure",
    "ComparisonTable",
    "Entry",
    "EntryCurves",
    "EntryOverfitting",
    "SensitivityLine",
    "as_csv",
    "as_latex",
    "as_markdown",
    "as_rich",
    "compare",
    "describe_entries",
    "made_by",
]
