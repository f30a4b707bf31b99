"""Grids of options: what they parse to, and the runs that they consist of."""

import pytest

from pyengm.errors import ConfigError
from pyengm.sweep import grid_points, parse_grid
from pyengm.training import TrainConfig


def points(*words, keep=(), **options):
    return grid_points(TrainConfig.from_flat(**options), parse_grid(words), keep)


def test_the_product_of_all_values():
    found = points("optimizer=engm,nengm", "alpha=1,5", "weight-decay=0,1e-4")
    values = [(one.optimizer.name, one.optimizer.alpha, one.optimizer.weight_decay) for one in found.values()]
    assert values == [(o, a, w) for o in ("engm", "nengm") for a in (1, 5) for w in (0, 1e-4)]
    assert next(iter(found)) == "engm, alpha=1, weight_decay=0"
    assert all(one == one.resolve() for one in found.values())


def test_an_option_without_an_effect_is_left_out_and_equal_points_are_one():
    found = points("optimizer=msgd,engm", "alpha=1,5")
    assert list(found) == ["msgd", "engm, alpha=1", "engm, alpha=5"]


def test_values_of_several_words_switches_and_options_of_methods():
    found = points("milestones=2 4,3", schedule="piecewise", epochs=6)
    assert [one.schedule.milestones for one in found.values()] == [(2, 4), (3,)]
    found = points("method_options=beta=1,beta=3", method="trades_awp", method_options=("gamma=0.01",))
    assert [one.method.options[1:] for one in found.values()] == [("gamma=0.01", f"beta={beta}") for beta in (1, 3)]
    assert list(found) == ["beta=1", "beta=3"]
    assert [one.machine.compile for one in points("compile=true,false").values()] == [True, False]
    assert [one.attack.eps for one in points("eps=8/255,16/255", data="cifar10").values()] == [8 / 255, 16 / 255]


def test_no_grid_is_one_point():
    assert list(points()) == ["run"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["alpha"], "expected OPTION=VALUE,VALUE"),
        (["alpha="], "expected OPTION=VALUE,VALUE"),
        (["alpha=1,,2"], "expected OPTION=VALUE,VALUE"),
        (["alhpa=1"], "no option that decides a training.*did you mean alpha"),
        (["seed=0,1"], "its own option, --seeds"),
        (["attacks=fgsm"], "no option that decides a training"),
        (["out=a,b"], "no option that decides a training"),
        (["alpha=1", "alpha=2"], "twice"),
        (["alpha=1,1"], "twice"),
    ],
)
def test_words_that_are_no_grid(words, message):
    with pytest.raises(ConfigError, match=message):
        parse_grid(words)


def test_values_and_options_that_do_not_fit():
    with pytest.raises(ConfigError, match="alpha is 'one'; expected"):
        points("alpha=one,2", optimizer="engm")
    with pytest.raises(ConfigError, match="grid has alpha, which has no effect at any of its points"):
        points("alpha=1,2", optimizer="msgd")
    with pytest.raises(ConfigError, match="tau has no effect"):  # given for all runs, as for a single one
        points("alpha=1,2", optimizer="engm", tau=10, keep=("tau",))
