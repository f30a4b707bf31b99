"""Losses of two weights against brute force, local entropies against quadrature, and Lemma 2's bound."""

import numpy as np
import pytest

from pyengm.analysis import toy_surface
from pyengm.errors import ConfigError

X, EPS = np.array([1.0, 0.5]), 0.6


def brute_force(theta, kind, constraint, y):
    """The largest loss among many images of the ball."""
    if constraint == "nt":
        deltas = np.zeros((1, 2))
    elif constraint == "l2":
        angle = np.linspace(0, 2 * np.pi, 721)
        radius = np.linspace(0, EPS, 121)
        deltas = np.stack([np.outer(radius, f(angle)).ravel() for f in (np.cos, np.sin)], axis=1)
    else:
        side = np.linspace(-EPS, EPS, 201)
        deltas = np.stack([g.ravel() for g in np.meshgrid(side, side)], axis=1)
    s = (X + deltas) @ theta
    f = s if kind == "linear" else s / (1 + np.exp(-s))
    return np.log1p(np.exp(-y * f)).max()


@pytest.mark.parametrize("kind", ["linear", "swish"])
@pytest.mark.parametrize("constraint", ["nt", "l2", "linf"])
@pytest.mark.parametrize("y", [1, -1])
def test_the_loss_is_that_of_the_worst_image(kind, constraint, y):
    found = toy_surface(kind, constraint, y=y, extent=3, resolution=13)
    for i, j in [(0, 0), (2, 9), (6, 6), (12, 3), (5, 12)]:
        theta = found.grid[[i, j]]
        expected = brute_force(theta, kind, constraint, y)
        # Brute force misses the worst image by up to half a step of its own.
        assert expected - 1e-12 <= found.loss[i, j] <= expected + 2e-3


@pytest.mark.parametrize("constraint", ["nt", "l2", "linf"])
def test_local_entropy_is_the_integral(constraint, figure_text):
    gamma = 2.0
    found = toy_surface("linear", constraint, gamma=gamma, extent=2, resolution=101)
    fine = np.linspace(-7, 7, 1401)
    t1, t2 = np.meshgrid(fine, fine, indexing="ij")
    reach = {"nt": 0, "l2": np.hypot(t1, t2), "linf": np.abs(t1) + np.abs(t2)}[constraint]
    loss = np.log1p(np.exp(-(t1 * X[0] + t2 * X[1] - EPS * reach)))
    for i, j in [(0, 0), (50, 50), (80, 10)]:
        a, b = found.grid[[i, j]]
        values = np.exp(-loss - gamma / 2 * ((t1 - a) ** 2 + (t2 - b) ** 2))
        # The trapezoidal rule; kinks of the loss limit both sums to the square of the coarser step.
        integral = np.trapezoid(np.trapezoid(values, fine, axis=1), fine) if hasattr(np, "trapezoid") else None
        integral = values.sum() * (fine[1] - fine[0]) ** 2 if integral is None else integral
        assert found.entropy[i, j] == pytest.approx(-np.log(integral), abs=1e-3)
    assert "theta" in figure_text(found.plot())
    assert "theta" in figure_text(found.plot(entropy=True))


def test_gradients_jump_where_the_lemmas_say():
    """On the axis theta_1 = 0 the gradient jumps for L-infinity only; at the origin for both."""
    jumps = {}
    for constraint in ("l2", "linf"):
        found = toy_surface("linear", constraint, extent=2, resolution=2001, gamma=100)
        step, middle = found.grid[1] - found.grid[0], 1000
        for name, column in (("axis", middle + 500), ("origin", middle)):
            line = found.loss[:, column]
            jumps[constraint, name] = ((line[middle + 1] - 2 * line[middle] + line[middle - 1]) / step).item()
    assert abs(jumps["l2", "axis"]) < 0.01
    # The slope of eps |theta_1| changes by 2 eps, times the derivative of the loss in the margin, below 1.
    assert jumps["linf", "axis"] > 0.1 * 2 * EPS
    assert jumps["linf", "origin"] == pytest.approx(0.5 * 2 * EPS, rel=0.01)
    assert jumps["l2", "origin"] == pytest.approx(0.5 * 2 * EPS, rel=0.01)


@pytest.mark.parametrize("options", [{"kind": "cubic"}, {"constraint": "l1"}, {"y": 0}, {"gamma": 1000.0}])
def test_wrong_options(options):
    with pytest.raises(ConfigError):
        toy_surface(**options, resolution=21)
