"""The rules by which a figure shows something, on arrays of which the truth is known, in both directions."""

import numpy as np
import pytest

from pyengm.reproduce.checks import NEEDED, RULES, apply_rule

UP, DOWN = np.array([1.0, 2.0, 5.0]), np.array([5.0, 2.0, 1.0])


def shown(rule, *values, **options):
    return apply_rule(rule, [np.asarray(value, float) for value in values], **options).shown


@pytest.mark.parametrize(
    ("rule", "true", "false", "options"),
    [
        ("descending", (UP + 1, UP), (UP, UP), {}),
        ("descending", (3, 2, 1), (3, 1, 2), {}),
        ("descending", (UP + 1, 1.5), (UP, 1.5), {}),
        ("falls", (DOWN,), (UP,), {}),
        ("rises", (UP,), (DOWN,), {}),
        ("at_most", (UP,), (UP + 1,), {"bound": 5}),
        ("at_least", (UP,), (UP - 1,), {"bound": 1}),
        ("close", ([1.0, 1.05],), ([1.0, 1.3],), {"within": 0.1}),
        ("highest_among", ([1, 3, 2],), ([3, 1, 2],), {"among": [1, 2]}),
        ("highest_among", ([1, 3, 3],), ([3, 1, 3],), {"among": [1, 2]}),
        ("correlated", (UP, UP**3), (UP, DOWN), {"bound": 0.8}),
        ("correlated", (UP, DOWN), (UP, UP), {"bound": -0.8}),
        ("falls_at_decay", (DOWN, UP), (UP, UP), {"decay": 2.0}),
        ("rises_at_decay", (UP, UP), (DOWN, UP), {"decay": 2.0}),
    ],
)
def test_rules_in_both_directions(rule, true, false, options):
    assert shown(rule, *true, **options) is True
    assert shown(rule, *false, **options) is False


def test_every_rule_is_described_and_tested():
    assert set(RULES) == set(NEEDED)


@pytest.mark.parametrize(
    ("rule", "values", "options", "words"),
    [
        ("falls", ([1.0],), {}, "one value has no trend"),
        ("descending", (np.nan, 1.0), {}, "not all are finite"),
        ("correlated", ([1, np.nan, 2], [1, 2, 3]), {"bound": 0.5}, "only 2 pairs"),
        ("correlated", ([1, 1, 1], [1, 2, 3]), {"bound": 0.5}, "constant"),
        ("falls_at_decay", (DOWN, UP), {"decay": None}, "no step at which the learning rate decays"),
        ("falls_at_decay", (DOWN, UP), {"decay": 9.0}, "no weights on both sides"),
        ("numbers", (UP, DOWN), {}, "1, 2, 5; 5, 2, 1"),
    ],
)
def test_what_cannot_be_told(rule, values, options, words):
    found = apply_rule(rule, [np.asarray(value, float) for value in values], **options)
    assert found.shown is None
    assert words in found.words


def test_numbers_are_in_the_words():
    assert apply_rule("descending", [np.array(2.5), np.array(1.25)]).words == "2.5 > 1.25"
    assert apply_rule("descending", [UP, np.array(1.5)]).words == "1, 2, 5 > 1.5; 2 of 3 comparisons"
    assert apply_rule("falls", [np.array([3.0, 1.0, 2.0])]).words == "3, 1, 2: it falls in 1 of 2 steps"
    assert apply_rule("rises_at_decay", [UP, UP], decay=2.0).words == "2 before the decay, 5 in the mean after it"
    assert apply_rule("numbers", [np.arange(20.0)]).words.endswith("10, 11, ...")


def test_pairs_without_numbers_do_not_count():
    assert shown("correlated", [*UP, np.nan], [*UP, 0.0], bound=0.9) is True
