"""Momentum SGD whose backward pass takes one loss per example: the base of every optimiser of the family."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pyengm.errors import ConfigError, UnsupportedOperationError
from pyengm.optim.hyperparameter import hyperparameters_of
from pyengm.optim.info import OptimizerInfo
from pyengm.optim.statistics import noise_scale, summarize
from pyengm.pergrad import NormEstimator, PerExampleStats, check_losses, whole_params
from pyengm.utils import foreach
from pyengm.utils.distributed import world_size


@dataclass(frozen=True)
class BackwardCall:
    """The arguments of one `backward`, and the parameters that get gradients."""

    losses: Tensor
    params: list[Tensor]
    inputs: Tensor | None
    input_gradient: Tensor | None
    scaler: torch.amp.GradScaler | None
    accumulate: int

    @property
    def tracked(self) -> Tensor | None:
        """The inputs, where they require grad."""
        return self.inputs if self.inputs is not None and self.inputs.requires_grad else None


class PerExampleSGD(torch.optim.SGD):
    """torch.optim.SGD with `backward(losses)`; subclasses decide the weights of the examples, or change the step.

    Subclasses override `_accumulate_grads`, which adds to .grad, and `_transform_grads`, which changes .grad right
    before torch's update.

    Args:
        params: Parameters, or groups of them, as for torch.optim.SGD.
        lr: Learning rate.
        momentum: Momentum.
        weight_decay: Weight decay.
        sgd_options: The other arguments of torch.optim.SGD.

    Attributes:
        info: The facts of the optimiser, see `OptimizerInfo`.
        stateful_attributes: Names of attributes with state_dict and load_state_dict, part of the optimiser's state.

    Raises:
        ConfigError: A hyperparameter is out of range, or is given to a group although it is one value for all; or the
            parameters are sharded by something else than `torch.distributed.fsdp.fully_shard`.
    """

    info: ClassVar[OptimizerInfo] = OptimizerInfo()
    stateful_attributes: ClassVar[tuple[str, ...]] = ()
    _used: tuple[PerExampleStats, ...] = ()  # since the last step
    _last: tuple[PerExampleStats, ...] = ()  # of the last step
    _grad_square: Tensor | None = None  # of the last step, where the norms of all its examples are known
    _graph_checked = False

    def __init__(
        self, params: Any, lr: float = 0.1, momentum: float = 0.9, weight_decay: float = 5e-4, **sgd_options: Any
    ):
        super().__init__(params, lr, momentum, weight_decay=weight_decay, **sgd_options)

    def backward(
        self,
        losses: Tensor,
        *,
        inputs: Tensor | None = None,
        input_gradient: Tensor | None = None,
        scaler: torch.amp.GradScaler | None = None,
        accumulate: int = 1,
    ) -> PerExampleStats | None:
        """Adds the gradient of (1/n) sum_i w_i L_i to .grad of the optimiser's parameters, w_i held constant.

        Args:
            losses: (n,) losses, one per example, with their graph, which is freed.
            inputs: (n, ...) inputs of the model, requiring grad: their .grad becomes the gradient of the same weighted
                mean, and AENGM and NENGM weigh by it.
            input_gradient: (n, ...) the gradient of sum_i L_i in the inputs where it is known already, such as that of
                the attack's last step; it is used in place of one computed here.
            scaler: Scales the gradients; call scaler.step and scaler.update as usual.
            accumulate: The number of such calls that make up one step.

        Returns:
            The norms and weights, or None where all weights are 1 and no norms were needed.

        Raises:
            ValueError: The losses have another shape or no graph, or depend on none of the parameters, or on parameters
                that the optimiser was not given.
            NonFiniteError: Losses or norms are not finite.
        """
        if accumulate < 1:
            raise ValueError(f"accumulate is {accumulate}; expected the number of backward calls per step, 1 or more")
        params = [p for p in whole_params(self._parameters()) if p.requires_grad]
        if not self._graph_checked and losses.requires_grad:
            _check_leaves(losses, params)
            self._graph_checked = True
        if inputs is not None:
            inputs.grad = None  # .grad is that of this call alone
        used = self._accumulate_grads(BackwardCall(losses, params, inputs, input_gradient, scaler, accumulate))
        if used is not None:
            self._used = (*self._used, used)
        return used

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates the parameters from .grad.

        Args:
            closure: As for torch.optim.SGD.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError: There are no gradients.
        """
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        if all(p.grad is None for group in self.param_groups for p in group["params"]):
            raise RuntimeError("step() found no gradient; call backward(losses) before it, and zero_grad() before that")
        norms_known = bool(self._used) and all(one.norms is not None for one in self._used)
        self._grad_square = self._square_of_grads() if norms_known else None
        self._transform_grads()
        self._torch_step()
        self._last, self._used = self._used, ()
        return result

    def start_epoch(self, epoch: int) -> None:
        """Called before the batches of `epoch`, counted from 0; not when a run resumes within it."""

    def statistics(self) -> dict[str, float]:
        """What the last step, or the backward calls since then, did to the examples, for a log; computed on each call.

        Returns:
            "clipped" (the share of examples with a weight below 1); "weight", "norm" and "input_norm" with "_mean",
            "_p10", "_p50" and "_p90", for what the optimiser computes; after a step with norms "noise_scale", the
            gradient noise scale of the weighted gradients (`noise_scale`); under batch norm in training mode
            "norm_error", the running mean of |estimate / exact - 1| over the fits of the norms. Empty where all
            weights are 1.
        """
        found = summarize(self._used or self._last)
        if not self._used and self._grad_square is not None:
            found |= noise_scale(self._last, self._grad_square, world_size())
        norms = getattr(self, "norms", None)
        if isinstance(norms, NormEstimator) and norms.running_error is not None:
            found["norm_error"] = norms.running_error
        return found

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        self._used = ()

    def _accumulate_grads(self, call: BackwardCall) -> PerExampleStats | None:
        check_losses(call.losses)
        loss = call.losses.mean() if call.accumulate == 1 else call.losses.mean() / call.accumulate
        tracked = [] if call.tracked is None else [call.tracked]
        (loss if call.scaler is None else call.scaler.scale(loss)).backward(inputs=call.params + tracked)
        return None

    def _transform_grads(self) -> None:
        pass

    def _torch_step(self) -> None:
        step = torch.optim.SGD.step  # torch wraps it with the step hooks, which must run once, around ours
        (step.__wrapped__ if getattr(step, "hooked", False) else step)(self)

    def _square_of_grads(self) -> Tensor | None:
        """|.grad|^2; None within a fused step of a GradScaler, which leaves gradients scaled."""
        grads = [p.grad for p in self._parameters() if p.grad is not None]
        if getattr(self, "grad_scale", None) is not None or any(g.is_sparse or g.is_complex() for g in grads):
            return None
        return torch.stack([norm.double().to(grads[0].device) for norm in foreach.norm(grads)]).square().sum()

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"] if p.requires_grad]

    def _define(self, **values: Any) -> None:
        """Sets the initial values of hyperparameters, except in parameter groups that have their own."""
        for name, value in values.items():
            hyperparameters_of(type(self))[name].check(value)
            self.defaults[name] = value
            for group in self.param_groups:
                group.setdefault(name, value)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        for name, hyperparameter in hyperparameters_of(type(self)).items():
            if name in param_group and hyperparameter.joint:
                kind = type(self).__name__
                raise ConfigError(f"{name} is one value for all parameter groups: give it to {kind}, not to a group")
            if name in param_group:
                hyperparameter.check(param_group[name])
        super().add_param_group(param_group)
        try:
            whole_params(self.param_groups[-1]["params"])
        except UnsupportedOperationError as error:
            raise ConfigError(str(error)) from None
        self._graph_checked = False

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {name: getattr(self, name).state_dict() for name in self.stateful_attributes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(
            {key: value for key, value in state_dict.items() if key not in self.stateful_attributes}
        )
        for name in self.stateful_attributes:
            if name in state_dict:  # the state of another SGD has none
                getattr(self, name).load_state_dict(state_dict[name])

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {name: getattr(self, name) for name in self.stateful_attributes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name in hyperparameters_of(type(self)):
            for group in self.param_groups:  # the state of another SGD has no such value: keep the current one
                group.setdefault(name, self.defaults[name])
            self.defaults[name] = self.param_groups[0][name]


def _check_leaves(losses: Tensor, params: list[Tensor]) -> None:
    """Raises ValueError where the graph reaches parameters that are not in params, or none that are."""
    given, leaves, seen, waiting = set(map(id, params)), [], {losses.grad_fn}, [losses.grad_fn]
    while waiting:
        node = waiting.pop()
        variable = getattr(node, "variable", None)
        if variable is not None:
            leaves.append(variable)
        following = {following for following, _ in getattr(node, "next_functions", ()) if following is not None} - seen
        seen |= following
        waiting += following
    foreign = [leaf for leaf in leaves if isinstance(leaf, nn.Parameter) and id(leaf) not in given]
    if foreign:
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in foreign[:4]) + (", ..." if len(foreign) > 4 else "")
        raise ValueError(
            f"the losses depend on {len(foreign)} parameters that the optimiser was not given (shapes {shapes}); give "
            "it all of them, in groups if need be, or freeze them before the forward pass: p.requires_grad_(False)"
        )
    if not any(id(leaf) in given for leaf in leaves):
        raise ValueError("the losses depend on none of the optimiser's parameters; was it given another model's?")


def require_norms(norms: Tensor | None) -> Tensor:
    """The norms that a weighted backward pass was to compute, which are never None."""
    assert norms is not None, "the backward pass computes the norms that its weights need"
    return norms
