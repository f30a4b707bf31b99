"""What tests of `pyengm reproduce` share."""

import pyautoattack
import pytest
from rich.console import Console

from pyengm.evaluation import parallel
from pyengm.utils import terminal


@pytest.fixture(autouse=True)
def short_evaluations(monkeypatch):
    """AutoAttack with few queries, in this process; a terminal wide enough for whole sentences."""
    init = pyautoattack.AutoAttack.__init__

    def short(package, *args, **options):
        init(package, *args, **options)
        package.square.n_queries = 20

    monkeypatch.setattr(pyautoattack.AutoAttack, "__init__", short)
    monkeypatch.setattr(parallel, "cores", lambda: 1)
    monkeypatch.setattr(terminal, "console", Console(width=200))
