"""The head of a report: the main figures of each run."""

from collections.abc import Sequence
from dataclasses import dataclass

from pyengm.evaluation.attack_registry import NATURAL
from pyengm.report.results import Measured, Results
from pyengm.report.source import Source
from pyengm.report.trust import Trust
from pyengm.training import TrainConfig

STRONGEST = ("autoattack", "pgd20")  # the attack that a summary names, the first that ran


@dataclass(frozen=True)
class Figure:
    """A main figure.

    Args:
        title: What it is.
        value: In per cent, as text.
        interval: Its 95 % interval.
        remarks: The threat model, and the number of images.
    """

    title: str
    value: str
    interval: str
    remarks: tuple[str, str]


@dataclass(frozen=True)
class Summary:
    """The head of a run.

    Args:
        label: The run.
        lead: What it is, in a sentence.
        figures: The main figures, of the best weights of a run.
        model: The model that they belong to, in words.
        trust: Whether they can be trusted, in words.
        state: "pass", "warn" or "unknown".
    """

    label: str
    lead: str
    figures: list[Figure]
    model: str
    trust: str
    state: str


def summary_of(source: Source, trust: Trust) -> Summary:
    """The head of a run or of a file of results."""
    results = source.results
    model = results.models[0]
    figures = [_figure(one) for one in _main(results, model)]
    words = f"{model} weights" if source.run is not None else model
    return Summary(source.label, _lead(source), figures, words, *_trust_text(trust))


def _main(results: Results, model: str) -> list[Measured]:
    """The natural accuracy, and that under the strongest attack of each threat model."""
    measured = results.measured(model)
    chosen = [one for one in measured if one.key.name == NATURAL]
    for threat in results.threats:
        of_threat = {one.key.name: one for one in measured if one.key.threat == threat and not one.key.own_eps}
        name = next((name for name in STRONGEST if name in of_threat), None)
        robust = [one for one in of_threat.values() if one.interval is not None]
        if name is not None:
            chosen.append(of_threat[name])
        elif robust:
            chosen.append(min(robust, key=lambda one: one.value))
    return chosen


def _figure(one: Measured) -> Figure:
    assert one.interval is not None
    low, high = one.interval
    remarks = str(one.key.threat or "no attack"), f"{one.images} images"
    return Figure(one.key.title, f"{100 * one.value:.1f}", f"{100 * low:.1f} to {100 * high:.1f}", remarks)


def _lead(source: Source) -> str:
    if source.config is None:
        evaluated = source.results.content.get("evaluation")
        if not isinstance(evaluated, dict):
            return f"Results of {', '.join(source.results.models)}."
        return f"Results of {evaluated.get('target')} on {evaluated.get('data')}."
    return _sentence(source.config, str((source.options or {}).get("data", {}).get("name")))


def _sentence(config: TrainConfig, data: str) -> str:
    """What was trained. The options of a run are resolved."""
    epochs = f"{config.schedule.epochs} epochs" if config.schedule.epochs != 1 else "1 epoch"
    parts = f"method {config.method.name}, optimizer {config.optimizer.name}, {epochs}, seed {config.run.seed}"
    return f"{config.model.name} on {data}: {parts}."


def _trust_text(trust: Trust) -> tuple[str, str]:
    passed, total = trust.count
    warned = f"; warnings of AutoAttack: {len(trust.warnings)}" if trust.warnings else ""
    if not total:
        return f"not checked whether these figures can be trusted{warned}", "warn" if trust.warnings else "unknown"
    state = "pass" if passed == total and not trust.warnings else "warn"
    return f"{passed} of {total} checks of trust pass{warned}", state


def title_of(sources: Sequence[Source]) -> str:
    """The title of the report."""
    return ", ".join(source.label for source in sources)
