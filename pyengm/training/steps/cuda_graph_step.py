"""A training step whose forward and backward pass after the attack is captured in a CUDA graph."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pyengm.data import Batch
from pyengm.errors import NonFiniteError
from pyengm.methods import AttackMethod, StepOutput
from pyengm.ops import Key
from pyengm.optim import ENGM, FENGM, MSGD, NENGM, PerExampleSGD
from pyengm.pergrad import PerExampleStats
from pyengm.training.steps.base import AverageGradients, StepStats
from pyengm.training.steps.captured_function import CapturedFunction, Results
from pyengm.utils.checks import Checks, require


def can_capture_backward(optimizer: PerExampleSGD, model: nn.Module) -> bool:
    """Whether `optimizer.backward` does the same for every batch: it never fits estimated norms to exact ones."""
    fits = isinstance(optimizer, ENGM | FENGM) and any(isinstance(module, _BatchNorm) for module in model.modules())
    return type(optimizer) in (MSGD, ENGM, FENGM, NENGM) and not fits


class CudaGraphStep:
    """The step of a method that is an attack and then one pass with one update.

    Random numbers are drawn by the attack, before the captured pass. The step of the optimiser follows the pass, with
    the learning rate of the batch.

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
        self._params: list[nn.Parameter] = []  # those with gradients
        self._names: list[str] = []  # of what the pass gives per example: logits, fields of PerExampleStats

    def __call__(self, batches: Sequence[Batch], keys: Sequence[Key]) -> StepStats:
        """One step on one batch; see `Step`."""
        (batch,), (key,) = batches, keys
        method, optimizer = self.method, self.optimizer
        x_adv = method.perturb(self.model, batch.x, batch.y, method.key_for(batch.x, key), batch.transform)
        settings = id(self.model), id(optimizer)
        losses, passed, *others = self.captured(self._pass, settings, x_adv, batch.x, batch.y)
        require(passed, _non_finite)
        found = dict(zip(self._names, others, strict=False))
        for p, grad in zip(self._params, others[len(found) :], strict=True):
            p.grad = grad
        self.average(len(batch.y))
        method.before_step(self.model, optimizer)
        optimizer.accept_grads()
        optimizer.step()
        optimizer.zero_grad()
        return [(StepOutput(losses, x_adv, found.get("logits")), _example_weights(found))]

    def _pass(self, x_adv: Tensor, x: Tensor, y: Tensor) -> Results:
        """Returns the losses, whether all checks passed, what `_names` lists and the gradients of `_params`."""
        self.optimizer.zero_grad()  # so that the pass allocates the gradients
        checks = Checks()
        with checks.at("the outer pass"):
            output = self.method.outcome(self.model, x, x_adv, y)
            inputs = output.x_adv if output.x_adv.requires_grad else None
            weights = self.optimizer.backward(output.losses, inputs=inputs)
        fields = {"logits": output.logits, **({} if weights is None else vars(weights))}
        found = {name: t.detach() for name, t in fields.items() if t is not None}
        grads = {p: p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None}
        self._names, self._params = list(found), list(grads)
        return (output.losses.detach(), checks.passed(), *found.values(), *grads.values())


def _example_weights(found: dict[str, Tensor]) -> PerExampleStats | None:
    if "weights" not in found:
        return None
    return PerExampleStats(found.get("norms"), found["weights"], found.get("input_norms"), found.get("fit_errors"))


def _non_finite() -> NonFiniteError:
    return NonFiniteError(
        "a loss or a gradient norm is nan or infinite; lower the learning rate, or set cuda_graphs to False to see more"
    )
