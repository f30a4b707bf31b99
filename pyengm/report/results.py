"""The results of an evaluation, read from a results.json or from a file of `pyengm evaluate --out`."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from pyengm.attacks import ThreatModel
from pyengm.errors import ConfigError, DataError
from pyengm.evaluation.attack_registry import NATURAL
from pyengm.evaluation.one_threat import AFTER
from pyengm.evaluation.result_key import ResultKey, read_key
from pyengm.report.interval import wilson_interval
from pyengm.report.scrub import scrub
from pyengm.utils.file_format import RESULTS_FORMAT, check_format

DETAILS = ("standard_errors", "warnings", "trust")  # results about results, which older files lack


@dataclass(frozen=True)
class Measured:
    """One result of a model.

    Args:
        key: What it is.
        value: The accuracy in [0, 1], or another value.
        interval: The 95 % interval of an accuracy; None for other values.
        images: The number of images that an accuracy was measured on; None for other values.
    """

    key: ResultKey
    value: float
    interval: tuple[float, float] | None = None
    images: int | None = None


@dataclass(frozen=True)
class Results:
    """The results of an evaluation.

    Args:
        content: The content of the file, whose paths are shortened, see `scrub`.
        models: The names of the models.
        threats: The threat models; the names of results under all but the first end in its norm.
    """

    content: Mapping[str, Any]
    models: tuple[str, ...]
    threats: tuple[ThreatModel, ...]

    @property
    def all_images(self) -> int:
        """The number of images of the evaluation."""
        return self.content["images"]["all"]

    @property
    def few_images(self) -> int:
        """The number of images that AutoAttack got."""
        return self.content["images"]["autoattack"]

    def measured(self, model: str) -> list[Measured]:
        """The results of a model in the order of the file, without those after single members of AutoAttack."""
        values = self.content[model]
        return [self._measured(model, key, value) for key, value in values.items() if not key.startswith(AFTER)]

    def curves(self, model: str) -> dict[tuple[str, str], list[Measured]]:
        """The accuracies under attacks that ran with several radii, by norm and title of the attack."""
        found: dict[tuple[str, str], list[Measured]] = {}
        for one in self.measured(model):
            if one.key.own_eps and one.key.threat is not None and one.images is not None:
                found.setdefault((one.key.threat.norm, one.key.title), []).append(one)
        return {name: points for name, points in found.items() if len(points) > 1}

    def detail(self, name: str) -> Any:
        """One of DETAILS; None in files that lack it."""
        return self.content.get(name)

    def _measured(self, model: str, key: str, value: float) -> Measured:
        read = read_key(key, self.threats)
        error = ((self.content.get("standard_errors") or {}).get(model) or {}).get(key)
        if read.is_distance or not (read.is_known or read.own_eps or error is not None):
            return Measured(read, value)  # a distance, or a value of a later version
        images = self.few_images if read.on_few else self.all_images
        if error:  # sqrt(p (1 - p) / n), which gives n also for attacks on other images
            images = max(1, round(value * (1 - value) / error**2))
        return Measured(read, value, wilson_interval(value, images), images)


def read_results(path: Path) -> Results:
    """Reads the results of an evaluation.

    Args:
        path: A results.json of a run, or a file of `pyengm evaluate --out`.

    Raises:
        DataError: The file cannot be read, is damaged, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"cannot read the results {path}: {reason}; expected JSON of pyengm evaluate --out") from error
    if isinstance(content, dict):
        check_format(content.get("format"), RESULTS_FORMAT, path)
    try:
        return _check(scrub(content))
    except (ConfigError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else error
        raise DataError(
            f"{path} holds no results of an evaluation ({reason}); expected a run folder, or JSON of pyengm evaluate "
            "--out"
        ) from error


def _check(content: Any) -> Results:
    """The results, whose values are checked. Raises many kinds of errors."""
    if not isinstance(content, dict):
        raise ValueError(f"its content is a {type(content).__name__}")
    models = tuple(name for name, values in content.items() if name not in DETAILS and _is_model(values))
    if not models:
        raise ValueError("no model in it has a natural accuracy")
    threats = tuple(ThreatModel(**threat) for threat in content["threats"])
    for model in models:
        for key, value in content[model].items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"{key} of {model} is {value!r}; expected a number")
            read = read_key(key, threats)
            if (read.is_known or read.own_eps) and not read.is_distance and not 0 <= value <= 1:
                raise ValueError(f"{key} of {model} is {value!r}; expected an accuracy from 0 to 1")
    for name in ("all", "autoattack"):
        if not isinstance(content["images"][name], int) or content["images"][name] < 1:
            raise ValueError(f"the number of images is {content['images'][name]!r}")
    _check_details(content)
    return Results(content, models, threats)


def _check_details(content: dict[str, Any]) -> None:
    """Reads what a report shows of DETAILS, where they are there."""
    for block in (block for by_norm in (content.get("trust") or {}).values() for block in by_norm.values()):
        images, checks = itemgetter("images", "checks")(block)
        found = [(*map(str, itemgetter("title", "figure")(check)), bool(check["passed"])) for check in checks]
        if found and not images > 0:
            raise ValueError(f"checks of trust ran on {images!r} images")
    for warning in content.get("warnings") or ():
        itemgetter("model", "attack", "text")(warning)
        ThreatModel(**warning["threat"])
    for errors in (content.get("standard_errors") or {}).values():
        [float(error) for error in errors.values()]


def _is_model(values: Any) -> bool:
    return isinstance(values, dict) and NATURAL in values
