"""A training step whose forward and backward pass after the attack is captured in a CUDA graph."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from pyengm.data import Batch
from pyengm.errors import NonFiniteError
from pyengm.methods import AttackMethod, StepOutput
from pyengm.ops import Key
from pyengm.optim import ENGM, FENGM, MSGD, NENGM, PerExampleSGD
from pyengm.pergrad import PerExampleStats
from pyengm.training.steps.base import AverageGradients, StepStats
from pyengm.training.steps.captured_function import CapturedFunction, Results
from pyengm.utils.checks import Checks, require


def can_capture_backward(optimizer: PerExampleSGD) -> bool:
    """Whether most calls of `optimizer.backward` do the same for every batch.

    Under batch norm these are the calls of ENGM and FENGM that fit no norms. With `norms="lowrank"` every call makes
    the host wait, and `norms="exact"` takes a pass for each example.
    """
    if isinstance(optimizer, ENGM | FENGM) and optimizer.norms.mode in ("exact", "lowrank"):
        return False
    return type(optimizer) in (MSGD, ENGM, FENGM, NENGM)


class CudaGraphStep:
    """The step of a method that is an attack and then one pass with one update.

    Random numbers are drawn by the attack, before the captured pass. The step of the optimiser follows the pass, with
    the learning rate of the batch. A pass that fits norms to exact ones, or updates a fit, runs outside of the graph,
    which reads the fit in the memory where it stays (see `NormEstimator`). It needs as much memory again as the graph.

    Args:
        method: Computes the adversarial images, then the per-example losses.
        model: Maps images to logits (n, k), in training mode.
        optimizer: Has all parameters of the model; see `can_capture_backward`.
        average: Averages the gradients over the processes.
        captured: Captures the pass from the images to the gradients of the parameters.
    """

    batches_per_update = 1

    def __init__(
        self,
        method: AttackMethod,
        model: nn.Module,
        optimizer: PerExampleSGD,
        average: AverageGradients,
        captured: CapturedFunction,
    ):
        self.method, self.model, self.optimizer, self.average = method, model, optimizer, average
        self.captured = captured

    def __call__(self, batches: Sequence[Batch], keys: Sequence[Key]) -> StepStats:
        """One step on one batch; see `Step`."""
        (batch,), (key,) = batches, keys
        method, optimizer = self.method, self.optimizer
        x_adv = method.perturb(self.model, batch.x, batch.y, method.key_for(batch.x, key), batch.transform)
        results, done = self._run(x_adv, batch.x, batch.y)
        losses, passed, *others = results
        require(passed, _non_finite)
        found = dict(zip(done.names, others, strict=False))
        for p, grad in zip(done.params, others[len(found) :], strict=True):
            p.grad = grad
        weights = _example_weights(found)
        self.average(len(batch.y))
        method.before_step(self.model, optimizer)
        optimizer.accept_grads(weights)
        optimizer.step()
        optimizer.zero_grad()
        return [(StepOutput(losses, x_adv, found.get("logits")), weights)]

    def _run(self, x_adv: Tensor, x: Tensor, y: Tensor) -> tuple[Results, "_Pass"]:
        """The results of the pass, with the call that names them, whether the pass is replayed or runs as it is."""
        settings, given = self._settings(), _Pass(self.method, self.model, self.optimizer)
        if settings is None:
            return given(x_adv, x, y), given
        results, done = self.captured.run(given, settings, x_adv, x, y)
        if done is not given:
            self.optimizer.count_replay()
        return results, done

    def _settings(self) -> Hashable | None:
        """Everything that the pass depends on besides its tensors; None where it cannot be replayed."""
        of_optimizer = self.optimizer.replay_settings()
        if of_optimizer is None:
            return None
        of_method = tuple(value for value in vars(self.method).values() if isinstance(value, bool | int | float | str))
        training = tuple(module.training for module in self.model.modules())
        trained = tuple(p.requires_grad for p in self.model.parameters())
        return id(self.model), id(self.optimizer), of_optimizer, of_method, training, trained


@dataclass(eq=False)
class _Pass:
    """One call of the pass from the images to the gradients.

    Attributes:
        names: Of what it gives per example, once it was called: logits, and fields of PerExampleStats.
        params: Those with gradients.
    """

    method: AttackMethod
    model: nn.Module
    optimizer: PerExampleSGD
    names: list[str] = field(default_factory=list)
    params: list[nn.Parameter] = field(default_factory=list)

    def __call__(self, x_adv: Tensor, x: Tensor, y: Tensor) -> Results:
        """Returns the losses, whether all checks passed, what `names` lists and the gradients of `params`."""
        self.optimizer.zero_grad()  # so that the pass allocates the gradients
        checks = Checks()
        with checks.at("the outer pass"):
            output = self.method.outcome(self.model, x, x_adv, y)
            inputs = output.x_adv if output.x_adv.requires_grad else None
            weights = self.optimizer.backward(output.losses, inputs=inputs)
        fields = {"logits": output.logits, **({} if weights is None else vars(weights))}
        found = {name: t.detach() for name, t in fields.items() if t is not None}
        grads = {p: p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None}
        self.names, self.params = list(found), list(grads)
        return (output.losses.detach(), checks.passed(), *found.values(), *grads.values())


def _example_weights(found: dict[str, Tensor]) -> PerExampleStats | None:
    if "weights" not in found:
        return None
    return PerExampleStats(found.get("norms"), found["weights"], found.get("input_norms"), found.get("fit_errors"))


def _non_finite() -> NonFiniteError:
    return NonFiniteError(
        "a loss or a gradient norm is nan or infinite; lower the learning rate, or set cuda_graphs to False to see more"
    )
