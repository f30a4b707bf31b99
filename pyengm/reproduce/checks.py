"""Whether a figure shows what its paper says of it: rules about numbers that are read from its arrays."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from pyengm.analysis.rank_correlation import spearman

Values = Sequence[np.ndarray]


@dataclass(frozen=True)
class Finding:
    """What a rule found.

    Args:
        shown: Whether the numbers are as the paper has them; None where they cannot tell.
        words: The comparison, with its numbers.
    """

    shown: bool | None
    words: str


def descending(values: Values) -> Finding:
    """Each value is larger than the next one, in every element."""
    lined = np.broadcast_arrays(*values)
    pairs = list(pairwise(lined))
    held = sum(int((a > b).sum()) for a, b in pairs)
    total = sum(a.size for a, _ in pairs)
    of = f"; {held} of {total} comparisons" if total > 1 else ""
    return Finding(held == total, " > ".join(map(words_of, values)) + of)


def falls(values: Values) -> Finding:
    """The last element of a sequence is smaller than the first."""
    return _trend(values[0], -1, "falls")


def rises(values: Values) -> Finding:
    """The last element of a sequence is larger than the first."""
    return _trend(values[0], 1, "rises")


def at_most(values: Values, *, bound: float) -> Finding:
    """No element is above the bound."""
    return Finding(bool((values[0] <= bound).all()), f"{words_of(values[0])}, at most {bound:g} expected")


def at_least(values: Values, *, bound: float) -> Finding:
    """No element is below the bound."""
    return Finding(bool((values[0] >= bound).all()), f"{words_of(values[0])}, at least {bound:g} expected")


def close(values: Values, *, within: float) -> Finding:
    """All elements of a sequence are equal, up to a share of their mean."""
    apart = float(np.ptp(values[0]) / abs(values[0].mean()))
    return Finding(apart <= within, f"{words_of(values[0])}: {apart:.0%} of their mean apart, {within:.0%} allowed")


def highest_among(values: Values, *, among: Sequence[int]) -> Finding:
    """The largest element of a sequence is one of those at the given places, counted from 0."""
    best = np.flatnonzero(values[0] == values[0].max())
    places = ", ".join(str(place + 1) for place in best)
    return Finding(set(best.tolist()) <= set(among), f"{words_of(values[0])}: the highest is number {places}")


def correlated(values: Values, *, bound: float) -> Finding:
    """Spearman's rank correlation of two sequences is at least a positive bound, or at most a negative one."""
    both = np.isfinite(values[0]) & np.isfinite(values[1])
    pairs = int(both.sum())
    if pairs < 3:
        return Finding(None, f"only {pairs} pairs of values, where a correlation needs 3")
    found = spearman(values[0][both], values[1][both])
    if not np.isfinite(found):
        return Finding(None, "one of the two is constant, and has no correlation")
    shown = found >= bound if bound > 0 else found <= bound
    side = "least" if bound > 0 else "most"
    return Finding(bool(shown), f"rank correlation {found:.2f} of {pairs} pairs, at {side} {bound:g} expected")


def falls_at_decay(values: Values, *, decay: float | None) -> Finding:
    """The mean of a sequence after the learning rate's first decay is below its last value before it."""
    return _at_decay(values, -1, decay)


def rises_at_decay(values: Values, *, decay: float | None) -> Finding:
    """The mean of a sequence after the learning rate's first decay is above its last value before it."""
    return _at_decay(values, 1, decay)


def numbers(values: Values) -> Finding:
    """Numbers for the reader, where the paper's words leave both outcomes open."""
    return Finding(None, "; ".join(map(words_of, values)))


RULES: Mapping[str, Callable[..., Finding]] = {
    rule.__name__: rule
    for rule in (
        *(descending, falls, rises, at_most, at_least, close, highest_among, correlated),
        *(falls_at_decay, rises_at_decay, numbers),
    )
}
NEEDED: Mapping[str, tuple[int, tuple[str, ...]]] = {
    "descending": (2, ()),
    "falls": (1, ()),
    "rises": (1, ()),
    "at_most": (1, ("bound",)),
    "at_least": (1, ("bound",)),
    "close": (1, ("within",)),
    "highest_among": (1, ("among",)),
    "correlated": (2, ("bound",)),
    "falls_at_decay": (2, ("run",)),
    "rises_at_decay": (2, ("run",)),
    "numbers": (1, ()),
}
"""The least number of readings of each rule, and its further options; `run` stands for the decay of its schedule."""


def apply_rule(rule: str, values: Values, **options: Any) -> Finding:
    """Applies a rule; values that are nan or infinite show nothing.

    Args:
        rule: A key of `RULES`.
        values: What it compares.
        **options: Its further options.
    """
    if rule != "correlated" and not all(np.isfinite(value).all() for value in values):
        return Finding(None, "; ".join(map(words_of, values)) + ": not all are finite")
    return RULES[rule](values, **options)


def words_of(value: np.ndarray) -> str:
    """A number, or up to twelve of an array, to three digits."""
    flat = value.ravel()
    text = ", ".join(f"{one:.3g}" for one in flat[:12])
    return f"{text}, ..." if flat.size > 12 else text


def _trend(line: np.ndarray, sign: int, name: str) -> Finding:
    if len(line) < 2:
        return Finding(None, f"{words_of(line)}: one value has no trend")
    steps = sign * np.diff(line) > 0
    return Finding(
        bool(sign * (line[-1] - line[0]) > 0),
        f"{words_of(line)}: it {name} in {int(steps.sum())} of {steps.size} steps",
    )


def _at_decay(values: Values, sign: int, decay: float | None) -> Finding:
    line, epochs = values
    if decay is None:
        return Finding(None, "the schedule of this run has no step at which the learning rate decays")
    before, after = line[epochs <= decay], line[epochs > decay]
    if not (len(before) and len(after)):
        return Finding(None, f"no weights on both sides of the decay at epoch {decay:g}: epochs {words_of(epochs)}")
    shown = sign * (after.mean() - before[-1]) > 0
    return Finding(bool(shown), f"{before[-1]:.3g} before the decay, {after.mean():.3g} in the mean after it")
