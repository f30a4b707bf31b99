"""No graph of an earlier test is remembered."""

import pytest

from pyengm.pergrad import verify, weight_usage


@pytest.fixture(autouse=True)
def no_remembered_graphs(monkeypatch):
    monkeypatch.setattr(weight_usage, "_remembered", type(weight_usage._remembered)())
    monkeypatch.setattr(verify, "_verified", type(verify._verified)())
