"""Parameters that torch's fully_shard (FSDP2) has sharded: the tensors behind them, and passes without its hooks.

A sharded parameter is a DTensor that no graph contains. Before a module runs, forward or backward, hooks gather its
whole parameters from all processes, and the graph has these. Afterwards they free them, and at the end of a backward
pass they average the gradients over the processes and give every process its shard. Norms take passes of their own,
whose number may differ between processes. So the parameters stay gathered, and the hooks do nothing, until the norms
are known; then one ordinary pass of the weighted losses runs, with the hooks.

No public function of torch tells which tensor stands for which parameter, or in which state a module is. The names with
a leading underscore below are those of torch 2.7 to 2.15.
"""

import contextlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor

from pyengm.errors import UnsupportedOperationError

STATES = "torch.distributed.fsdp._fully_shard._fsdp_state"
REGISTRY = "torch.distributed._composable_state"


def whole_params(params: Sequence[Tensor], names: Sequence[str] | None = None) -> list[Tensor]:
    """The tensors that graphs have for these parameters, in the same order: a parameter itself, unless it is sharded.

    Args:
        params: sharded parameters, or the whole ones that a model shows between its forward and its backward pass.
        names: of the parameters, for messages.

    Raises:
        UnsupportedOperationError: for parameters that FSDP1 has flattened, and for DTensors that are not fully_shard's.
    """
    owners = {id(tensor): param for _, _, param in _sharded(_states()) for tensor in _tensors(param)}
    whole = []
    for k, tensor in enumerate(params):
        refuse_flat(tensor)
        owner = owners.get(id(tensor))
        if tensor.requires_grad and (is_sharded(tensor) if owner is None else owner.is_dtensor):
            name = f"{k} of shape {tuple(tensor.shape)}" if names is None else names[k]
            raise UnsupportedOperationError(
                f"parameter {name} is a DTensor that fully_shard did not make from a whole tensor, as under tensor "
                "parallelism; shard it with fully_shard alone, or use DistributedDataParallel"
            )
        whole.append(getattr(owner, "_unsharded_param", tensor))
    return whole


def refuse_flat(tensor: Tensor) -> None:
    """Raises UnsupportedOperationError for the parameter that FSDP1 makes of many, and for these."""
    if getattr(tensor, "_fsdp_flattened", False):
        raise UnsupportedOperationError(
            "FullyShardedDataParallel computes with one flat parameter in place of the model's own; use fully_shard or "
            "DistributedDataParallel"
        )


def any_sharded(params: Iterable[Tensor]) -> bool:
    """Whether one of these is a sharded parameter, or a whole one that fully_shard has gathered."""
    known = {id(tensor) for _, _, param in _sharded(_states()) for tensor in _tensors(param)}
    return any(is_sharded(p) or id(p) in known for p in params)


@contextlib.contextmanager
def gathered(losses: Tensor, *, until_backward: bool = False) -> Iterator[bool]:
    """Keeps the parameters of the models behind the losses whole, and fully_shard's hooks from doing anything.

    Passes within it need no communication. All processes enter it together.

    Args:
        losses: (n,) with their graph.
        until_backward: whether an ordinary backward pass follows, whose hooks free the whole parameters. Else, and
            after an error, they are freed at the end.

    Yields:
        Whether anything is sharded.

    Raises:
        UnsupportedOperationError: where the graph has a sharded parameter itself.
        ValueError: for parameters that require grad, and did not when they were gathered.
    """
    states = _states_behind(losses)
    freed = [state for state in states if not all(group.is_unsharded for group in _groups(state))]
    try:
        _check_flags(states)
        for state in freed:
            state._modules[0].unshard()
        with _without_hooks(states):
            yield bool(states)
    except BaseException:
        until_backward, freed = False, states  # whole parameters that stay would be used after the next step too
        raise
    finally:
        for state in [] if until_backward else freed:
            state._modules[0].reshard()


def _check_flags(states: Iterable[Any]) -> None:
    for _, group, param in _sharded(states):
        if group.is_unsharded and param.sharded_param.requires_grad and not param._unsharded_param.requires_grad:
            raise ValueError(
                f"parameter {param._param_fqn} requires grad, but was frozen when fully_shard gathered it for the "
                "forward pass, so its gradient is missing; call reshard() of its module before the forward pass"
            )


def check_reduced(params: Iterable[Tensor], names: Iterable[str]) -> None:
    """Raises RuntimeError where a backward pass has left a whole parameter's gradient that had to be reduced."""
    waiting = {
        id(param._unsharded_param) for _, group, param in _sharded(_states()) if group.reduce_grads and _seen(param)
    }
    for p, name in zip(params, names, strict=True):
        if id(p) in waiting and p.grad is not None:
            raise RuntimeError(
                f"the gradient of parameter {name} was not reduced, as fully_shard did not notice the backward pass; "
                "is the output of a sharded module a view that is changed in place? Change a clone of it instead"
            )


@contextlib.contextmanager
def _without_hooks(states: Sequence[Any]) -> Iterator[None]:
    """Every module is in the state of one that is ready for its backward pass, and the end of a pass does nothing."""
    if not states:
        yield
        return
    ready = sys.modules[STATES].TrainingState.PRE_BACKWARD
    with contextlib.ExitStack() as stack:
        for context in {id(state._state_ctx): state._state_ctx for state in states}.values():
            stack.enter_context(_set(context, post_backward_final_callback_queued=True))
        for state in states:
            stack.enter_context(_set(state, _training_state=ready))
            for group in _groups(state):
                stack.enter_context(
                    _set(group, _training_state=ready, reduce_grads=False, reshard_after_backward=False)
                )
        yield


@contextlib.contextmanager
def _set(owner: Any, **values: Any) -> Iterator[None]:
    before = {name: getattr(owner, name) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def _states_behind(losses: Tensor) -> list[Any]:
    """The states of all modules whose roots have parameters or hooks in the graph, in one order in all processes."""
    states = _states()
    if not states:
        return []
    root_of = {id(group): state._state_ctx for state in states for group in _groups(state)}
    root_of |= {id(param._unsharded_param): state._state_ctx for state, _, param in _sharded(states) if _seen(param)}
    roots = set()
    for node in _nodes(losses):
        leaf = getattr(node, "variable", None)
        if leaf is not None and is_sharded(leaf):
            raise UnsupportedOperationError(
                f"the losses depend on a sharded parameter, of shape {tuple(leaf.shape)}, outside of its module's "
                "forward pass; compute that term in the module, or use weight_decay for a penalty on weights"
            )
        roots.add(id(root_of.get(id(leaf), root_of.get(id(getattr(node, "param_group", None))))))
    return [state for state in states if id(state._state_ctx) in roots]


def _nodes(losses: Tensor) -> Iterator[Any]:
    seen, waiting = {losses.grad_fn, None}, [losses.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None:
            yield node
            following = {child for child, _ in node.next_functions} - seen
            seen |= following
            waiting += following


def _states() -> list[Any]:
    """The states of all modules that fully_shard was applied to and that are alive, in the order of these calls."""
    loaded = sys.modules.get(STATES)
    if loaded is None:
        return []
    found = (reference() for reference in sys.modules[REGISTRY]._module_state_mapping.values())
    return list(dict.fromkeys(state for state in found if isinstance(state, loaded.FSDPState)))


def _groups(state: Any) -> list[Any]:
    """The groups of parameters that a module gathers; in older versions of torch, one at most."""
    if hasattr(state, "_fsdp_param_groups"):
        return state._fsdp_param_groups
    return [] if state._fsdp_param_group is None else [state._fsdp_param_group]


def _sharded(states: Iterable[Any]) -> Iterator[tuple[Any, Any, Any]]:
    """(state, group, parameter) for all parameters of the states."""
    for state in states:
        for group in _groups(state):
            for param in group.fsdp_params:
                yield state, group, param


def _seen(param: Any) -> bool:
    """Whether a forward pass has gathered this parameter yet."""
    return hasattr(param, "_unsharded_param")


def _tensors(param: Any) -> list[Tensor]:
    """What a model may show as this parameter, before and after forward passes."""
    names = ("sharded_param", "_unsharded_param", "_sharded_post_forward_param")
    return [tensor for tensor in (getattr(param, name, None) for name in names) if tensor is not None]


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, of which every process has a part."""
    return type(tensor).__name__ == "DTensor"
