"""A training step whose outer pass, like its attack, is captured in a CUDA graph."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pyengm.data import Transform
from pyengm.errors import NonFiniteError
from pyengm.methods import AttackMethod, StepOutput
from pyengm.ops import Key
from pyengm.optim import ENGM, FENGM, MSGD, NENGM, PerExampleSGD
from pyengm.pergrad import ExampleWeights
from pyengm.training.steps.cuda_graph import Replay, Results
from pyengm.training.steps.train_step import StepStats
from pyengm.utils.checks import Checks, require


def is_replayable(optimizer: PerExampleSGD, model: nn.Module) -> bool:
    """Whether `optimizer.backward` does the same for every batch: no fits of norms to exact ones now and then."""
    fits = isinstance(optimizer, ENGM | FENGM) and any(isinstance(module, _BatchNorm) for module in model.modules())
    return type(optimizer) in (MSGD, ENGM, FENGM, NENGM) and not fits


class ReplayedStep:
    """In place of `train_step`, for methods that are an attack and then one pass with one update.

    replay: captures the pass, from the images to the gradients of the parameters. Random numbers are drawn by the
    attack, before it, and the optimiser's step comes after it, with the learning rate of the batch.
    """

    def __init__(self, replay: Replay):
        self._replay = replay
        self._moved: list[Tensor] = []  # the parameters that have gradients
        self._fields: list[str] = []  # of ExampleWeights, those that the optimiser gives

    def __call__(
        self,
        method: AttackMethod,
        model: nn.Module,
        optimizer: PerExampleSGD,
        x: Tensor,
        y: Tensor,
        key: Key | None = None,
        transform: Transform | None = None,
        *,
        scaler: None = None,
        average: Callable[[], None] = lambda: None,
    ) -> StepStats:
        """One training step; arguments, result and errors as for `train_step`."""
        x_adv = method.perturb(model, x, y, method.key_for(x, key), transform)
        run = partial(self._pass, method, model, optimizer)
        losses, logits, passed, *others = self._replay((id(model), id(optimizer)), run, x_adv, x, y)
        require(passed, _not_finite)
        weights, gradients = others[: len(self._fields)], others[len(self._fields) :]
        for p, gradient in zip(self._moved, gradients, strict=True):
            p.grad = gradient
        average()
        method.before_step(model, optimizer)
        optimizer.step()
        optimizer.zero_grad()
        fields = dict.fromkeys(("norms", "weights", "input_norms")) | dict(zip(self._fields, weights, strict=True))
        return [(StepOutput(losses, x_adv, logits), ExampleWeights(**fields) if weights else None)]

    def _pass(
        self, method: AttackMethod, model: nn.Module, optimizer: PerExampleSGD, x_adv: Tensor, x: Tensor, y: Tensor
    ) -> Results:
        optimizer.zero_grad()  # so that the pass makes its own memory for them
        checks = Checks()
        with checks.at("the outer pass"):
            outcome = method.outcome(model, x, x_adv, y)
            inputs = outcome.x_adv if outcome.x_adv.requires_grad else None
            used = optimizer.backward(outcome.losses, inputs=inputs)
        self._moved = [p for p in _parameters(optimizer) if p.grad is not None]
        self._fields = [] if used is None else [name for name, value in vars(used).items() if value is not None]
        weights = [getattr(used, name) for name in self._fields]
        gradients = [p.grad for p in self._moved]
        return (outcome.losses.detach(), outcome.logits.detach(), checks.passed(), *weights, *gradients)


def _parameters(optimizer: PerExampleSGD) -> Sequence[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _not_finite() -> NonFiniteError:
    return NonFiniteError(
        "a loss or a gradient norm is nan or infinite; lower the learning rate, or set cuda_graphs to False to see more"
    )
