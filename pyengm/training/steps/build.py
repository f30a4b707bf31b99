"""The choice of a step and of a runner of attacks, made once for a run."""

from functools import partial
from typing import cast

import torch
from torch import nn

from pyengm.attacks import EagerRunner, Runner
from pyengm.methods import AttackMethod, Method, MovedWeights
from pyengm.optim import EntropySGD, PerExampleSGD
from pyengm.training.steps.base import Step
from pyengm.training.steps.captured_function import CapturedFunction
from pyengm.training.steps.closure_step import ClosureStep
from pyengm.training.steps.cuda_graph_step import CudaGraphStep, can_capture_backward
from pyengm.training.steps.runners import CompiledRunner, CudaGraphRunner
from pyengm.training.steps.train_step import EagerStep
from pyengm.utils.distributed import average_gradients


def build_step(
    method: Method,
    model: nn.Module,
    optimizer: PerExampleSGD,
    *,
    network: nn.Module | None = None,
    scaler: torch.amp.GradScaler | None = None,
    capture_size: int | None = None,
) -> Step:
    """Chooses the step of a method and an optimiser.

    Args:
        method: Computes the per-example losses of a batch.
        model: The model, whose gradients are averaged over the processes.
        optimizer: Has all parameters of the model.
        network: The model as steps run it, in mixed precision for instance; None for the model itself.
        scaler: Scales the losses of mixed precision in fp16.
        capture_size: The number of images of the batches that CUDA graphs are to capture, None for no CUDA graphs.

    Returns:
        A `ClosureStep` for optimisers that draw their own batches, a `CudaGraphStep` where CUDA graphs are wanted and
        the pass after the attack can be captured, else an `EagerStep`.
    """
    network = model if network is None else network
    average = partial(average_gradients, model)
    if isinstance(optimizer, EntropySGD):
        return ClosureStep(method, network, optimizer, average)
    is_capturable = scaler is None and can_capture_backward(optimizer)
    moves = isinstance(method, MovedWeights)
    if capture_size is not None and is_capturable and isinstance(method, AttackMethod) and not moves:
        return CudaGraphStep(method, network, optimizer, average, CapturedFunction(capture_size))
    return EagerStep(method, network, optimizer, average, scaler)


def build_runner(network: nn.Module, *, compile_model: bool = False, capture_size: int | None = None) -> Runner:
    """Chooses how an attack runs its passes.

    Args:
        network: The model as steps run it.
        compile_model: Whether the attack runs the network compiled. Steps run it as it is.
        capture_size: The number of images of the batches that CUDA graphs are to capture, None for no CUDA graphs.
    """
    runner = EagerRunner() if capture_size is None else CudaGraphRunner(CapturedFunction(capture_size))
    if not compile_model:
        return runner
    compiled = cast(nn.Module, torch.compile(network))  # torch's annotations know functions only
    return CompiledRunner(network, compiled, runner)
