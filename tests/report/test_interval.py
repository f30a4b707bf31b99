"""Intervals of accuracies against scipy's."""

import pytest
from scipy.stats import binomtest

from pyengm.report.interval import wilson_interval


@pytest.mark.parametrize(("correct", "images"), [(0, 10), (10, 10), (1, 3), (55, 100), (9999, 10000), (1, 1)])
def test_as_scipy(correct, images):
    expected = binomtest(correct, images).proportion_ci(method="wilson")
    assert wilson_interval(correct / images, images) == pytest.approx((expected.low, expected.high), abs=1e-12)
