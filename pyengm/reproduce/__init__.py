"""The tables of the papers: training of their rows, and comparison with the published figures."""

from pyengm.reproduce.presets import SCALES
from pyengm.reproduce.run import ReproduceConfig, list_tables, reproduce
from pyengm.reproduce.tables import PaperTable, load_table, table_names

__all__ = ["SCALES", "PaperTable", "ReproduceConfig", "list_tables", "load_table", "reproduce", "table_names"]
