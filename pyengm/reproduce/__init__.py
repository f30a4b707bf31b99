"""The tables and figures of the papers: training of their runs, and comparison with what is published."""

from pyengm.reproduce.config import ReproduceConfig
from pyengm.reproduce.figure_run import list_figures, reproduce_figure
from pyengm.reproduce.paper_figures import PaperFigure, figure_names, is_figure, load_figure
from pyengm.reproduce.presets import SCALES
from pyengm.reproduce.run import list_tables, reproduce
from pyengm.reproduce.tables import PaperTable, load_table, table_names

__all__ = [
    "SCALES",
    "PaperFigure",
    "PaperTable",
    "ReproduceConfig",
    "figure_names",
    "is_figure",
    "list_figures",
    "list_tables",
    "load_figure",
    "load_table",
    "reproduce",
    "reproduce_figure",
    "table_names",
]
