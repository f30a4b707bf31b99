"""Errors of A-ENGM's weights against its formulas, step by step."""

import numpy as np
import pytest

from pyengm.analysis import weight_errors
from pyengm.errors import ConfigError


def replay(norms, inputs, alpha, tau, keep, size):
    gamma0, gamma1, step = 0.0, 1.0, 0
    absolute, relative = [], []
    for own, given in zip(norms, inputs, strict=True):
        found = []
        for start in range(0, len(own), size):
            g, x = own[start : start + size], given[start : start + size]
            if step % tau == 0:
                slope, intercept = np.polyfit(x, g, 1)
                gamma0, gamma1 = keep * gamma0 + (1 - keep) * intercept, keep * gamma1 + (1 - keep) * slope
            predicted = gamma1 * x + gamma0
            found.append(np.array([min(1.0, alpha / p) if p > 0 else 1.0 for p in predicted]))
            step += 1
        exact = np.minimum(alpha / own, 1)
        errors = np.abs(np.concatenate(found) - exact)
        absolute.append(errors.mean())
        relative.append((errors / exact).mean())
    return absolute, relative


def test_errors_are_their_formulas(figure_text):
    rng = np.random.default_rng(0)
    inputs = rng.gamma(2, 1, (3, 24))
    norms = 2 * inputs + 1 + rng.gamma(1, 1, (3, 24))
    alphas, taus = [2.0, 5.0], [1, 3, 50]
    found = weight_errors(norms, inputs, alphas, taus, epochs=[2, 4, 6], batch_size=8)
    assert found.absolute.shape == found.relative.shape == (3, 2, 3)
    for a, alpha in enumerate(alphas):
        for t, tau in enumerate(taus):
            absolute, relative = replay(norms, inputs, alpha, tau, 0.7, 8)
            np.testing.assert_allclose(found.absolute[:, a, t], absolute, rtol=1e-6)
            np.testing.assert_allclose(found.relative[:, a, t], relative, rtol=1e-6)
    assert "epoch" in figure_text(found.plot())
    assert "alpha" in figure_text(weight_errors(norms[:1], inputs[:1], alphas, taus).plot())


@pytest.mark.parametrize(("alphas", "taus"), [([], [1]), ([0.0], [1]), ([1.0], [0]), ([1.0], [])])
def test_wrong_options(alphas, taus):
    with pytest.raises(ConfigError, match="alphas > 0"):
        weight_errors(np.ones((1, 4)), np.ones((1, 4)), alphas, taus)
