"""Per-example clipped gradients by pyengm, by other libraries and by naive loops, one function each.

Every function takes (problem, alpha) and returns a step: a callable of a batch that runs forward and backward on a
model of its own and returns the gradient (1/n) sum_i min(alpha / ||g_i||, 1) g_i, one tensor per trained parameter, or
for `plain` the gradient (1/n) sum_i g_i.
The libraries are no dependencies of pyengm: each function imports its own, and raises ImportError where it is missing.
"""

import contextlib
import copy
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from importlib.metadata import version
from typing import Protocol
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.per_example_models import Batch, Problem
from pyengm import clipped_backward
from pyengm.ops import clip_weights
from pyengm.pergrad import per_example_grad_norms

Step = Callable[[Batch], list[Tensor]]


def plain(problem: Problem, alpha: float) -> Step:
    """The unit of all figures: forward and backward of the mean loss, without clipping."""
    model = _own_copy(problem)
    params = _trained(model)

    def step(batch: Batch) -> list[Tensor]:
        model.zero_grad()
        _losses(problem, model, batch).mean().backward()
        return _grads(params)

    return step


def pyengm_one_pass(problem: Problem, alpha: float) -> Step:
    """Norms and clipped gradient from one backward pass."""
    model = _own_copy(problem)
    params = _trained(model)

    def step(batch: Batch) -> list[Tensor]:
        model.zero_grad()
        clipped_backward(_losses(problem, model, batch), params, alpha=alpha)
        return _grads(params)

    return step


def pyengm_two_passes(problem: Problem, alpha: float) -> Step:
    """Norms from one backward pass, then an ordinary one of the weighted losses."""
    model = _own_copy(problem)
    params = _trained(model)

    def step(batch: Batch) -> list[Tensor]:
        model.zero_grad()
        losses = _losses(problem, model, batch)
        norms = per_example_grad_norms(losses, params)
        (losses * clip_weights(norms, alpha)).mean().backward()
        return _grads(params)

    return step


def paper_loop(problem: Problem, alpha: float) -> Step:
    """The loop of the ENGM paper: one forward pass, then one backward pass through the whole batch per example."""
    model = _own_copy(problem)
    params = _trained(model)

    def step(batch: Batch) -> list[Tensor]:
        losses = _losses(problem, model, batch)
        gradients = (torch.autograd.grad(loss, params, retain_graph=True) for loss in losses)
        return _clipped_mean(gradients, params, len(losses), alpha)

    return step


def single_examples(problem: Problem, alpha: float) -> Step:
    """Forward and backward of every example on its own; valid only where the examples are independent."""
    model = _own_copy(problem)
    params = _trained(model)

    def step(batch: Batch) -> list[Tensor]:
        parts = zip(*(part.split(1) for part in (batch.targets, *batch.inputs)), strict=True)
        examples = (Batch(tuple(inputs), target) for target, *inputs in parts)
        gradients = (torch.autograd.grad(_losses(problem, model, one).sum(), params) for one in examples)
        return _clipped_mean(gradients, params, problem.n, alpha)

    return step


def functorch(problem: Problem, alpha: float) -> Step:
    """torch.func: vmap over grad; all per-example gradients are stored (smaller chunks made no step faster)."""
    model = _own_copy(problem)
    params = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def loss(params: dict[str, Tensor], inputs: tuple[Tensor, ...], target: Tensor) -> Tensor:
        outputs = torch.func.functional_call(model, params, tuple(one[None] for one in inputs))
        return problem.losses(outputs, target[None]).squeeze(0)

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    return lambda batch: _reduce(list(gradients(params, batch.inputs, batch.targets).values()), alpha)


def opacus_hooks(problem: Problem, alpha: float) -> Step:
    """Opacus: per-example gradients from module hooks, clipped and summed by its optimizer."""
    from opacus.grad_sample import GradSampleModule
    from opacus.optimizers import DPOptimizer

    model = _own_copy(problem)
    return _opacus_step(GradSampleModule(model, loss_reduction="mean"), DPOptimizer, problem, model, alpha)


def opacus_expanded(problem: Problem, alpha: float) -> Step:
    """Opacus on torch's expanded weights in place of its hooks."""
    from opacus.grad_sample import GradSampleModuleExpandedWeights
    from opacus.optimizers import DPOptimizer

    model = _own_copy(problem)
    wrapped = GradSampleModuleExpandedWeights(model, loss_reduction="mean")
    return _opacus_step(wrapped, DPOptimizer, problem, model, alpha)


def opacus_ghost(problem: Problem, alpha: float) -> Step:
    """Opacus fast gradient and ghost clipping: norms in one backward pass, the weighted gradient in a second."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    model = _own_copy(problem)
    params = _trained(model)
    wrapped = GradSampleModuleFastGradientClipping(model, max_grad_norm=alpha, loss_reduction="mean")
    optimizer = _opacus_optimizer(DPOptimizerFastGradientClipping, params, problem.n, alpha)
    criterion = DPLossFastGradientClipping(wrapped, optimizer, _Criterion(problem), loss_reduction="mean")

    def step(batch: Batch) -> list[Tensor]:
        optimizer.zero_grad(set_to_none=True)
        criterion(wrapped(*batch.inputs), batch.targets).backward()  # leaves the clipped sum in .grad
        return [grad.div_(problem.n) for grad in _grads(params)]

    return step


def backpack_norms(problem: Problem, alpha: float) -> Step:
    """BackPACK: BatchL2Grad in one backward pass, the weighted gradient in a second; norm layers' rules are ours."""
    from backpack import backpack, extend
    from backpack.extensions import BatchL2Grad

    model = extend(_own_copy(problem))
    params = _trained(model)
    extension = _with_norm_rules(BatchL2Grad(), lambda grads: grads.flatten(1).square().sum(1))

    def step(batch: Batch) -> list[Tensor]:
        model.zero_grad()
        batch, ends = _first_pass_ends(model, batch)
        losses = _losses(problem, model, batch)
        with backpack(extension, retain_graph=True):
            losses.sum().backward(retain_graph=True, inputs=ends)
        model.zero_grad()
        norms = reduce(torch.add, _take_grads(params, "batch_l2")).sqrt()
        with backpack():  # without an extension; BackPACK frees the inputs that it stored
            (losses * clip_weights(norms, alpha)).mean().backward(inputs=params)
        return _grads(params)

    return step


def backpack_gradients(problem: Problem, alpha: float) -> Step:
    """BackPACK: BatchGrad stores all per-example gradients in one backward pass; norm layers' rules are ours."""
    from backpack import backpack, extend
    from backpack.extensions import BatchGrad

    model = extend(_own_copy(problem))
    params = _trained(model)
    extension = _with_norm_rules(BatchGrad(), lambda grads: grads)

    def step(batch: Batch) -> list[Tensor]:
        model.zero_grad()
        with backpack(extension):
            _losses(problem, model, batch).sum().backward()
        return _reduce(_take_grads(params, "grad_batch"), alpha)

    return step


def fastdp(problem: Problem, alpha: float) -> Step:
    """fastDP: book-keeping with the hybrid of ghost norms and per-example gradients, and ghost differentiation."""
    from fastDP import PrivacyEngine

    model = _own_copy(problem)
    params = _trained(model)
    first = next(name for name, p in model.named_parameters() if p.requires_grad)
    tables = [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)]
    with contextlib.redirect_stdout(io.StringIO()):
        PrivacyEngine(
            model,
            batch_size=problem.n,
            sample_size=problem.n,
            epochs=1,
            noise_multiplier=0.0,
            max_grad_norm=alpha,
            clipping_fn="Abadi",
            clipping_mode="MixOpt",
            origin_params=[first, *tables],
        )

    def step(batch: Batch) -> list[Tensor]:
        model.zero_grad()
        # fastDP draws noise of standard deviation zero, which is no part of the clipped gradient.
        with mock.patch("torch.normal", return_value=0.0):
            _losses(problem, model, batch).mean().backward()
        return [grad.div_(problem.n) for grad in _take_grads(params, "private_grad")]

    return step


@dataclass(frozen=True)
class Baseline:
    """A function that builds a step, and the distribution that it comes from."""

    build: Callable[[Problem, float], Step]
    distribution: str = "torch"

    def version(self) -> str:
        """Name and version of the distribution, for example "opacus 1.6.0"."""
        return f"{self.distribution} {version(self.distribution)}"


PLAIN = "plain step"
OURS = {
    "pyengm, one pass": Baseline(pyengm_one_pass, "pyengm"),
    "pyengm, two passes": Baseline(pyengm_two_passes, "pyengm"),
}
BASELINES = {
    "fastDP": Baseline(fastdp, "fastDP"),
    "BackPACK norms": Baseline(backpack_norms, "backpack-for-pytorch"),
    "BackPACK gradients": Baseline(backpack_gradients, "backpack-for-pytorch"),
    "Opacus ghost": Baseline(opacus_ghost, "opacus"),
    "Opacus hooks": Baseline(opacus_hooks, "opacus"),
    "Opacus expanded weights": Baseline(opacus_expanded, "opacus"),
    "vmap(grad)": Baseline(functorch),
    "single examples": Baseline(single_examples),
    "the paper's loop": Baseline(paper_loop),
}
STEPS = {PLAIN: Baseline(plain), **OURS, **BASELINES}


def _own_copy(problem: Problem) -> nn.Module:
    """A copy in training mode whose activations are not in place, which module hooks and torch.func require."""
    model = copy.deepcopy(problem.model).train()
    for module in model.modules():
        if hasattr(module, "inplace"):
            vars(module)["inplace"] = False
    return model


def _trained(model: nn.Module) -> list[Tensor]:
    return [p for p in model.parameters() if p.requires_grad]


def _losses(problem: Problem, model: nn.Module, batch: Batch) -> Tensor:
    return problem.losses(model(*batch.inputs), batch.targets)


def _grads(params: Iterable[Tensor]) -> list[Tensor]:
    return _library_grads(params, "grad")


def _library_grads(params: Iterable[Tensor], attribute: str) -> list[Tensor]:
    """The attribute of each parameter in which a library leaves its result."""
    return [getattr(p, attribute) for p in params]


def _take_grads(params: Iterable[Tensor], attribute: str) -> list[Tensor]:
    """The same, and removes the attribute."""
    params = list(params)
    grads = _library_grads(params, attribute)
    for p in params:
        delattr(p, attribute)
    return grads


def _clipped_mean(
    gradients: Iterable[tuple[Tensor, ...]], params: Sequence[Tensor], n: int, alpha: float
) -> list[Tensor]:
    """The clipped mean of n gradients that are computed one example at a time; only one of them is in memory."""
    total = [torch.zeros_like(p) for p in params]
    for grads in gradients:
        weight = clip_weights(nn.utils.get_total_norm(grads)[None], alpha).item() / n
        for mean, grad in zip(total, grads, strict=True):
            mean.add_(grad, alpha=weight)
    return total


def _reduce(gradients: list[Tensor], alpha: float) -> list[Tensor]:
    """The clipped mean of stored per-example gradients, each of shape (n, *parameter)."""
    norms = torch.stack([grads.flatten(1).norm(dim=1) for grads in gradients]).norm(dim=0)
    weights = clip_weights(norms, alpha) / len(norms)
    return [torch.tensordot(weights, grads, dims=1) for grads in gradients]


class _Criterion:
    """The problem's losses in the form that Opacus' ghost clipping calls, which sets reduction to "none" first."""

    def __init__(self, problem: Problem):
        self.losses, self.reduction = problem.losses, "mean"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses = self.losses(outputs, targets)
        return losses if self.reduction == "none" else losses.mean()


class _ClippingOptimizer(Protocol):
    """The part of Opacus' optimisers that the steps call."""

    def zero_grad(self, set_to_none: bool = ...) -> None: ...

    def clip_and_accumulate(self) -> None: ...


def _opacus_optimizer(
    kind: Callable[..., _ClippingOptimizer], params: list[Tensor], n: int, alpha: float
) -> _ClippingOptimizer:
    sgd = torch.optim.SGD(params, lr=0.0)
    return kind(sgd, noise_multiplier=0.0, max_grad_norm=alpha, expected_batch_size=n, loss_reduction="mean")


def _opacus_step(
    wrapped: nn.Module, kind: Callable[..., _ClippingOptimizer], problem: Problem, model: nn.Module, alpha: float
) -> Step:
    params = _trained(model)
    optimizer = _opacus_optimizer(kind, params, problem.n, alpha)

    def step(batch: Batch) -> list[Tensor]:
        optimizer.zero_grad(set_to_none=True)
        _losses(problem, wrapped, batch).mean().backward()
        optimizer.clip_and_accumulate()
        return [grad.div_(problem.n) for grad in _library_grads(params, "summed_grad")]

    return step


def _first_pass_ends(model: nn.Module, batch: Batch) -> tuple[Batch, list[Tensor]]:
    """The batch, and tensors with which a backward pass through all layers costs almost no weight gradients."""
    first, *others = batch.inputs
    if not first.is_floating_point():
        return batch, [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    first = first.clone().requires_grad_()
    return Batch((first, *others), batch.targets), [first]


def _with_norm_rules(extension, finish: Callable[[Tensor], Tensor]):
    """Gives a BackPACK extension rules for norm layers, of which it has only BatchNorm's.

    Args:
        extension: BatchGrad or BatchL2Grad.
        finish: maps per-example gradients (n, *parameter) to the result that is stored.
    """
    from backpack.extensions.firstorder.base import FirstOrderModuleExtension

    class NormLayer(FirstOrderModuleExtension):
        def __init__(self) -> None:
            super().__init__(params=["weight", "bias"])

        def weight(self, extension, module, g_inp, g_out, quantities) -> Tensor:
            return finish(_over_positions(module, _normalized(module) * g_out[0]))

        def bias(self, extension, module, g_inp, g_out, quantities) -> Tensor:
            return finish(_over_positions(module, g_out[0]))

    for layer in (nn.GroupNorm, nn.LayerNorm):
        extension.set_module_extension(layer, NormLayer())
    return extension


def _normalized(module: nn.Module) -> Tensor:
    """Output of a norm layer before its weight and bias; BackPACK stored its input."""
    x: Tensor = vars(module)["input0"] if "input0" in vars(module) else module.get_buffer("input0")
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(x, module.num_groups, eps=module.eps)
    assert isinstance(module, nn.LayerNorm)
    return F.layer_norm(x, module.normalized_shape, eps=module.eps)


def _over_positions(module: nn.Module, values: Tensor) -> Tensor:
    """Sums over all axes but those of the examples and of the parameter."""
    if isinstance(module, nn.GroupNorm):
        return values.flatten(2).sum(2)
    assert isinstance(module, nn.LayerNorm)
    return values.unsqueeze(1).flatten(1, -1 - len(module.normalized_shape)).sum(1)
