"""Reports on runs and evaluations: one HTML file that needs no network."""

from pyengm.report.write import write_report

__all__ = ["write_report"]
