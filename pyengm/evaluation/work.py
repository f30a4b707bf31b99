"""How much work an evaluation is, for its progress bar: in forward passes through the model, roughly."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from pyengm.attacks import AutoAttack, ThreatModel
from pyengm.evaluation.attack_registry import create_attack

STEP = 3  # forward passes that a step with an input gradient takes as long as
MEMBERS = {"apgd-ce": 100 * STEP, "apgd-t": 900 * STEP, "fab-t": 900 * STEP, "square": 5000}  # of an image that resists
RESISTING = 0.5  # share of the images that the later members of AutoAttack still attack
DISTANCE = 500


@dataclass
class _Job:
    """Costs of the parts of a job, how many of them have begun, and the share of the last of those that is done."""

    costs: Sequence[float]
    begun: int = 0
    share: float = 0.0

    def done(self) -> float:
        """The cost of what is done."""
        before = sum(self.costs[: max(0, self.begun - 1)])
        current = self.costs[self.begun - 1] if 0 < self.begun <= len(self.costs) else 0.0
        return before + self.share * current


class Work:
    """The work of several jobs, each a list of attacks in order.

    Args:
        jobs: the cost of each attack of a job, by the key of the job.
    """

    def __init__(self, jobs: Mapping[Hashable, Sequence[float]]):
        self._jobs = {key: _Job(costs) for key, costs in jobs.items()}

    def begin(self, key: Hashable) -> None:
        """Notes that the next attack of a job has begun."""
        self._jobs[key].begun += 1
        self._jobs[key].share = 0.0

    def advance(self, key: Hashable, share: float) -> None:
        """Notes that a share, in [0, 1], of the present attack of a job is done."""
        self._jobs[key].share = share

    def share(self) -> float:
        """The share of all work that is done, in [0, 1]."""
        total = sum(sum(job.costs) for job in self._jobs.values())
        return sum(job.done() for job in self._jobs.values()) / total if total else 1.0


def costs_of(attacks: Sequence[str], threat: ThreatModel, images: int, few: int, *, transfer: bool) -> list[float]:
    """The costs of the parts of `evaluate_one_threat`, in their order.

    Args:
        attacks: names of attacks.
        threat: the threat model.
        images: the number of images.
        few: the number of those that AutoAttack and its members attack.
        transfer: whether a surrogate is attacked too.
    """
    costs = [float(images)] + ([20.0 * STEP * images] if transfer else [])
    for name in attacks:
        attack = create_attack(name, threat)
        if isinstance(attack, AutoAttack):
            costs.append(RESISTING * few * sum(MEMBERS[member] for member in attack.attacks))
        else:
            costs.append(images * STEP * float(getattr(attack, "steps", DISTANCE)))
    return costs
