"""How much work an evaluation is, for its progress bar: in forward passes through the model, roughly."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from pyengm.attacks import AutoAttack, ThreatModel
from pyengm.evaluation.attack_spec import parse_spec
from pyengm.evaluation.trust.probe import MAX_IMAGES

STEP = 3  # forward passes that a step with an input gradient takes as long as
MEMBERS = {"apgd-ce": 300, "apgd-t": 1350, "fab-t": 1350, "square": 2500}  # half of the images resist the first one
DISTANCE = 500
CHECKS = 1300  # of the block of checks, for an image: 250 steps, 500 queries and some predictions


@dataclass(frozen=True)
class Part:
    """An attack of a job.

    Args:
        cost: its cost.
        members: the costs of the passes of a batch, relative to each other.
    """

    cost: float
    members: tuple[float, ...] = (1.0,)

    def share(self, done: int, total: int) -> float:
        """The share of the work after `done` of `total` passes."""
        if total % len(self.members):  # a member does not apply to these images
            return done / total
        batches, passes = divmod(done, len(self.members))
        work = batches * sum(self.members) + sum(self.members[:passes])
        return work / (sum(self.members) * total / len(self.members))


class Work:
    """The work of several jobs, each a list of attacks in order.

    Args:
        jobs: the parts of each job, by its key.
    """

    def __init__(self, jobs: Mapping[Hashable, Sequence[Part]]):
        self._jobs = dict(jobs)
        self._begun = dict.fromkeys(jobs, 0)  # parts
        self._shares = dict.fromkeys(jobs, 0.0)  # of the last part that has begun

    def begin(self, key: Hashable) -> None:
        """Notes that the next attack of a job has begun."""
        self._begun[key] += 1
        self._shares[key] = 0.0

    def advance(self, key: Hashable, done: int, total: int) -> None:
        """Notes that so many passes of the present attack of a job, of their total number, are done."""
        self._shares[key] = self._jobs[key][self._begun[key] - 1].share(done, total)

    def share(self) -> float:
        """The share of all work that is done, in [0, 1]."""
        done = 0.0
        for key, parts in self._jobs.items():
            *before, current = [Part(0.0), *parts[: self._begun[key]]]
            done += sum(part.cost for part in before) + self._shares[key] * current.cost
        total = sum(part.cost for parts in self._jobs.values() for part in parts)
        return done / total if total else 1.0


def parts_of(attacks: Sequence[str], threat: ThreatModel, images: int, few: int, *, transfer: bool) -> list[Part]:
    """The parts of `evaluate_source`, in their order: those of `evaluate_one_threat`, and the checks of the results.

    Args:
        attacks: names or specs of attacks.
        threat: the threat model.
        images: the number of images.
        few: the number of those that AutoAttack and its members attack.
        transfer: whether a surrogate is attacked too.
    """
    parts = [Part(images)] + ([Part(20 * STEP * images)] if transfer else [])
    runs = (run for text in attacks for run in parse_spec(text).at_each_eps(threat))
    for spec, one in runs:
        attack = spec.create(one)
        if isinstance(attack, AutoAttack):
            costs = tuple(float(MEMBERS[member]) for member in attack.attacks)
            parts.append(Part(few * sum(costs), costs))
        else:
            passes = getattr(attack, "steps", DISTANCE) * getattr(attack, "restarts", 1)
            parts.append(Part(images * STEP * float(passes)))
    return [*parts, Part(CHECKS * min(few, MAX_IMAGES))]
