"""Statistics of single training images against loops over them."""

import numpy as np
import pytest

from pyengm.analysis import instances
from pyengm.errors import ConfigError, DataError


@pytest.fixture
def logs():
    rng = np.random.default_rng(0)
    index = np.sort(rng.permutation(60)[:50])
    fields = ("grad_norm", "step_size", "delta_l2", "delta_linf")
    return [{"index": index, **{f: rng.gamma(2, 0.1, 50).astype(np.float32) for f in fields}} for _ in range(3)]


def test_instances_are_their_formulas(logs, figure_text):
    labels = np.arange(60) % 4
    found = instances(logs, labels, beta=0.3, bins=7)
    norms = np.stack([log["grad_norm"] for log in logs]).astype(float)
    mean = norms.mean(0)
    ranks = np.array([sum(other < own for other in mean) / 50 for own in mean])
    np.testing.assert_allclose(found.ranks, ranks)
    np.testing.assert_array_equal(found.labels, labels[logs[0]["index"]])
    for first in range(1, 11):
        expected = [
            i for i, r in zip(logs[0]["index"], ranks, strict=True) if (first - 1) * 5 <= round(50 * r) < first * 5
        ]
        assert found.subset(first, first).tolist() == expected
        shares = np.bincount(labels[expected], minlength=4) / len(expected)
        np.testing.assert_allclose(found.class_shares[first - 1], shares)
        own = [row for row, i in enumerate(logs[0]["index"]) if i in expected]
        for name, by_epoch in (("grad_norm", found.epoch_norms), ("step_size", found.epoch_steps)):
            np.testing.assert_allclose(by_epoch[:, first - 1], [log[name][own].astype(float).mean() for log in logs])
    assert len(found.subset(1, 10)) == 50
    g = norms.max(0)
    ratio = (g**2).mean() / g.mean() ** 2
    np.testing.assert_allclose(found.ratios, [ratio, np.sqrt(ratio), np.sqrt(ratio) / 0.7**0.25])
    np.testing.assert_array_equal(found.deltas, np.stack([logs[2]["delta_l2"], logs[2]["delta_linf"]], axis=1))
    assert found.step_counts.sum() == 50
    scipy_stats = pytest.importorskip("scipy.stats")
    expected = scipy_stats.spearmanr(norms[2], logs[2]["step_size"]).statistic
    assert found.correlation == pytest.approx(expected)
    assert "step size" in figure_text(found.plot())
    assert "perturbation" in figure_text(found.plot_deltas())
    assert "squared mean" in figure_text(found.plot_norms())
    assert "group 1 group 5 group 10" in figure_text(found.plot_groups())


def test_equal_steps_have_no_correlation(logs, figure_text):
    logs[-1]["step_size"][:] = 0.1
    found = instances(logs, np.zeros(60, int))
    assert np.isnan(found.correlation)
    assert "number of training images" in figure_text(found.plot())


def test_wrong_logs(logs):
    with pytest.raises(DataError, match="--instance-log"):
        instances([], np.zeros(60, int))
    with pytest.raises(DataError, match="labels for"):
        instances(logs, np.zeros(10, int))
    other = {**logs[0], "index": logs[0]["index"] + 1}
    with pytest.raises(DataError, match="different images"):
        instances([other, *logs], np.zeros(90, int))
    with pytest.raises(ConfigError, match="tenths"):
        instances(logs, np.zeros(60, int)).subset(0, 3)
