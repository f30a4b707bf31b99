"""Sub-AT: adversarial training in the subspace of an earlier trajectory (Li et al. 2022)."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyengm.attacks import PGD
from pyengm.data import Transform
from pyengm.errors import CheckpointError, ConfigError
from pyengm.methods.dataset_spec import DatasetSpec
from pyengm.methods.info import MethodInfo, PassCounts
from pyengm.methods.pgd_at import PGDAT
from pyengm.methods.registry import register_method
from pyengm.ops import Key
from pyengm.utils.distributed import all_reduce_sum

COLUMNS = 1 << 18  # of the parameters that are converted to float64 at a time


@register_method
class SubAT(PGDAT):
    """L_i = CE(f(x'_i), y_i), x' from PGD with a random start; first in all weights, then again in a subspace of them.

    The first `sampling_epochs` epochs are ordinary adversarial training. They give snapshots W_0, ..., W_m of the
    trained parameters: the initial ones, and those of the middle and the end of every epoch. The rows of P are the
    principal components of the snapshots about their mean. Then the run restarts at W_0, with the initial batch-norm
    statistics and no momentum; every gradient g becomes P^T P g, the learning rate is 1 and there is no weight decay.
    With one step the second phase attacks with twice the eps and step size, as in the authors' best results, where the
    model is evaluated at the first eps.
    The method needs `prepare`, for the number of images, `start_epoch` and `finish_epoch`, which take snapshots, and
    `before_step`, which projects. Snapshots are float32 in host memory, P is float32 on the model's device, and each is
    a part of the state while it is used: (2 sampling_epochs + 1) or `dimension` times the size of the model.

    Args:
        eps: Radius of the threat model, in pixel units.
        step_size: Step size of PGD, in pixel units; eps / 4 unless given, and 1.25 eps where steps = 1.
        steps: Steps of PGD.
        epochs: Length of the run in epochs, both phases together.
        sampling_epochs: Epochs of the first phase; unless given the authors' share, 100 of 140, or 65 of 105 where
            steps = 1.
        dimension: Most rows of P; 100 unless given, or 80 where steps = 1; fewer where the snapshots span less.
        norm: Norm of the threat model, "linf" or "l2".
        bn: Batch-norm mode of the attack: "train" as in the authors' code, "eval" or "batch_stats".

    Raises:
        ConfigError: A value or name is out of range, or one of the calls above is missing.

    References:
        Li et al. 2022, "Subspace Adversarial Training", Sec. 4; the defaults from the authors' code.
    """

    info = MethodInfo(
        name="sub_at",
        title="training in a subspace of its own past",
        reference="Li et al. 2022",
        passes=PassCounts(1, 1, 1, per_step=True, remark="{}, with one step 2 + 2 + 1"),
        recipe={"attack_steps": 1, "epochs": 105, "milestones": (), "select_on": "none"},
        epoch_options={"sampling_epochs": 1},
        modifies_grads=True,
    )

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
        self.momentum_cleared = False  # before the first step of the second phase

    def prepare(self, dataset: DatasetSpec) -> None:
        self.images = int(all_reduce_sum(torch.tensor(len(dataset.index))))

    def start_epoch(self, model: nn.Module, epoch: int) -> None:
        self.epoch, self.seen = epoch, 0
        if epoch == 0:
            self.initial = {name: t.detach().cpu().clone() for name, t in model.state_dict().items()}
            self.snapshots = [snapshot(model)]
        elif self.basis is None and not self.initial:
            raise ConfigError("Sub-AT starts with a snapshot before epoch 0: start there, or load the state of the run")
        if epoch == self.sampling_epochs:
            self.basis = principal_components(self.snapshots, self.dimension)
            model.load_state_dict(self.initial)
            self.snapshots, self.initial, self.momentum_cleared = [], {}, False

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
        if not isinstance(optimizer, torch.optim.SGD):
            raise ConfigError(
                f"Sub-AT steps within a subspace, by SGD with momentum, and {type(optimizer).__name__} would leave it: "
                "use torch.optim.SGD or an optimiser of pyengm.optim"
            )
        if not self.momentum_cleared:
            optimizer.state.clear()
            self.momentum_cleared = True
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
        names = ("epoch", "seen", "initial", "snapshots", "basis", "momentum_cleared")
        return {name: getattr(self, name) for name in names}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        snapshots, basis = state["snapshots"], state["basis"]
        sizes = {t.shape[-1] for t in (*snapshots, *([] if basis is None else [basis]))}
        if len(sizes) > 1:
            raise CheckpointError(f"expected snapshots of one model, got some of {sorted(sizes)} weights")
        self.epoch, self.seen, self.momentum_cleared = state["epoch"], state["seen"], state["momentum_cleared"]
        self.initial = {name: t.cpu() for name, t in state["initial"].items()}
        self.snapshots, self.basis = [t.cpu() for t in snapshots], basis


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are trained."""
    return [p for p in model.parameters() if p.requires_grad]


@torch.no_grad()
def snapshot(model: nn.Module) -> Tensor:
    """All trained parameters in one float32 vector (D,) in host memory."""
    return torch.cat([p.flatten().float() for p in trained(model)]).cpu()


def principal_components(points: list[Tensor], dimension: int) -> Tensor:
    """The first principal components of points, from the m x m matrix of inner products, never a D x D one.

    Args:
        points: m vectors (D,).
        dimension: The most components to return.

    Returns:
        (k, D) orthonormal rows in float32, k the lesser of dimension and the rank of the centred points.
    """
    gram = torch.zeros(len(points), len(points), dtype=torch.float64)
    for part in _centred(points):
        gram += part @ part.T
    values, vectors = torch.linalg.eigh(gram)  # ascending
    values, vectors = values.flip(0), vectors.flip(1)
    # Below 1e-10 of the largest variance a direction is due to rounding errors, and no longer orthogonal to the others.
    k = min(dimension, int((values > max(1e-10 * values[0].item(), 0.0)).sum()))
    rotation = (vectors[:, :k] / values[:k].sqrt()).T
    rows = torch.empty(k, len(points[0]))
    for columns, part in zip(rows.split(COLUMNS, dim=1), _centred(points), strict=True):
        columns.copy_(rotation @ part)
    return rows


def _centred(points: list[Tensor]) -> Iterator[Tensor]:
    """The points minus their mean, a part of the columns at a time, (m, at most COLUMNS) in float64."""
    for first in range(0, len(points[0]), COLUMNS):
        part = torch.stack([point[first : first + COLUMNS] for point in points]).double()
        yield part - part.mean(dim=0)
