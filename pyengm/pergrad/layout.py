"""Layouts: which example owns each element of a gradient.

An element belongs to example i if the derivatives of all other losses in it vanish, whatever the values are. A layout
is periodic in the flattened (row-major) tensor, so a view leaves it as it is, and every other operation of a network
moves it along one axis.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd, lcm, prod

import numpy as np

Shape = tuple[int, ...]
MAX_PERIOD = 1 << 20  # owners that a layout may list


class UnprovenError(Exception):
    """Names, shapes and fields of a node do not determine a layout; the message says why."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Element f of the flattened tensor belongs to example owners[f // step % len(owners)]; -1 stands for no example.

    The usual form, owners (0, ..., n - 1), has the examples along one axis. One owner means that all elements belong to
    the same example. No owners at all (`SHARED`) means that elements belong to several examples: a weight, a table that
    all examples read, or a sum over the batch.
    """

    step: int
    owners: tuple[int, ...]

    @property
    def is_constant(self) -> bool:
        """Whether all elements have the same owner, or all are shared."""
        return len(self.owners) < 2


SHARED = Layout(1, ())
NOBODY = Layout(1, (-1,))


def of_one(example: int) -> Layout:
    """All elements belong to one example."""
    return Layout(1, (int(example),))


def from_owners(owners: Sequence[int] | np.ndarray, step: int = 1) -> Layout:
    """The shortest layout in which runs of `step` elements belong to these owners in turn."""
    owners = np.asarray(owners)
    if not len(owners):
        return NOBODY
    starts = np.flatnonzero(np.diff(owners)) + 1
    if not len(starts):
        return of_one(owners[0])
    run = gcd(len(owners), *starts.tolist())
    owners = owners[::run]
    for period in range(2, len(owners) + 1):
        if len(owners) % period == 0 and (owners.reshape(-1, period) == owners[:period]).all():
            break
    return Layout(step * run, tuple(owners[:period].tolist()))


def one_per_loss(n: int) -> Layout:
    """The layout of the losses (n,) themselves."""
    return Layout(1, tuple(range(n))) if n > 1 else of_one(0)


def inner_size(shape: Shape, axis: int) -> int:
    """Elements from one index of an axis to the next."""
    return prod(shape[axis + 1 :])


def locate(layout: Layout, shape: Shape) -> tuple[int, int]:
    """(axis, run): the owners take turns along this axis, in runs of so many indices.

    Raises UnprovenError where they lie across several axes.
    """
    period = layout.step * len(layout.owners)
    for axis in range(len(shape) - 1, -1, -1):
        inner = inner_size(shape, axis)
        whole = inner * shape[axis]
        if inner <= layout.step and period <= whole and layout.step % inner == 0 and whole % period == 0:
            return axis, layout.step // inner
    raise UnprovenError("the examples lie across several axes")


def element_list(layout: Layout, size: int) -> np.ndarray:
    """The owners of so many elements, one by one, for layouts that are not shared.

    Raises UnprovenError where that would be a long list.
    """
    if size > MAX_PERIOD:
        raise UnprovenError(f"the owners of {size} elements would have to be listed one by one")
    return np.asarray(layout.owners)[np.arange(size) // layout.step % len(layout.owners)]


def owners_along(layout: Layout, shape: Shape, axis: int) -> np.ndarray | None:
    """The owners of the indices of an axis, or None where the examples lie along another one."""
    if layout.is_constant:
        return np.full(shape[axis], layout.owners[0])
    found, owners = examples_axis(layout, shape)
    return owners if found == axis else None


def examples_axis(layout: Layout, shape: Shape) -> tuple[int, np.ndarray]:
    """The axis along which the examples lie, and the owners of its indices, for layouts that are not constant."""
    axis, run = locate(layout, shape)
    return axis, np.tile(np.repeat(layout.owners, run), shape[axis] // (run * len(layout.owners)))


def along_axis(owners: np.ndarray, shape: Shape, axis: int) -> Layout:
    """The layout of a tensor whose indices along an axis belong to these owners."""
    return from_owners(owners, inner_size(shape, axis))


def collect(layout: Layout) -> Layout:
    """The layout of a tensor each element of which reaches all elements of another one: its owner, or `SHARED`."""
    owners = set(layout.owners) - {-1}
    if len(owners) > 1:
        return SHARED
    return of_one(owners.pop()) if owners else NOBODY


def carry(layout: Layout, source: Shape, target: Shape, axes: Mapping[int, int]) -> Layout:
    """The layout of a tensor of shape `target` whose axis axes[a] is axis a of `source`, the tensor with the layout.

    Axes of the source that are not listed were reduced, broadcast, contracted or mixed, so that an element of the
    target meets all their indices.
    """
    if layout.is_constant:
        return layout
    axis, run = locate(layout, source)
    to = axes.get(axis)
    if to is None or target[to] != source[axis]:
        return collect(layout)
    return Layout(run * inner_size(target, to), layout.owners)


def put(layout: Layout, source: Shape, target: Shape, axis: int, positions: np.ndarray) -> Layout:
    """The layout of a tensor of which source[..., j, ...] = target[..., positions[j], ...] along an axis of both.

    Elements of the target that the source does not show belong to nobody. Raises UnprovenError where two examples
    share one.
    """
    owners = owners_along(layout, source, axis)
    if owners is None:
        return carry(layout, source, target, {a: a for a in range(len(target)) if a != axis})
    found = np.full(target[axis], -1)
    np.maximum.at(found, positions, owners)
    if (found[positions] != owners)[owners >= 0].any():
        return SHARED
    return along_axis(found, target, axis)


def take(layout: Layout, source: Shape, target: Shape, axis: int, positions: np.ndarray) -> Layout:
    """The layout of a tensor of which target[..., j, ...] = source[..., positions[j], ...], along an axis of both."""
    owners = owners_along(layout, source, axis)
    if layout.is_constant or owners is None:
        return carry(layout, source, target, {a: a for a in range(len(source)) if a != axis})
    return along_axis(owners[positions], target, axis)


def merge(first: Layout, second: Layout) -> Layout | None:
    """The layout of a gradient that is the sum of two; None where they disagree."""
    if first == second or second == NOBODY:
        return first
    if first == NOBODY:
        return second
    if SHARED in (first, second):
        return None
    step = gcd(first.step, second.step)
    size = lcm(first.step * len(first.owners), second.step * len(second.owners))
    if size // step > MAX_PERIOD:
        return None
    a, b = (np.tile(np.repeat(x.owners, x.step // step), size // (x.step * len(x.owners))) for x in (first, second))
    if ((a != b) & (a >= 0) & (b >= 0)).any():
        return None
    return from_owners(np.maximum(a, b), step)


def element_owners(layout: Layout, shape: Shape, axes: Sequence[int]) -> np.ndarray:
    """The owners of the rows of a tensor, its axes `axes` flattened to one in this order and all others a row.

    Returns (R,) with R the product of these axes. Raises UnprovenError where a row belongs to several examples.
    """
    sizes = [shape[axis] for axis in axes]
    if layout == SHARED:
        raise UnprovenError("every row belongs to several examples")
    if layout.is_constant:
        return np.full(prod(sizes), layout.owners[0])
    axis, owners = examples_axis(layout, shape)
    if axis not in axes:
        raise UnprovenError("every row belongs to several examples")
    view = [-1 if a == axis else 1 for a in axes]
    return np.broadcast_to(owners.reshape(view), sizes).reshape(-1)
