"""No plan of an earlier test is in the engine's cache."""

import pytest

from pyengm.pergrad import plan


@pytest.fixture(autouse=True)
def empty_plan_cache(monkeypatch):
    monkeypatch.setattr(plan, "_known", type(plan._known)())
