"""Per-example clipped gradients by pyengm, by other libraries and by naive loops, one function each.

Every function takes (model, x, y, alpha) and returns a step: a callable that runs forward and backward and returns the
gradient (1/n) sum_i min(alpha / ||g_i||, 1) g_i, one tensor per parameter, or for `plain` the gradient (1/n) sum_i g_i.
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

from pyengm import clipped_backward
from pyengm.ops import clip_weights
from pyengm.pergrad import per_example_grad_norms

Step = Callable[[], list[Tensor]]


def plain(model: nn.Module, x: Tensor, y: Tensor, alpha: float) -> Step:
    """The unit of all figures: forward and backward of the mean loss, without clipping."""

    def step() -> list[Tensor]:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        return _grads(model)

    return step


def pyengm_one_pass(model: nn.Module, x: Tensor, y: Tensor, alpha: float) -> Step:
    """Norms and clipped gradient from one backward pass."""
    params = list(model.parameters())

    def step() -> list[Tensor]:
        model.zero_grad()
        clipped_backward(_losses(model, x, y), params, alpha=alpha)
        return _grads(model)

    return step


def pyengm_two_passes(model: nn.Module, x: Tensor, y: Tensor, alpha: float) -> Step:
    """Norms from one backward pass, then an ordinary one of the weighted losses."""
    params = list(model.parameters())

    def step() -> list[Tensor]:
        model.zero_grad()
        losses = _losses(model, x, y)
        norms = per_example_grad_norms(losses, params)
        (losses * clip_weights(norms, alpha)).mean().backward()
        return _grads(model)

    return step


def paper_loop(model: nn.Module, x: Tensor, y: Tensor, alpha: float) -> Step:
    """The loop of the ENGM paper: one forward pass, then one backward pass through the whole batch per example."""
    params = list(model.parameters())

    def step() -> list[Tensor]:
        losses = _losses(model, x, y)
        gradients = (torch.autograd.grad(loss, params, retain_graph=True) for loss in losses)
        return _clipped_mean(gradients, params, len(x), alpha)

    return step


def single_examples(model: nn.Module, x: Tensor, y: Tensor, alpha: float) -> Step:
    """Forward and backward of every example on its own; valid only where the examples are independent."""
    params = list(model.parameters())

    def step() -> list[Tensor]:
        batches = zip(x.split(1), y.split(1), strict=True)
        gradients = (torch.autograd.grad(F.cross_entropy(model(one), label), params) for one, label in batches)
        return _clipped_mean(gradients, params, len(x), alpha)

    return step


def functorch(model: nn.Module, x: Tensor, y: Tensor, alpha: float) -> Step:
    """torch.func: vmap over grad; all per-example gradients are stored (smaller chunks made no step faster)."""
    model = _without_inplace(model)
    params = {name: p.detach() for name, p in model.named_parameters()}

    def loss(params: dict[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, params, one[None]), label[None])

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    return lambda: _reduce(list(gradients(params, x, y).values()), alpha)


def opacus_hooks(model: nn.Module, x: Tensor, y: Tensor, alpha: float) -> Step:
    """Opacus: per-example gradients from module hooks, clipped and summed by its optimizer."""
    from opacus.grad_sample import GradSampleModule
    from opacus.optimizers import DPOptimizer

    model = _without_inplace(model).train()
    wrapped = GradSampleModule(model, loss_reduction="mean")
    return _opacus_step(wrapped, DPOptimizer, model, x, y, alpha)


def opacus_expanded(model: nn.Module, x: Tensor, y: Tensor, alpha: float) -> Step:
    """Opacus on torch's expanded weights in place of its hooks."""
    from opacus.grad_sample import GradSampleModuleExpandedWeights
    from opacus.optimizers import DPOptimizer

    model = _without_inplace(model).train()
    wrapped = GradSampleModuleExpandedWeights(model, loss_reduction="mean")
    return _opacus_step(wrapped, DPOptimizer, model, x, y, alpha)


def opacus_ghost(model: nn.Module, x: Tensor, y: Tensor, alpha: float) -> Step:
    """Opacus fast gradient and ghost clipping: norms in one backward pass, the weighted gradient in a second."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    model = _without_inplace(model).train()
    wrapped = GradSampleModuleFastGradientClipping(model, max_grad_norm=alpha, loss_reduction="mean")
    optimizer = _opacus_optimizer(DPOptimizerFastGradientClipping, model, len(x), alpha)
    criterion = DPLossFastGradientClipping(wrapped, optimizer, nn.CrossEntropyLoss(), loss_reduction="mean")

    def step() -> list[Tensor]:
        optimizer.zero_grad(set_to_none=True)
        criterion(wrapped(x), y).backward()  # leaves the clipped sum in .grad
        return [grad.div_(len(x)) for grad in _grads(model)]

    return step


def backpack_norms(model: nn.Module, x: Tensor, y: Tensor, alpha: float) -> Step:
    """BackPACK: BatchL2Grad in one backward pass, the weighted gradient in a second; GroupNorm's rule is ours."""
    from backpack import backpack, extend
    from backpack.extensions import BatchL2Grad

    model = extend(_without_inplace(model))
    params = list(model.parameters())
    x = x.clone().requires_grad_()  # the first pass differentiates by x alone, which costs no weight gradients
    extension = BatchL2Grad()
    extension.set_module_extension(nn.GroupNorm, _backpack_group_norm(lambda grads: grads.square().sum(1)))

    def step() -> list[Tensor]:
        model.zero_grad()
        losses = _losses(model, x, y)
        with backpack(extension, retain_graph=True):
            losses.sum().backward(retain_graph=True, inputs=[x])
        norms = reduce(torch.add, _library_grads(params, "batch_l2")).sqrt()
        with backpack():  # without an extension; BackPACK frees the inputs that it stored
            (losses * clip_weights(norms, alpha)).mean().backward(inputs=params)
        return _grads(model)

    return step


def backpack_gradients(model: nn.Module, x: Tensor, y: Tensor, alpha: float) -> Step:
    """BackPACK: BatchGrad stores all per-example gradients in one backward pass; GroupNorm's rule is ours."""
    from backpack import backpack, extend
    from backpack.extensions import BatchGrad

    model = extend(_without_inplace(model))
    extension = BatchGrad()
    extension.set_module_extension(nn.GroupNorm, _backpack_group_norm(lambda grads: grads))

    def step() -> list[Tensor]:
        model.zero_grad()
        with backpack(extension):
            _losses(model, x, y).sum().backward()
        return _reduce(_take_grads(model.parameters(), "grad_batch"), alpha)

    return step


def fastdp(model: nn.Module, x: Tensor, y: Tensor, alpha: float) -> Step:
    """fastDP: book-keeping with the hybrid of ghost norms and per-example gradients, and ghost differentiation."""
    from fastDP import PrivacyEngine

    model = _without_inplace(model)
    first = next(name for name, _ in model.named_parameters())
    with contextlib.redirect_stdout(io.StringIO()):
        PrivacyEngine(
            model,
            batch_size=len(x),
            sample_size=len(x),
            epochs=1,
            noise_multiplier=0.0,
            max_grad_norm=alpha,
            clipping_fn="Abadi",
            clipping_mode="MixOpt",
            origin_params=[first],
        )

    def step() -> list[Tensor]:
        model.zero_grad()
        # fastDP draws noise of standard deviation zero, which is no part of the clipped gradient.
        with mock.patch("torch.normal", return_value=0.0):
            F.cross_entropy(model(x), y).backward()
        return [grad.div_(len(x)) for grad in _take_grads(model.parameters(), "private_grad")]

    return step


@dataclass(frozen=True)
class Baseline:
    """A function that builds a step, and the distribution that it comes from."""

    build: Callable[[nn.Module, Tensor, Tensor, float], Step]
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


def _losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y, reduction="none")


def _grads(model: nn.Module) -> list[Tensor]:
    return _library_grads(model.parameters(), "grad")


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


def _without_inplace(model: nn.Module) -> nn.Module:
    """A copy whose activations are not in place, which module hooks and torch.func require."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if hasattr(module, "inplace"):
            vars(module)["inplace"] = False
    return model


class _ClippingOptimizer(Protocol):
    """The part of Opacus' optimisers that the steps call."""

    def zero_grad(self, set_to_none: bool = ...) -> None: ...

    def clip_and_accumulate(self) -> None: ...


def _opacus_optimizer(
    kind: Callable[..., _ClippingOptimizer], model: nn.Module, n: int, alpha: float
) -> _ClippingOptimizer:
    sgd = torch.optim.SGD(model.parameters(), lr=0.0)
    return kind(sgd, noise_multiplier=0.0, max_grad_norm=alpha, expected_batch_size=n, loss_reduction="mean")


def _opacus_step(
    wrapped: nn.Module,
    kind: Callable[..., _ClippingOptimizer],
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    alpha: float,
) -> Step:
    optimizer = _opacus_optimizer(kind, model, len(x), alpha)

    def step() -> list[Tensor]:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(wrapped(x), y).backward()
        optimizer.clip_and_accumulate()
        return [grad.div_(len(x)) for grad in _library_grads(model.parameters(), "summed_grad")]

    return step


def _backpack_group_norm(finish: Callable[[Tensor], Tensor]) -> object:
    """A BackPACK rule for GroupNorm; finish maps per-example gradients (n, channels) to the stored result."""
    from backpack.extensions.firstorder.base import FirstOrderModuleExtension

    class GroupNorm(FirstOrderModuleExtension):
        def __init__(self) -> None:
            super().__init__(params=["weight", "bias"])

        def weight(self, extension, module, g_inp, g_out, quantities) -> Tensor:
            normalized = F.group_norm(module.input0, module.num_groups, eps=module.eps)
            return finish((normalized * g_out[0]).flatten(2).sum(2))

        def bias(self, extension, module, g_inp, g_out, quantities) -> Tensor:
            return finish(g_out[0].flatten(2).sum(2))

    return GroupNorm()
