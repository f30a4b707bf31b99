"""Whether the accuracies can be trusted: the checks of an evaluation and the warnings of AutoAttack."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyengm.attacks import ThreatModel
from pyengm.report.results import Results
from pyengm.report.source import Source


@dataclass(frozen=True)
class Check:
    """A line of the block.

    Args:
        title: What holds for a model that can be trusted.
        passed: Whether it holds.
        figure: The numbers that decided.
    """

    title: str
    passed: bool
    figure: str


@dataclass(frozen=True)
class TrustBlock:
    """The checks of a model under a threat model.

    Args:
        heading: The run, the model and the threat model.
        remark: On how many images they ran, or why there are none.
        checks: The checks.
    """

    heading: str
    remark: str
    checks: list[Check]

    @property
    def passed(self) -> int:
        """The number of checks that passed."""
        return sum(check.passed for check in self.checks)


@dataclass(frozen=True)
class Trust:
    """What is known of the trust in the accuracies of all runs.

    Args:
        blocks: The checks.
        warnings: The warnings of AutoAttack as sentences.
        without: The names of evaluations without checks.
    """

    blocks: list[TrustBlock]
    warnings: list[str]
    without: list[str]

    @property
    def count(self) -> tuple[int, int]:
        """The numbers of checks that passed, and of all."""
        return sum(block.passed for block in self.blocks), sum(len(block.checks) for block in self.blocks)


def trust_of(source: Source) -> Trust:
    """The trust in the final evaluation of a run and in its further ones."""
    blocks, warnings, without = [], [], []
    for number, results in source.evaluations().items():
        name = f"{source.label} {number}".strip()
        if results.detail("trust"):
            blocks += _blocks(name, results)
        else:
            without.append(name)
        warnings += [_sentence(name, one) for one in results.detail("warnings") or ()]
    return Trust(blocks, list(dict.fromkeys(warnings)), without)


def joined(trusts: Sequence[Trust]) -> Trust:
    """That of several runs."""
    return Trust(
        [block for trust in trusts for block in trust.blocks],
        [line for trust in trusts for line in trust.warnings],
        [name for trust in trusts for name in trust.without],
    )


def _blocks(name: str, results: Results) -> list[TrustBlock]:
    threats = {threat.norm: threat for threat in results.threats}
    found = []
    for model, by_norm in results.detail("trust").items():
        for norm, block in by_norm.items():
            checks = [Check(one["title"], one["passed"], one["figure"]) for one in block["checks"]]
            remark = (
                f"on {block['images']} images" if checks else f"not checked: {block.get('reason', 'no reason given')}"
            )
            found.append(TrustBlock(f"{name}, {model}, {threats.get(norm, norm)}", remark, checks))
    return found


def _sentence(name: str, warning: dict[str, Any]) -> str:
    threat = warning["threat"]
    under = str(ThreatModel(**threat)) if isinstance(threat, dict) else str(threat)
    return f"{name}, {warning['model']}, {warning['attack']} ({under}): {warning['text']}."
