"""Momentum SGD whose backward pass takes one loss per example: the base of every optimiser of the family."""

import contextlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pyengm.errors import ConfigError, UnsupportedOperationError
from pyengm.optim.grad_origin import GradOrigin
from pyengm.optim.hyperparameter import hyperparameters_of
from pyengm.optim.info import OptimizerInfo
from pyengm.optim.saved_state import check_state, merge_state, split_state
from pyengm.optim.statistics import noise_scale, summarize
from pyengm.pergrad import NormEstimator, PerExampleStats, any_sharded, check_losses, whole_params
from pyengm.pergrad.loss_scale import refuse_scaled
from pyengm.pergrad.validation import Params, named_params
from pyengm.utils.distributed import full_tensor, prepare_reducer, world_size


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


@dataclass
class _Calls:
    """What the calls of an optimiser leave behind; one object, which wrappers of the optimiser share with it."""

    origin: GradOrigin = field(default_factory=GradOrigin)
    used: tuple[PerExampleStats, ...] = ()  # since the last step
    last: tuple[PerExampleStats, ...] = ()  # of the last step
    grad_square: Tensor | None = None  # of the last step
    squares: Tensor | None = None  # (2,) the sum of |gradient|^2 since `take_grad_squares`, their number
    checked: frozenset[int] = frozenset()  # parameters that were compared with a graph
    total_norm: Tensor | None = None  # of the last step's gradient, where it was needed


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
        stateful_attributes: Names of attributes with state_dict and load_state_dict, part of the optimiser's state: of
            numbers, texts, tensors, and dicts, lists and tuples of them.

    Raises:
        ConfigError: A hyperparameter is out of range, or is given to a group although it is one value for all; or the
            parameters are sharded by something else than `torch.distributed.fsdp.fully_shard`.
    """

    info: ClassVar[OptimizerInfo] = OptimizerInfo()
    stateful_attributes: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, params: Any, lr: float = 0.1, momentum: float = 0.9, weight_decay: float = 5e-4, **sgd_options: Any
    ):
        super().__init__(params, lr, momentum, weight_decay=weight_decay, **sgd_options)
        self._calls = _Calls()

    def backward(
        self,
        losses: Tensor,
        *,
        inputs: Tensor | None = None,
        input_gradient: Tensor | None = None,
        scaler: torch.amp.GradScaler | None = None,
        accumulate: int = 1,
        params: Params | None = None,
    ) -> PerExampleStats | None:
        """Adds the gradient of (1/n) sum_i w_i L_i to .grad of the optimiser's parameters, w_i held constant.

        Inside the forward pass of DistributedDataParallel, as in a training_step of Lightning, its reducer is prepared
        first, so that the gradients are averaged over the processes there too.

        Args:
            losses: (n,) losses, one per example, with their graph, which is freed. Neither scaled nor divided.
            inputs: (n, ...) inputs of the model, requiring grad: their .grad becomes the gradient of the same weighted
                mean, and AENGM and NENGM weigh by it.
            input_gradient: (n, ...) the gradient of sum_i L_i in the inputs where it is known already, such as that of
                the attack's last step; it is used in place of one computed here.
            scaler: Scales the gradients; call scaler.step and scaler.update as usual.
            accumulate: The number of such calls that make up one step.
            params: The parameters of the whole model, where this optimiser updates a part of them and others the rest
                (ZeroRedundancyOptimizer): norms are over all of these, and all of them get .grad.

        Returns:
            The norms and weights, or None where all weights are 1 and no norms were needed.

        Raises:
            ValueError: The losses have another shape or no graph, are multiplied by the scale of a GradScaler, or
                depend on none of the parameters, or on parameters that the optimiser was not given.
            NonFiniteError: Losses or norms are not finite.
        """
        if accumulate < 1:
            raise ValueError(f"accumulate is {accumulate}; expected the number of backward calls per step, 1 or more")
        owned = self._parameters() if params is None else named_params(params)[0]
        leaves = {whole: p for p, whole in zip(owned, whole_params(owned), strict=True) if whole.requires_grad}
        if losses.requires_grad:
            self._check_graph(losses, list(leaves))
            prepare_reducer(losses)
        if inputs is not None:
            inputs.grad = None  # .grad is that of this call alone
        weighs = self.info.weighs_examples
        with self._calls.origin.own_pass(leaves) if weighs else contextlib.nullcontext():
            call = BackwardCall(losses, list(leaves), inputs, input_gradient, scaler, accumulate)
            used = self._accumulate_grads(call)
        if used is not None:
            self._calls.used = (*self._calls.used, used)
        return used

    def accept_grads(self, stats: PerExampleStats | None = None) -> None:
        """Takes the present .grad of all parameters as made by `backward`.

        For gradients that `backward` made elsewhere and that were put into .grad, such as those of a CUDA graph that
        replays it. Changes of .grad in place need no such call.

        Args:
            stats: What that call returned, for `statistics`; None leaves the calls that were noted.
        """
        self._calls.origin.accept(p for group in self.param_groups for p in group["params"])
        if stats is not None:
            self._calls.used = (stats,)

    def replay_settings(self) -> Hashable | None:
        """What the next `backward` depends on besides its losses, for a CUDA graph that is replayed in its place.

        Returns:
            A value that is equal as long as a recorded call holds, with the contents of memory that stays in place;
            None where the next call cannot be recorded or replayed, as under batch norm in training mode it fits norms
            to exact ones (`NormEstimator.is_plain`).
        """
        norms = self._estimator()
        if norms is not None and not norms.is_plain:
            return None
        values = tuple(getattr(self, name) for name in hyperparameters_of(type(self)))
        return values, None if norms is None else norms.memory

    def count_replay(self) -> None:
        """Changes what `backward` changes of the optimiser, for a CUDA graph that was replayed in its place.

        The gradients and what the call returns are for `accept_grads`.
        """
        norms = self._estimator()
        if norms is not None:
            norms.count_replay()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates the parameters from .grad, which may be changed in place after `backward`: clipped, unscaled.

        Args:
            closure: As for torch.optim.SGD; it calls `backward(losses)`.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError: There are no gradients; or the optimiser weighs examples, and other backward passes than
                `backward(losses)` made the gradients or a share of them.
        """
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        self._check_grads()
        self._calls.grad_square = self._count_grads()
        self._transform_grads()
        self._torch_step()
        self._calls.last, self._calls.used = self._calls.used, ()
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
        found = summarize(self._calls.used or self._calls.last)
        norms_known = bool(self._calls.last) and all(one.norms is not None for one in self._calls.last)
        if not self._calls.used and norms_known and self._calls.grad_square is not None:
            found |= noise_scale(self._calls.last, self._calls.grad_square, world_size())
        norms = self._estimator()
        if norms is not None and norms.running_error is not None:
            found["norm_error"] = norms.running_error
        return found

    def take_grad_squares(self) -> Tensor | None:
        """The sizes of the gradients that the steps since the last call were made of, for a log.

        A gradient is the (weighted) mean over a batch as `step` found it in .grad; in the inner loops of Entropy-SGD,
        as the closure left it. Steps are not counted within a fused step of a GradScaler, whose gradients are scaled,
        and where no norms of examples are known of parameters that are sharded over processes.

        Returns:
            (2,) float64, the sum of the |g|^2 over all parameters and the number of gradients; None without any.
        """
        squares, self._calls.squares = self._calls.squares, None
        return squares

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        self._calls.origin.clear()
        self._calls.used = ()

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

    def _count_grads(self) -> Tensor | None:
        """|.grad|^2, which is added to those that `take_grad_squares` returns."""
        used = self._calls.used
        norms_known = bool(used) and all(one.norms is not None for one in used)
        square = self._square_of_grads() if norms_known or not any_sharded(self._parameters()) else None
        if square is not None:
            counted, before = torch.stack([square, torch.ones_like(square)]), self._calls.squares
            self._calls.squares = counted if before is None else before + counted
        return square

    def _square_of_grads(self) -> Tensor | None:
        """|.grad|^2; None without gradients, and within a fused step of a GradScaler, which leaves them scaled."""
        grads = [p.grad for p in self._parameters() if p.grad is not None]
        if (
            not grads
            or getattr(self, "grad_scale", None) is not None
            or any(g.is_sparse or g.is_complex() for g in grads)
        ):
            return None
        return full_tensor(torch.nn.utils.get_total_norm(grads)).double().square()

    def _check_graph(self, losses: Tensor, params: list[Tensor]) -> None:
        refuse_scaled(losses)
        ids = frozenset(map(id, params))
        if ids != self._calls.checked:
            _check_leaves(losses, ids)
            self._calls.checked = ids

    def _check_grads(self) -> None:
        params = [p for group in self.param_groups for p in group["params"]]
        if params and all(p.grad is None for p in params):  # there are none in some processes of ZeRO
            raise RuntimeError("step() found no gradient; call backward(losses) before it, and zero_grad() before that")
        foreign = self._calls.origin.foreign(params) if self.info.weighs_examples else []
        if foreign:
            raise RuntimeError(
                f"step() found gradients that backward(losses) did not make, or not alone ({len(foreign)} of "
                f"{len(params)}, the first of shape {tuple(foreign[0].shape)}): no example would be weighed. In place "
                "of loss.backward() call optimizer.backward(losses) with one loss per example; change .grad in place "
                "afterwards. pyengm.integrations does so for Lightning, Accelerate and Trainer"
            )

    def _estimator(self) -> NormEstimator | None:
        norms = getattr(self, "norms", None)
        return norms if isinstance(norms, NormEstimator) else None

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"] if p.requires_grad]

    def _define(self, **values: Any) -> None:
        """Sets the initial values of hyperparameters, except in parameter groups that have their own."""
        for name, value in values.items():
            hyperparameters_of(type(self))[name].check(value)
            self.defaults[name] = value
            for group in self.param_groups:
                self._check_joint(name, group)
                group.setdefault(name, value)

    def _check_joint(self, name: str, group: dict[str, Any]) -> None:
        """Raises ConfigError where a group has another value of what is one value for all; equal ones are copies."""
        joint = hyperparameters_of(type(self))[name].joint
        if joint and group.get(name, self.defaults[name]) != self.defaults[name]:
            raise ConfigError(
                f"{name} is one value for all parameter groups, {self.defaults[name]!r} here: give {group[name]!r} to "
                f"{type(self).__name__}, not to a group"
            )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        for name, hyperparameter in hyperparameters_of(type(self)).items():
            if name in param_group:
                hyperparameter.check(param_group[name])
                if name in self.defaults:  # else `_define` follows
                    self._check_joint(name, param_group)
        super().add_param_group(param_group)
        try:
            whole_params(self.param_groups[-1]["params"])
        except UnsupportedOperationError as error:
            raise ConfigError(str(error)) from None

    def state_dict(self) -> dict[str, Any]:
        """As of torch.optim.SGD; the first group also has the optimiser's name and the state of its other parts."""
        parts = {name: getattr(self, name).state_dict() for name in self.stateful_attributes}
        return merge_state(super().state_dict(), self._saved_name(), parts)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` returned, or the state of torch.optim.SGD, which leaves other values as they are.

        Raises:
            ConfigError: The state is of another optimiser.
        """
        check_state(state_dict, self._saved_name() or type(self).__name__)
        plain, parts = split_state(state_dict, self.stateful_attributes, self.param_groups[0]["params"])
        super().load_state_dict(plain)
        for name, state in parts.items():
            getattr(self, name).load_state_dict(state)

    def _saved_name(self) -> str:
        """The name in saved states; none where the optimiser has no more in it than torch.optim.SGD."""
        own = hyperparameters_of(type(self)) or self.stateful_attributes
        return self.info.name or type(self).__name__ if own else ""

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {name: getattr(self, name) for name in self.stateful_attributes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if not hasattr(self, "_calls"):  # unpickled
            self._calls = _Calls()
        for name in hyperparameters_of(type(self)):
            for group in self.param_groups:  # the state of another SGD has no such value: keep the current one
                group.setdefault(name, self.defaults[name])
            self.defaults[name] = self.param_groups[0][name]


def _check_leaves(losses: Tensor, given: frozenset[int]) -> None:
    """Raises ValueError where the graph reaches parameters whose ids are not given, or none whose ids are."""
    leaves, seen, waiting = [], {losses.grad_fn}, [losses.grad_fn]
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
            "it all of them, in groups if need be, or freeze them before the forward pass: p.requires_grad_(False); "
            "where another optimiser updates them, call backward(losses, params=model.parameters())"
        )
    if not any(id(leaf) in given for leaf in leaves):
        raise ValueError("the losses depend on none of the optimiser's parameters; was it given another model's?")


def require_norms(norms: Tensor | None) -> Tensor:
    """The norms that a weighted backward pass was to compute, which are never None."""
    assert norms is not None, "the backward pass computes the norms that its weights need"
    return norms
