"""Every test has a cache of data sets of its own."""

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PYENGM_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"
