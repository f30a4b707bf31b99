"""Several processes that train one model: which one this is, and what they add up. One process needs no group."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn


def is_running() -> bool:
    """Whether this process is one of a group."""
    return distributed.is_available() and distributed.is_initialized()


def world() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if is_running() else 1


def rank() -> int:
    """Which of them this is, from 0; process 0 alone writes files and speaks."""
    return distributed.get_rank() if is_running() else 0


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum over all processes of a tensor that has one shape everywhere; a new tensor, or the given one if alone."""
    if world() == 1:
        return values
    values = values.clone()
    distributed.all_reduce(values)
    return values


def all_reduce_any(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    return bool(all_reduce_sum(torch.tensor(int(flag))).item()) if world() > 1 else flag


def gather(thing: Any) -> list[Any]:
    """What every process gave, in their order. Small Python objects."""
    if world() == 1:
        return [thing]
    things: list[Any] = [None] * world()
    distributed.all_gather_object(things, thing)
    return things


def on_rank0(function: Callable[[], Any]) -> Any:
    """What the function returns in process 0, where alone it is called, or raises there; a small Python object."""
    found = None
    if rank() == 0:
        try:
            found = function(), None
        except Exception as error:
            if world() == 1:
                raise
            found = None, error
    result, error = gather(found)[0]
    if error is not None:
        error.reported_by_rank0 = rank() != 0  # so that it is said once
        raise error
    return result


def all_reduce_sum_many(tensors: Sequence[Tensor]) -> list[Tensor]:
    """`all_reduce_sum` of several tensors of one type and device, in one message."""
    if world() == 1:
        return list(tensors)
    flat = all_reduce_sum(torch.cat([t.flatten() for t in tensors]))
    return [part.view_as(t) for part, t in zip(flat.split([t.numel() for t in tensors]), tensors, strict=True)]


def average_gradients(module: nn.Module, images: int) -> None:
    """Makes every .grad of a module the mean over all processes, weighted by how many images each has.

    So the mean over a process's images becomes that over the images of all. A parameter without a gradient in some
    processes counts as 0 there; without one in all of them it keeps none.
    """
    if world() == 1:
        return
    trained = [p for p in module.parameters() if p.requires_grad]
    for dtype in dict.fromkeys(p.dtype for p in trained):  # in one order everywhere
        _average([p for p in trained if p.dtype == dtype], images)


def average_buffers(module: nn.Module) -> None:
    """Makes the floating-point buffers, such as running statistics, the mean over all processes."""
    if world() == 1:  # before the walk over the module, which takes its time in every step
        return
    buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    if not buffers:
        return
    sums = all_reduce_sum_many(
        [buffer.double() for buffer in buffers]
    )  # so that constants stay what they are, bit for bit
    for buffer, total in zip(buffers, sums, strict=True):
        buffer.copy_(total / world())


def _average(params: list[Tensor], images: int) -> None:
    some = params[0]
    here = torch.ones(len(params) + 1, dtype=some.dtype, device=some.device)
    for i, p in enumerate(params):
        if p.grad is None:
            here[i] = 0
    parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in params]
    flat = torch.cat([*parts, here]).mul_(images)
    distributed.all_reduce(flat)
    gradients, seen = flat[: -len(here)], flat[-len(here) :]
    gradients /= seen[-1]
    missing = [p.grad is None for p in params]
    found = (seen > 0).tolist() if any(missing) else [True] * len(params)
    for p, gradient, is_found in zip(params, gradients.split([p.numel() for p in params]), found, strict=False):
        if p.grad is None and is_found:
            p.grad = torch.zeros_like(p)
        if is_found:
            p.grad.copy_(gradient.view_as(p))
