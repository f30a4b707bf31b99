"""SLAT: one-step perturbations of the image and of the first layers' outputs (Park & Lee 2021)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pyengm.attacks import ThreatModel, attack_mode
from pyengm.attacks.logits import CheckedModel, logits_of
from pyengm.attacks.losses import cross_entropy
from pyengm.attacks.memory_format import empty_dense
from pyengm.attacks.threat_model import unit
from pyengm.attacks.validation import check_finite
from pyengm.data import Transform
from pyengm.errors import ConfigError
from pyengm.methods.attack_step import check_bn, check_numbers, checked
from pyengm.methods.base import SinglePassMethod, StepOutput
from pyengm.methods.info import MethodInfo, PassCounts
from pyengm.methods.registry import register_method
from pyengm.ops import Key


@register_method
class SLAT(SinglePassMethod):
    """L_i = CE(f(x'_i), y_i), where the outputs h of some layers are perturbed too, by one pass's gradients.

    With g the gradients of the cross-entropy on x, in x and in every h, x' = clip(x + step_size sign g) and
    h' = h + min(2 step_size, eps) sign g, clipped to the range of the values of the same image and channel. All
    perturbations count as constant. In L2 they go along g over its norm.

    Args:
        eps: Radius of the threat model, in pixel units, and the largest perturbation of a hidden value.
        step_size: Step size, in pixel units; 0.9 eps unless given.
        layers: Names of the perturbed modules, with maps (n, channels, height, width) as outputs, joined by +; None
            takes the first convolution, and the first stage, the first child of the network with several convolutions.
        norm: Norm of the threat model, "linf" or "l2".
        bn: Batch-norm mode of the pass for g: "train" as in the authors' code, "eval" or "batch_stats".

    Raises:
        ConfigError: A value is out of range, or the model has no such layers.
        NonFiniteError: Losses or gradients are not finite.

    References:
        Park & Lee 2021, "Reliably Fast Adversarial Training via Latent Adversarial Perturbation", Alg. 1; layers and
        numbers from the authors' code for PreAct ResNet-18.
    """

    info = MethodInfo(
        name="slat",
        title="FGSM in the image and in the first layers",
        reference="Park & Lee 2021",
        passes=PassCounts(2, 2, 1),
        recipe={"lr": 0.2, "schedule": "cyclic", "pct_start": 0.4, "epochs": 30, "select_on": "none"},
        # larger steps and rates leave the outputs constant
        short_recipe=lambda run: {"lr": run.lr / 4, "step_size": run.eps / 2},
    )

    def __init__(
        self,
        eps: float,
        step_size: float | None = None,
        *,
        layers: str | None = None,
        norm: str = "linf",
        bn: str = "train",
    ):
        self.threat = ThreatModel(norm, eps)
        self.step_size = 0.9 * eps if step_size is None else step_size
        check_numbers(step_size=self.step_size)
        check_bn(bn)
        self.layers = None if layers is None else layers.split("+")
        self.bn = bn

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, key: Key | None = None, transform: Transform | None = None
    ) -> StepOutput:
        x, y = checked(x, y, key)
        layers = self._layers(model)
        grad, hidden = self._gradients(model, layers, x, y)
        x_adv = self.as_input(self.threat.step_(empty_dense(x).copy_(x), grad, x, self.step_size))
        size = min(2 * self.step_size, self.threat.eps)
        moves = [size * (g.sign() if self.threat.norm == "linf" else unit(g)) for g in hidden]
        with perturbed(layers, moves):
            logits = logits_of(model, x_adv)
        return StepOutput(self.cross_entropy(logits, y), x_adv, logits)

    def _layers(self, model: nn.Module) -> list[nn.Module]:
        if self.layers is None:
            return first_layers(model)
        known = dict(model.named_modules())
        missing = [name for name in self.layers if name not in known]
        if missing:
            raise ConfigError(f"the model has no modules {', '.join(missing)}; expected names of named_modules()")
        return [known[name] for name in self.layers]

    def _gradients(
        self, model: nn.Module, layers: Sequence[nn.Module], x: Tensor, y: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """The gradients of the sum of the cross-entropies in x and in the outputs of the layers."""
        outputs: dict[nn.Module, Tensor] = {}

        def keep(module: nn.Module, args: tuple, output: Tensor) -> None:
            outputs[module] = output

        hooks = [layer.register_forward_hook(keep) for layer in layers]
        try:
            with attack_mode(model, self.bn), torch.enable_grad():
                leaf = x.clone().requires_grad_()
                losses = cross_entropy(CheckedModel(model, y)(leaf), y)
                reached = [outputs[layer] for layer in layers if layer in outputs]
                check_maps(layers, reached)
                grad, *hidden = torch.autograd.grad(losses.sum(), [leaf, *reached])
        finally:
            for hook in hooks:
                hook.remove()
        check_finite(losses, grad)
        return grad, hidden


def check_maps(layers: Sequence[nn.Module], outputs: Sequence[Tensor]) -> None:
    """Raises ConfigError where a layer was not called, or has no maps as outputs."""
    if len(outputs) < len(layers) or any(h.dim() < 3 for h in outputs):
        shapes = ", ".join(str(tuple(h.shape)) for h in outputs)
        raise ConfigError(
            f"the {len(layers)} layers of SLAT returned {len(outputs)} outputs of shapes {shapes}; expected one of "
            "shape (n, channels, height, width) each: give others as layers=NAME+NAME"
        )


@contextmanager
def perturbed(layers: Sequence[nn.Module], moves: Sequence[Tensor]) -> Iterator[None]:
    """Within it the outputs of the layers are moved, and clipped to the range of their image and channel."""

    def hook(move: Tensor):
        def add(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            h = output.detach()
            low, high = (bound.view(*h.shape[:2], *[1] * (h.dim() - 2)) for bound in h.flatten(2).aminmax(dim=2))
            # Clipped values are equal to the last bit, as max-pooling must not choose among them by rounding errors.
            return (h + move).clamp(low, high) + (output - h)

        return add

    hooks = [layer.register_forward_hook(hook(move)) for layer, move in zip(layers, moves, strict=True)]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def first_layers(model: nn.Module) -> list[nn.Module]:
    """The first module with weights of two or more dimensions, and the first stage, where there is one.

    The stage is the first child of the network with several of them; where the network is the only child with weights,
    as behind a normalisation of pixels, its children count.

    Raises:
        ConfigError: The model has no weights.
    """
    first = next((module for module in model.modules() if _own_weights(module)), None)
    if first is None:
        raise ConfigError("the model has no weights of two or more dimensions, so no first layer for SLAT")
    children = [model]
    while len(children) == 1 and children[0] is not first:
        children = [child for child in children[0].children() if _weights(child)]
    stage = next((child for child in children if len(_weights(child)) > 1), None)
    return [first] if stage is None else [first, stage]


def _weights(module: nn.Module) -> list[Tensor]:
    return [p for p in module.parameters() if p.dim() >= 2]


def _own_weights(module: nn.Module) -> bool:
    return any(p.dim() >= 2 for p in module.parameters(recurse=False))
