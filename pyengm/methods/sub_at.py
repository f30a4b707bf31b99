"""Sub-AT: adversarial training in the subspace of an earlier run's path (Li et al. 2022)."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyengm.attacks import PGD
from pyengm.data import Transform
from pyengm.errors import CheckpointError, ConfigError
from pyengm.methods.base import DatasetSpec
from pyengm.methods.pgd_at import PGDAT
from pyengm.ops import Key
from pyengm.utils.distributed import all_reduce_sum

COLUMNS = 1 << 18  # of the parameters that are in float64 at a time


class SubAT(PGDAT):
    """L_i = CE(f(x'_i), y_i), x' from PGD with a random start; first in all weights, then again in a subspace of them.

    The first `sampling_epochs` epochs are ordinary adversarial training. They leave snapshots W_0, ..., W_m of the trained
    parameters: the initial ones, and those of the middle and the end of every epoch. The rows of P are the principal
    components of the snapshots about their mean. Then the run begins again at W_0, with the batch-norm statistics of
    then and no momentum; every gradient g becomes P^T P g, the learning rate is 1 and nothing decays.
    One step (fast): the second phase attacks with twice the eps and step, as with the authors' best results, where
    the model is to resist the first eps.

    eps, step_size: in pixel units; step_size is eps / 4 unless given, and 1.25 eps where steps = 1. steps: of PGD.
    epochs: the length of the run, both phases together. sampling_epochs: epochs of the first phase; unless given the authors'
    share, 100 of 140, or 65 of 105 where steps = 1. dimension: the most rows of P; 100 unless given, or 80 where
    steps = 1; fewer where the snapshots span less.
    norm: "linf" or "l2". bn: batch-norm mode of the attack, "train" as in the authors' code.
    Needs `prepare`, for the number of images, `start_epoch` and `finish_epoch`, which take snapshots, and
    `before_step`, which projects. Snapshots are float32 in host memory, P float32 on the model's device, and each is a
    part of the state while it is used: (2 sampling_epochs + 1) or `dimension` times the size of the model.
    Raises ConfigError for numbers and names out of range, and where a call above is missing.
    Source: Li et al. 2022, "Subspace Adversarial Training", Sec. 4; the numbers from the authors' code.
    """

    modifies_grads = True

    def __init__(
        self,
        eps: float,
        step_size: float | None = None,
        steps: int = 10,
        *,
        epochs: int,
        sampling_epochs: int | None = None,
        dimension: int | None = None,
        norm: str = "linf",
        bn: str = "train",
    ):
        fast = steps == 1
        step_size = (1.25 if fast else 0.25) * eps if step_size is None else step_size
        super().__init__(eps, step_size, steps, norm=norm, bn=bn)
        self.sampling_epochs = (
            max(1, round(epochs * (65 / 105 if fast else 100 / 140))) if sampling_epochs is None else sampling_epochs
        )
        self.dimension = (80 if fast else 100) if dimension is None else dimension
        if not 0 < self.sampling_epochs < epochs or self.sampling_epochs != int(self.sampling_epochs):
            raise ConfigError(
                f"epochs and sampling_epochs are {epochs} and {self.sampling_epochs}; "
                "expected at least one epoch that takes snapshots, and at least one more"
            )
        if self.dimension < 1 or self.dimension != int(self.dimension):
            raise ConfigError(f"dimension is {dimension}; expected at least 1")
        self.restart_epoch = self.sampling_epochs
        self.later = PGD(2 * eps, 2 * step_size, 1, norm=norm, bn=bn) if fast else self.attack
        self.images = 0  # of all processes, in an epoch
        self.epoch: int | None = None
        self.seen = 0  # images of all processes, in this epoch
        self.initial: dict[str, Tensor] = {}  # the model's state at the very start
        self.snapshots: list[Tensor] = []  # (D,) each
        self.basis: Tensor | None = None  # P, (k, D), once there is one
        self.moving = False  # whether the second phase has begun to step

    def prepare(self, examples: DatasetSpec) -> None:
        self.images = int(all_reduce_sum(torch.tensor(len(examples.index))))

    def start_epoch(self, model: nn.Module, epoch: int) -> None:
        self.epoch, self.seen = epoch, 0
        if epoch == 0:
            self.initial = {name: t.detach().cpu().clone() for name, t in model.state_dict().items()}
            self.snapshots = [snapshot(model)]
        elif self.basis is None and not self.initial:
            raise ConfigError("Sub-AT begins with a snapshot before epoch 0: start there, or load the state of the run")
        if epoch == self.sampling_epochs:
            self.basis = principal_components(self.snapshots, self.dimension)
            model.load_state_dict(self.initial)
            self.snapshots, self.initial, self.moving = [], {}, False

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, key: Key, transform: Transform | None = None) -> Tensor:
        if self.epoch is None or self.images == 0:
            raise ConfigError(
                "Sub-AT takes snapshots: call prepare(DatasetSpec(...)) once, and start_epoch every epoch"
            )
        if self.basis is not None:
            return self.later(model, x, y, key=key)
        before, self.seen = self.seen, self.seen + int(all_reduce_sum(torch.tensor(len(x))))
        if 2 * before < self.images <= 2 * self.seen and before > 0:
            self.snapshots.append(snapshot(model))
        return super().perturb(model, x, y, key, transform)

    def finish_epoch(self, model: nn.Module, metrics: Mapping[str, Any]) -> bool:
        if self.basis is None:
            self.snapshots.append(snapshot(model))
        return False

    @torch.no_grad()
    def before_step(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if self.basis is None:
            return
        if not self.moving:
            optimizer.state.clear()
            self.moving = True
        for group in optimizer.param_groups:
            group["lr"], group["weight_decay"] = 1.0, 0.0
        params = trained(model)
        gradient = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten().float() for p in params])
        self.basis = self.basis.to(gradient.device)
        if self.basis.shape[1] != len(gradient):
            raise ConfigError(f"the snapshots are of {self.basis.shape[1]} weights, but {len(gradient)} are trained")
        within = self.basis.T @ (self.basis @ gradient)
        for p, part in zip(params, within.split([p.numel() for p in params]), strict=True):
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            p.grad.copy_(part.view_as(p))

    def extra_state(self) -> dict[str, Any]:
        names = ("epoch", "seen", "initial", "snapshots", "basis", "moving")
        return {name: getattr(self, name) for name in names}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        snapshots, basis = state["snapshots"], state["basis"]
        sizes = {t.shape[-1] for t in (*snapshots, *([] if basis is None else [basis]))}
        if len(sizes) > 1:
            raise CheckpointError(f"expected snapshots of one model, got some of {sorted(sizes)} weights")
        self.epoch, self.seen, self.moving = state["epoch"], state["seen"], state["moving"]
        self.initial = {name: t.cpu() for name, t in state["initial"].items()}
        self.snapshots, self.basis = [t.cpu() for t in snapshots], basis


def trained(model: nn.Module) -> list[Tensor]:
    return [p for p in model.parameters() if p.requires_grad]


@torch.no_grad()
def snapshot(model: nn.Module) -> Tensor:
    """All trained parameters in one float32 vector (D,) in host memory."""
    return torch.cat([p.flatten().float() for p in trained(model)]).cpu()


def principal_components(points: list[Tensor], dimension: int) -> Tensor:
    """The first directions (k, D) along which m points (D,) vary about their mean: orthonormal rows, float32.

    k is the least of dimension and the rank. The m x m matrix of inner products gives them, never a D x D one.
    """
    gram = sum(part @ part.T for part in _centred(points))
    values, vectors = torch.linalg.eigh(gram)  # ascending
    values, vectors = values.flip(0), vectors.flip(1)
    # Below a share of 1e-10 of the variance a direction is one of rounding errors, and no longer orthogonal to others.
    k = min(dimension, int((values > max(1e-10 * values[0].item(), 0.0)).sum()))
    turn = (vectors[:, :k] / values[:k].sqrt()).T
    rows = torch.empty(k, len(points[0]))
    for columns, part in zip(rows.split(COLUMNS, dim=1), _centred(points), strict=True):
        columns.copy_(turn @ part)
    return rows


def _centred(points: list[Tensor]) -> Iterator[Tensor]:
    """Columns of the points about their mean, a part at a time, (m, at most COLUMNS) in float64."""
    for first in range(0, len(points[0]), COLUMNS):
        part = torch.stack([point[first : first + COLUMNS] for point in points]).double()
        yield part - part.mean(dim=0)
