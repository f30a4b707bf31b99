"""The algebra of layouts, against owners written down element by element."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyengm.pergrad.layout import (
    NOBODY,
    SHARED,
    Layout,
    UnprovenError,
    along_axis,
    carry,
    element_owners,
    from_owners,
    locate,
    merge,
    of_one,
    one_per_loss,
    owners_along,
    put,
    take,
)


def elements(layout, size):
    """The owner of every element of a flattened tensor."""
    return np.array([layout.owners[f // layout.step % len(layout.owners)] for f in range(size)])


SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


@st.composite
def laid_out(draw):
    """A shape, an axis, owners along it, and their layout."""
    shape = draw(SHAPES)
    axis = draw(st.integers(0, len(shape) - 1))
    owners = np.array(draw(st.lists(st.integers(-1, 3), min_size=shape[axis], max_size=shape[axis])))
    return shape, axis, owners, along_axis(owners, shape, axis)


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(laid_out())
def test_owners_along_an_axis(drawn):
    shape, axis, owners, layout = drawn
    whole = np.broadcast_to(owners.reshape([-1 if a == axis else 1 for a in range(len(shape))]), shape)
    assert (elements(layout, whole.size) == whole.ravel()).all()
    if not layout.is_constant:
        found, _ = locate(layout, shape)
        assert owners_along(layout, shape, found) is not None
        assert shape[found] > 1
    assert from_owners(whole.ravel()) == layout  # one form for one distribution of owners


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(laid_out(), st.randoms(use_true_random=False))
def test_carry_to_permuted_axes(drawn, random):
    shape, axis, owners, layout = drawn
    order = list(range(len(shape)))
    random.shuffle(order)  # axis a of the source becomes axis order[a]
    target = tuple(shape[order.index(a)] for a in range(len(shape)))
    whole = np.broadcast_to(owners.reshape([-1 if a == axis else 1 for a in range(len(shape))]), shape)
    moved = whole.transpose([order.index(a) for a in range(len(shape))])
    assert (elements(carry(layout, shape, target, dict(enumerate(order))), whole.size) == moved.ravel()).all()


def test_carry_over_a_lost_axis():
    layout = along_axis(np.array([0, 1]), (2, 3), 0)
    assert carry(layout, (2, 3), (3,), {1: 0}) == SHARED
    assert carry(of_one(1), (2, 3), (3,), {1: 0}) == of_one(1)
    assert carry(along_axis(np.array([1, -1]), (2, 3), 0), (2, 3), (3,), {1: 0}) == of_one(1)


def test_a_batch_axis_within_a_view():
    layout = one_per_loss(4)
    for shape in ((4,), (2, 2), (4, 1), (1, 4)):
        assert (elements(layout, 4) == np.arange(4)).all()
        if shape == (2, 2):
            with pytest.raises(UnprovenError, match="several axes"):
                locate(layout, shape)
        else:
            assert shape[locate(layout, shape)[0]] == 4


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(st.integers(1, 3), st.lists(st.integers(-1, 2), min_size=1, max_size=4), st.integers(1, 3), st.data())
def test_merge_is_the_union_of_owners(step, owners, other_step, data):
    others = data.draw(st.lists(st.integers(-1, 2), min_size=1, max_size=4))
    first, second = from_owners(owners, step), from_owners(others, other_step)
    size = np.lcm(first.step * len(first.owners), second.step * len(second.owners))
    a, b = elements(first, size), elements(second, size)
    found = merge(first, second)
    if ((a != b) & (a >= 0) & (b >= 0)).any():
        assert found is None
    else:
        assert found is not None
        assert (elements(found, size) == np.maximum(a, b)).all()


def test_merge_with_shared():
    layout = one_per_loss(3)
    assert merge(SHARED, SHARED) == SHARED
    assert merge(layout, SHARED) is None
    assert merge(NOBODY, SHARED) == SHARED


def test_put_and_take():
    layout = along_axis(np.array([0, 1]), (2, 3), 0)
    assert put(layout, (2, 3), (5, 3), 0, np.array([4, 1])) == along_axis(np.array([-1, 1, -1, -1, 0]), (5, 3), 0)
    assert put(layout, (2, 3), (1, 3), 0, np.array([0, 0])) == SHARED
    assert take(along_axis(np.array([-1, 1, 0]), (3, 3), 0), (3, 3), (2, 3), 0, np.array([2, 1])) == layout
    assert take(layout, (2, 3), (2, 1), 1, np.array([2])) == one_per_loss(2)


def test_element_owners():
    layout = along_axis(np.array([0, 1]), (3, 2, 4), 1)
    assert element_owners(layout, (3, 2, 4), (0, 1)).tolist() == [0, 1] * 3
    assert element_owners(layout, (3, 2, 4), (1, 0)).tolist() == [0] * 3 + [1] * 3
    for wrong in ((0,), (0, 2)):
        with pytest.raises(UnprovenError, match="several examples"):
            element_owners(layout, (3, 2, 4), wrong)
    with pytest.raises(UnprovenError):
        element_owners(SHARED, (3,), (0,))


def test_one_loss_owns_everything():
    assert one_per_loss(1) == of_one(0)
    assert Layout(1, (0,)).is_constant
