"""The results of evaluations of an entry: what was measured, with mean and spread over the seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pyengm.attacks import ThreatModel
from pyengm.comparison.entries import ComparedRun, Entry
from pyengm.errors import ConfigError
from pyengm.evaluation.attack_registry import NATURAL, SAME_EXAMPLES
from pyengm.report.results import Measured, Results
from pyengm.training.multi_seed import sample_deviation

MODELS = ("best", "last")
OTHER_IMAGES = ("indices", "surrogate", "weights")  # in the description of an evaluation of something else


@dataclass(frozen=True)
class Measure:
    """What was measured.

    Attributes:
        model: "best" or "last".
        name: The attack and its options, as the results name it.
        title: The same in words.
        threat: The threat model in words; empty for natural images and for distances.
        images: The number of images; None for distances.
        is_distance: Whether it is a distance in pixel units, and no accuracy.
    """

    model: str
    name: str
    title: str
    threat: str
    images: int | None
    is_distance: bool = False


@dataclass(frozen=True)
class Value:
    """A mean over seeds.

    Attributes:
        mean: Accuracies and shares in per cent.
        spread: The sample standard deviation; None for one seed.
        seeds: The number of seeds.
    """

    mean: float
    spread: float | None
    seeds: int


def value_of(values: Sequence[float]) -> Value:
    """The mean and the spread of values, one for each seed."""
    return Value(float(np.mean(values)), sample_deviation(values), len(values))


def measures_of(entries: Sequence[Entry]) -> tuple[dict[str, dict[Measure, Value]], list[str]]:
    """Returns the results by entry, and remarks on evaluations that are left out.

    Results of runs without held-out images are those of the last weights alone. Where all entries are evaluated under
    one radius of a norm, the threat model has it; else results under the radius of the training say so.

    Args:
        entries: The entries.

    Raises:
        ConfigError: The runs of an entry were not evaluated in the same way.
    """
    own = {run.source.results.threats[0] for entry in entries for run in entry.runs}
    several = {threat.norm for threat in own if len({one.eps for one in own if one.norm == threat.norm}) > 1}
    found, remarks = {}, []
    for entry in entries:
        of_runs = []
        for run in entry.runs:
            values, left_out = _measured(run, several)
            of_runs.append(values)
            remarks += left_out
        found[entry.name] = _mean(entry, of_runs)
    return found, remarks


def _mean(entry: Entry, of_runs: Sequence[Mapping[Measure, float]]) -> dict[Measure, Value]:
    measures = list(dict.fromkeys(measure for values in of_runs for measure in values))
    partly = [one for one in measures if any(one not in values for values in of_runs)]
    if partly:
        seeds = [run.seed for run, values in zip(entry.runs, of_runs, strict=True) if partly[0] in values]
        raise ConfigError(
            f"the runs of {entry.name!r} were not evaluated in the same way: {_words(partly[0])} is there for the "
            f"seeds {', '.join(map(str, seeds))} alone; run pyengm evaluate on the others, or name the runs, "
            "NAME=FOLDER"
        )
    kept = [one for one in measures if one.model == "last" or entry.is_selected]
    return {one: value_of([values[one] for values in of_runs]) for one in kept}


def _words(one: Measure) -> str:
    images = "" if one.images is None else f" on {one.images} images"
    threat = f" ({one.threat})" if one.threat else ""
    return f"{one.title}{threat} of the {one.model} weights{images}"


def _measured(run: ComparedRun, several: set[str]) -> tuple[dict[Measure, float], list[str]]:
    """The results of a run: those of its own evaluation, and what further ones add; the newest of these count."""
    found: dict[Measure, float] = {}
    left_out, own = [], run.source.results.threats[0]
    for number, results in sorted(run.source.evaluations().items(), reverse=True):
        if number and (reason := _reason(run, results)):
            left_out.append(f"evaluation {number} of {run.folder.path.name} is left out: {reason}")
            continue
        found |= {
            _measure(model, one, own, several): one.value if one.key.is_distance else 100 * one.value
            for model in MODELS
            if model in results.models
            for one in results.measured(model)
            if one.key.name != SAME_EXAMPLES and (one.interval is not None or one.key.is_distance)
        }
    return found, left_out


def _reason(run: ComparedRun, results: Results) -> str | None:
    """Why a further evaluation is not of the test images of the run; None where it is."""
    about = results.content.get("evaluation") or {}
    if about.get("split", "test") != "test":
        return f"it is of the {about['split']} split"
    if (images := run.images("test")) is not None and about.get("data", images["name"]) != images["name"]:
        return f"it is of other images, {about['data']}"
    given = [name for name in OTHER_IMAGES if name in about]
    return f"it was made with {', '.join(given)}" if given else None


def _measure(model: str, one: Measured, own: ThreatModel, several: set[str]) -> Measure:
    key = one.key
    if key.name == NATURAL or key.is_distance or key.threat is None:
        threat = ""
    elif key.threat == own and not key.own_eps and own.norm in several:
        threat = f"{'L-infinity' if own.norm == 'linf' else 'L2'}, eps of the training"
    else:
        threat = str(key.threat)
    return Measure(model, key.name, key.title, threat, one.images, key.is_distance)
