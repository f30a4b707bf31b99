"""Collective operations over the processes that train one model; a process alone needs no group."""

import atexit
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

T = TypeVar("T")

if distributed.is_available():
    # Imported when there is a group, these functions keep it as a default argument, and its threads alive until the
    # interpreter ends; a thread that then still holds a tensor aborts the process.
    import_module("torch.distributed.nn.functional")
    # A thread that waits for the interpreter to free the tensor of the last collective gets it before the end begins.
    atexit.register(time.sleep, 0.01)


def is_initialized() -> bool:
    """Whether this process is one of a group."""
    return distributed.is_available() and distributed.is_initialized()


def world_size() -> int:
    """The number of processes, 1 without a group."""
    return distributed.get_world_size() if is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0; process 0 alone writes files and prints."""
    return distributed.get_rank() if is_initialized() else 0


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum of a tensor over all processes.

    Args:
        values: a tensor of the same shape in all processes.

    Returns:
        A new tensor of that shape, the same in all processes; `values` itself if there is one process.
    """
    if world_size() == 1:
        return values
    values = values.clone()
    distributed.all_reduce(values)
    return values


def all_reduce_sum_many(tensors: Sequence[Tensor]) -> list[Tensor]:
    """`all_reduce_sum` of several tensors of one type and device, in one message."""
    if world_size() == 1:
        return list(tensors)
    flat = all_reduce_sum(torch.cat([t.flatten() for t in tensors]))
    return [piece.view_as(t) for piece, t in zip(flat.split([t.numel() for t in tensors]), tensors, strict=True)]


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor, which processes have in parts if it is a DTensor; all of them call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # pyright: ignore[reportAttributeAccessIssue]


def all_reduce_any(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    return bool(all_reduce_sum(torch.tensor(int(flag))).item()) if world_size() > 1 else flag


def all_gather_object(value: T) -> list[T]:
    """The values of all processes, in the order of their ranks; small objects that can be pickled."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def on_rank0(function: Callable[[], T]) -> T:
    """Calls a function in process 0 alone.

    Args:
        function: returns a small object that can be pickled.

    Returns:
        What the function returned, in all processes.

    Raises:
        Exception: the error of the function, in all processes; `reported_by_rank0` is set on it in those but 0.
    """
    result: Any = None
    error: Exception | None = None
    if rank() == 0:
        try:
            result = function()
        except Exception as raised:
            if world_size() == 1:
                raise
            error = raised
    result, error = all_gather_object((result, error))[0]
    if error is not None:
        error.reported_by_rank0 = rank() != 0  # pyright: ignore[reportAttributeAccessIssue]  # so one process prints it
        raise error
    return result


def average_gradients(module: nn.Module, images: int) -> None:
    """Replaces every .grad of a module by its mean over all processes, weighted by their numbers of images.

    The mean over the images of one process becomes the mean over the images of all. A parameter without a gradient in
    some processes counts as 0 there; a parameter without a gradient in all of them keeps None.

    Args:
        module: the same module in all processes.
        images: the number of images whose mean gradient this process has.
    """
    if world_size() == 1:
        return
    trained = [p for p in module.parameters() if p.requires_grad]
    for dtype in dict.fromkeys(p.dtype for p in trained):  # in one order everywhere
        _average([p for p in trained if p.dtype == dtype], images)


def prepare_reducer(losses: Tensor) -> None:
    """Prepares DistributedDataParallel for a backward pass of losses inside its forward pass.

    It does so itself at the end of the forward pass, which is too late for those who run the whole step in it, and who
    keep it from doing so once more, such as Lightning in manual optimisation.

    Args:
        losses: the losses, with their graph.
    """
    ddp = getattr(nn.parallel.DistributedDataParallel, "_active_ddp_module", None)
    if ddp is None or not ddp.require_backward_grad_sync or not torch.is_grad_enabled():
        return
    ddp.require_forward_param_sync = True
    ddp.reducer._rebuild_buckets()
    ddp.reducer.prepare_for_backward([losses] if ddp.find_unused_parameters and not ddp.static_graph else [])


def average_buffers(module: nn.Module) -> None:
    """Replaces the floating-point buffers of a module, such as running statistics, by their mean over all processes."""
    if world_size() == 1:  # before the walk over the module, which takes its time in every step
        return
    buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    if not buffers:
        return
    sums = all_reduce_sum_many([buffer.double() for buffer in buffers])  # float64 keeps constants bit for bit
    for buffer, total in zip(buffers, sums, strict=True):
        buffer.copy_(total / world_size())


def _average(params: list[nn.Parameter], images: int) -> None:
    """Averages the gradients of parameters of one type, in one message with the flags of which gradients there are."""
    has_grad = torch.ones(len(params) + 1, dtype=params[0].dtype, device=params[0].device)
    for i, p in enumerate(params):
        if p.grad is None:
            has_grad[i] = 0
    grads = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in params]
    flat = torch.cat([*grads, has_grad]).mul_(images)
    distributed.all_reduce(flat)
    means, weights = flat[: -len(has_grad)], flat[-len(has_grad) :]  # the last weight is the number of all images
    means /= weights[-1]
    missing = [p.grad is None for p in params]
    anywhere = (weights > 0).tolist() if any(missing) else [True] * len(params)
    for p, mean, has in zip(params, means.split([p.numel() for p in params]), anywhere, strict=False):
        if not has:
            continue
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        p.grad.copy_(mean.view_as(p))
