"""Numbers that figures are read by: short pipelines over the arrays of an analysis."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from pyengm.errors import ConfigError
from pyengm.utils.did_you_mean import did_you_mean

Arrays = Mapping[str, np.ndarray]
Reading = str | list[str]
"""PART:ARRAY, or PART:ARRAY|STEP|STEP..., each step of `STEPS`, some with =NUMBER; a list is a vector of scalars."""


def read_value(reading: Reading, parts: Mapping[str, Arrays]) -> np.ndarray:
    """Computes a reading.

    Args:
        reading: What to read.
        parts: The arrays of each part of the figure.

    Returns:
        An array in float64.

    Raises:
        ConfigError: A part, an array or a step is unknown, or a row or column beyond the array.
    """
    if isinstance(reading, list):
        return np.array([float(read_value(one, parts)) for one in reading])
    source, *steps = reading.split("|")
    part, _, key = source.partition(":")
    if part not in parts or key not in parts[part]:
        known = ", ".join(f"{name}:{key}" for name, arrays in parts.items() for key in arrays)
        raise ConfigError(f"reading {reading!r} is of no array of the figure; known: {known}")
    value = np.asarray(parts[part][key], dtype=np.float64)
    for step in steps:
        try:
            value = np.asarray(step_function(step)(value), dtype=np.float64)
        except IndexError as error:
            raise ConfigError(f"reading {reading!r}: {step} is beyond an array of shape {value.shape}") from error
    return value


def check_reading(reading: Any, parts: list[str]) -> None:
    """Checks the parts and the steps that a reading names, before there are arrays.

    Raises:
        ConfigError: One is unknown.
    """
    for one in reading if isinstance(reading, list) else [reading]:
        if not isinstance(one, str) or one.partition(":")[0] not in parts:
            raise ConfigError(f"reading {one!r}; expected PART:ARRAY with a part of {', '.join(parts)}")
        for step in one.split("|")[1:]:
            step_function(step)


def step_function(step: str) -> Callable[[np.ndarray], Any]:
    """The function of a step such as "mean" or "share_below=0.1".

    Raises:
        ConfigError: It is unknown, or has no number where it needs one.
    """
    name, equals, number = step.partition("=")
    known = WITH_NUMBER if equals else STEPS
    if name not in known:
        raise ConfigError(
            f"unknown step {step!r}{did_you_mean(name, [*STEPS, *WITH_NUMBER])}; known: {', '.join(STEPS)}, and "
            f"with =NUMBER {', '.join(WITH_NUMBER)}"
        )
    if not equals:
        return STEPS[name]
    try:
        return partial(WITH_NUMBER[name], number=float(number))
    except ValueError:
        raise ConfigError(f"step {step!r}: expected a number after =") from None


def middles(edges: np.ndarray) -> np.ndarray:
    """(B,) middles of bins of (B + 1,) edges."""
    return (edges[1:] + edges[:-1]) / 2


def skewness(values: np.ndarray) -> float:
    """The third standardised moment of all values: above 0 for a long tail on the right; nan for constants."""
    deviation = values - values.mean()
    scale = np.sqrt((deviation**2).mean())
    return float((deviation**3).mean() / scale**3) if scale > 0 else float("nan")


def roughness(planes: np.ndarray) -> float:
    """How far losses (n, R, R) on grids are from planes: the root mean square of their second differences, over all
    images and along both axes."""
    bends = [np.diff(planes, 2, axis=axis).ravel() for axis in (1, 2)]
    return float(np.sqrt((np.concatenate(bends) ** 2).mean()))


def bulge(planes: np.ndarray) -> float:
    """How much higher losses (n, R, R) are between an image and its adversarial example than at both, as a share of the
    larger of these, for the mean plane over the images; 0 where nothing between is higher.

    The grid is that of `pyengm.analysis.input_plane`: from -1.5 to 1.5, the image in the middle.
    """
    mean = planes.mean(axis=0)
    middle = len(mean) // 2
    attack = middle + round(middle / 1.5)
    line = mean[middle : attack + 1, middle]
    end = max(line[0], line[-1])
    return float(max(line.max() - end, 0.0) / end)


def centre(losses: np.ndarray) -> float:
    """The mean loss of lines (S, R) in their middle."""
    return float(losses[:, losses.shape[1] // 2].mean())


def rise_half_way(losses: np.ndarray) -> float:
    """How much the mean loss of lines (S, R) rises from their middle to half of the way out, on both sides."""
    middle = losses.shape[1] // 2
    line, step = losses.mean(axis=0), middle // 2
    return float((line[middle - step] + line[middle + step]) / 2 - line[middle])


def kink_at_origin(surface: np.ndarray, *, number: float) -> float:
    """The jump of the slope of a surface (R, R) at its middle, along the first axis, on a grid of spacing `number`.

    Where the surface is smooth it is the spacing times the curvature.
    """
    middle = len(surface) // 2
    return _jumps(surface[:, middle], number)[middle - 1]


def kink_at_axes(surface: np.ndarray, *, number: float) -> float:
    """The largest jump of the slope of a surface (R, R) across its two axes, at weights of 1 or more in size."""
    middle = len(surface) // 2
    away = [i for i in range(len(surface)) if abs(i - middle) * number >= 1]
    lines = [surface[:, i] for i in away] + [surface[i, :] for i in away]
    return float(max(_jumps(line, number)[middle - 1] for line in lines))


def kinked(surface: np.ndarray, *, number: float) -> float:
    """The share of the points of a surface (R, R) at which the slope jumps, by more than .1, along one of the axes."""
    first = np.abs(np.diff(surface, 2, axis=0))[:, 1:-1] / number
    second = np.abs(np.diff(surface, 2, axis=1))[1:-1] / number
    return float((np.maximum(first, second) > 0.1).mean())


def _jumps(line: np.ndarray, spacing: float) -> np.ndarray:
    return np.abs(np.diff(line, 2)) / spacing


STEPS: Mapping[str, Callable[[np.ndarray], Any]] = {
    "mean": lambda a: a.mean(),
    "largest": lambda a: a.max(),
    "rows": lambda a: a.mean(axis=-1),
    "first": lambda a: a[0],
    "last": lambda a: a[-1],
    "spread": lambda a: a.std(axis=-1),
    "relative_spread": lambda a: a.std(axis=-1) / np.abs(a.mean(axis=-1)),
    "middles": middles,
    "skewness": skewness,
    "roughness": roughness,
    "bulge": bulge,
    "centre": centre,
    "rise_half_way": rise_half_way,
}
WITH_NUMBER: Mapping[str, Callable[..., Any]] = {
    "row": lambda a, number: a[int(number)],
    "from_row": lambda a, number: a[int(number) :],
    "column": lambda a, number: a[..., int(number)],
    "share_below": lambda a, number: (a < number).mean(axis=-1),
    "share_of_largest": lambda a, number: (a >= number * a.max()).mean(axis=-1),
    "kink_at_origin": kink_at_origin,
    "kink_at_axes": kink_at_axes,
    "kinked": kinked,
}
