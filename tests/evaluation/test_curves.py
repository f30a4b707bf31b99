"""The figure of a run."""

import warnings

import pytest

from pyengm.evaluation import plot_curves

ROWS = [
    {"epoch": i, "loss": 2.0 - i, "train_robust": 0.1, "clipped": 0.5, "natural": 0.3, "robust": 0.2, "best": i == 1}
    for i in range(3)
]


@pytest.mark.parametrize(
    "rows",
    [
        ROWS,
        [row | {"robust_loss": 1.5} for row in ROWS],
        ROWS[:1],
        [{k: v for k, v in row.items() if k not in ("natural", "robust")} for row in ROWS],
        [{k: v for k, v in row.items() if k not in ("clipped", "best")} for row in ROWS],
        [],
    ],
)
def test_curves_are_a_png(rows, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_curves(rows, tmp_path / "curves.png", "a run")
    image = (tmp_path / "curves.png").read_bytes()
    assert image.startswith(b"\x89PNG\r\n\x1a\n")
    assert image.rstrip().endswith(b"IEND\xaeB`\x82")
