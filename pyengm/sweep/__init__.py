"""Grids of options times seeds: their runs, one after another, in a folder from which they resume."""

from pyengm.sweep.grid import grid_points, parse_grid
from pyengm.sweep.sweep import Sweep

__all__ = ["Sweep", "grid_points", "parse_grid"]
