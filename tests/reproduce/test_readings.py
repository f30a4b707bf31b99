"""Readings of a figure's arrays against straight computations."""

import numpy as np
import pytest

from pyengm.analysis import toy_surface
from pyengm.errors import ConfigError
from pyengm.reproduce.readings import STEPS, WITH_NUMBER, check_reading, read_value

RNG = np.random.default_rng(0)
LINES = RNG.normal(size=(3, 7))
PLANES = RNG.uniform(1, 2, size=(2, 7, 7))


def read(reading, **arrays):
    return read_value(reading, {"part": arrays})


def test_pipelines_and_vectors():
    np.testing.assert_array_equal(read("part:a", a=LINES), LINES)
    np.testing.assert_array_equal(read("part:a|rows|last", a=LINES), LINES[-1].mean())
    np.testing.assert_array_equal(read("part:x/a|row=1|column=2", **{"x/a": LINES}), LINES[1, 2])
    np.testing.assert_array_equal(read(["part:a|mean", "part:a|largest"], a=LINES), [LINES.mean(), LINES.max()])


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ("first", LINES[0]),
        ("spread", [np.std(row) for row in LINES]),
        ("relative_spread", [np.std(row) / abs(np.mean(row)) for row in LINES]),
        ("from_row=1", LINES[1:]),
        ("share_below=0.5", [np.mean([v < 0.5 for v in row]) for row in LINES]),
        ("share_of_largest=0.9", [np.mean([v >= 0.9 * LINES.max() for v in row]) for row in LINES]),
        ("centre", np.mean([row[3] for row in LINES])),
        ("rise_half_way", np.mean([(row[2] + row[4]) / 2 - row[3] for row in LINES])),
    ],
)
def test_steps(step, expected):
    np.testing.assert_allclose(read(f"part:a|{step}", a=LINES), expected)


def test_middles_and_skewness():
    np.testing.assert_allclose(read("part:a|middles", a=np.array([0, 1, 3])), [0.5, 2])
    stats = pytest.importorskip("scipy.stats")
    assert read("part:a|skewness", a=LINES) == pytest.approx(stats.skew(LINES.ravel()))
    assert np.isnan(read("part:a|skewness", a=np.ones(3)))


def test_roughness():
    """Against a loop over second differences; a plane has none."""
    bends = [p[i - 1, j] - 2 * p[i, j] + p[i + 1, j] for p in PLANES for i in range(1, 6) for j in range(7)]
    bends += [p[i, j - 1] - 2 * p[i, j] + p[i, j + 1] for p in PLANES for i in range(7) for j in range(1, 6)]
    assert read("part:a|roughness", a=PLANES) == pytest.approx(np.sqrt(np.mean(np.square(bends))))
    i, j = np.mgrid[:7, :7]
    # Rounding alone is left.
    assert read("part:a|roughness", a=(3.0 + 2 * i - j)[None]) == pytest.approx(0, abs=1e-12)


def test_bulge():
    """On the grid of 41 values in [-1.5, 1.5] the attack is nearest to value 33."""
    grid = np.linspace(-1.5, 1.5, 41)
    rising, hill = 1 + grid, 1 + grid + 2 * np.exp(-((grid - 0.5) ** 2) / 0.02)
    planes = np.broadcast_to(np.stack([rising, hill])[:, :, None], (2, 41, 41))
    assert read("part:a|bulge", a=planes[:1]) == 0
    expected = (hill[20:34].max() - hill[33]) / hill[33]
    assert read("part:a|bulge", a=planes[1:]) == pytest.approx(expected)
    assert expected > 0.5
    falling = planes[:1, ::-1]  # highest at the image itself
    assert read("part:a|bulge", a=falling) == 0


def test_kinks_of_known_surfaces():
    """|x| + x^2 / 2 has a jump of 2 in its slope at 0; x^2 / 2 has none, and its curvature is 1."""
    grid = np.linspace(-4, 4, 161)
    smooth = np.broadcast_to(grid[:, None] ** 2 / 2, (161, 161))
    kink = smooth + np.abs(grid)[:, None]
    for step in ("kink_at_origin=0.05", "kink_at_axes=0.05"):
        assert read(f"part:a|{step}", a=smooth) == pytest.approx(0.05)
        assert read(f"part:a|{step}", a=kink) == pytest.approx(2.05)
    cone = np.hypot(grid[:, None], grid[None, :])
    assert read("part:a|kink_at_origin=0.05", a=cone) == pytest.approx(2)
    assert read("part:a|kink_at_axes=0.05", a=cone) < 0.06  # the curvature at distance 1 is at most 1
    assert read("part:a|kinked=0.05", a=smooth) == 0
    assert read("part:a|kinked=0.05", a=kink) == pytest.approx(1 / 159)


def test_the_toy_surfaces_have_the_kinks_of_the_lemmas():
    """L2 at the origin alone, with jump eps * 2 / 2 there at logits of 0; L-infinity on the axes too."""
    l2, linf = (toy_surface("linear", one, eps=0.6).loss for one in ("l2", "linf"))
    assert read("part:a|kink_at_origin=0.05", a=l2) == pytest.approx(0.6, abs=0.03)  # spacing times curvature
    assert read("part:a|kink_at_axes=0.05", a=l2) < 0.05
    assert read("part:a|kink_at_axes=0.05", a=linf) > 0.2


@pytest.mark.parametrize(
    ("reading", "message"),
    [
        ("part:b", "is of no array of the figure; known: part:a"),
        ("other:a", "is of no array"),
        ("part:a|average", "unknown step 'average'"),
        ("part:a|row", "unknown step 'row'"),
        ("part:a|row=x", "expected a number after ="),
        ("part:a|row=3", r"row=3 is beyond an array of shape \(3, 7\)"),
    ],
)
def test_wrong_readings(reading, message):
    with pytest.raises(ConfigError, match=message):
        read(reading, a=LINES)


def test_readings_are_checked_before_there_are_arrays():
    check_reading(["part:whole ball/samples|rows|last", "part:a|row=1"], ["part"])
    for wrong in ("other:a", "part:a|rowz", 3, ["part:a", None]):
        with pytest.raises(ConfigError):
            check_reading(wrong, ["part"])
    assert not STEPS.keys() & WITH_NUMBER.keys()
