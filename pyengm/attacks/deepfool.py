"""DeepFool (Moosavi-Dezfooli et al. 2016): the smallest perturbation in L2 that reaches a decision boundary."""

import math
import warnings

import torch
from torch import Tensor

from pyengm.attacks.half_precision import in_float32
from pyengm.attacks.logits import CheckedModel, Model
from pyengm.attacks.model_state import attack_mode, check_bn_mode
from pyengm.attacks.validation import check_batch, finite_logits
from pyengm.errors import ConfigError, NonFiniteError

TOLERANCE = 1e-4  # largest margin at the boundary, absolute and as a share of the margin at the start
HALVINGS = 40


class DeepFool:
    """Moves to the nearest boundary of the linearised model until the boundary of the model itself is reached.

    The iteration is Algorithm 2 of the paper. It ends across the boundary at any depth, or approaches it from within.
    So that a distance is one to the boundary, an example across it is moved back along the straight line to x, to the
    point where the two top logits are equal. That point is never further from x. It is found by bisection, as one end
    of the line is within and one across. Images are not clipped to [0, 1], as in the paper: the distance is that of
    the boundary, whether or not the point on it is an image.

    Args:
        steps: maximum number of linearisations.
        overshoot: share of the perturbation that is added to it, so that examples cross the boundary.
        classes: number of classes with the largest logits that are considered, the example's own among them. None:
            10, as the authors; all where there are fewer.
        bn: batch-norm mode of the model, see `attack_mode`. In modes other than "eval" the examples depend on one
            another and on which of them are finished.

    Raises:
        ConfigError: a value is out of range or a name is unknown.

    References:
        Moosavi-Dezfooli et al. 2016, "DeepFool: a simple and accurate method to fool deep neural networks", Alg. 2.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 10))
        >>> x, y = torch.rand(4, 3, 4, 4), torch.arange(4)
        >>> x_adv = pyengm.attacks.DeepFool()(model, x, model(x).argmax(dim=1))
        >>> bool((model(x_adv).argmax(dim=1) != model(x).argmax(dim=1)).all())
        True
    """

    def __init__(self, *, steps: int = 50, overshoot: float = 0.02, classes: int | None = None, bn: str = "eval"):
        if steps < 1:
            raise ConfigError(f"steps is {steps}; expected at least 1")
        if not (math.isfinite(overshoot) and overshoot >= 0):
            raise ConfigError(f"overshoot is {overshoot}; expected a finite number >= 0, such as 0.02")
        if classes is not None and classes < 2:
            raise ConfigError(f"classes is {classes}; expected at least 2, the example's own and another")
        check_bn_mode(bn)
        self.steps, self.overshoot, self.classes, self.bn = steps, overshoot, classes, bn

    @torch.inference_mode(False)
    def __call__(self, model: Model, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Attacks a model; arguments and errors as for `perturbations`.

        Returns:
            x + (1 + overshoot) r (n, ...), which may leave [0, 1]. It is adversarial unless the prediction changes
            twice within the overshoot.
        """
        return x + (1 + self.overshoot) * self.perturbations(model, x, y)

    def distances(self, model: Model, x: Tensor, y: Tensor | None = None) -> Tensor:
        """L2 distances of the images to the boundary; arguments and errors as for `perturbations`.

        Returns:
            Norms (n,) of `perturbations` in pixel units, 0 for a misclassified example.
        """
        return torch.linalg.vector_norm(self.perturbations(model, x, y).flatten(1), dim=1)

    @torch.inference_mode(False)
    def perturbations(self, model: Model, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Perturbations r before the overshoot: x + r is on a decision boundary.

        Warns of examples that have not reached a boundary after `steps` linearisations.

        Args:
            model: classifier of images in [0, 1]; restored afterwards.
            x: images (n, ...) in [0, 1].
            y: labels (n,) int64; misclassified examples stay as they are. None: all examples move.

        Returns:
            r (n, ...) in pixel units.

        Raises:
            DataError: images or labels do not fit.
            ModelError: the model returns anything but logits.
            NonFiniteError: outputs or gradients of the model are not finite.
        """
        x, labels = check_batch(x, torch.zeros(len(x), dtype=torch.int64) if y is None else y)
        r = torch.zeros_like(x, memory_format=torch.contiguous_format)
        with attack_mode(model, self.bn), torch.no_grad():
            net = CheckedModel(model, labels)
            logits = finite_logits(net(x))
            order = logits.topk(min(self.classes or 10, logits.shape[1]), dim=1).indices  # the own class first
            own = order[:, 0]
            near = _near(logits, own)
            moved = _margin(logits, own) < -near
            active = (moved if y is None else moved & (own == y)).nonzero().squeeze(1)
            for _ in range(self.steps):
                if len(active) == 0:
                    break
                r[active] += _linear_step(net, x[active] + r[active], order[active])
                margins = _margin(finite_logits(net(x[active] + r[active])), own[active])
                active = active[margins < -near[active]]
            if len(active):
                warnings.warn(
                    f"{len(active)} of {len(x)} examples are at no boundary after {self.steps} steps of DeepFool; "
                    "their last points count",
                    stacklevel=3,
                )
            return _bisect_to_boundary(net, x, r, own, near)


def _linear_step(net: CheckedModel, x: Tensor, order: Tensor) -> Tensor:
    """The shortest step (n, ...) to a boundary of the linearised model between order[:, 0] and another class in order.

    It is zero where the gradient is zero. It takes one backward pass per class for the whole batch, and only the
    shortest step so far is stored.
    """
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = in_float32(net)(leaf).gather(1, order)
        gaps = logits[:, 1:] - logits[:, :1]
        totals = gaps.sum(dim=0).unbind()
    shortest = torch.full((len(x),), math.inf, dtype=torch.float64, device=x.device)
    best = torch.zeros_like(x)
    for gap, total in zip(gaps.detach().double().abs().unbind(dim=1), totals, strict=True):
        (w,) = torch.autograd.grad(total, leaf, retain_graph=total is not totals[-1])
        # In float64: the squares of a confident model's gradient are 0 in float32.
        norms = torch.linalg.vector_norm(w.flatten(1), dim=1, dtype=torch.float64)
        if not norms.isfinite().all():
            raise NonFiniteError("the model's gradient is nan or infinite")
        distances = gap / norms
        better = distances < shortest  # false where the gradient is zero: the distance is infinite there, or nan
        shortest = torch.where(better, distances, shortest)
        direction = w / _like(norms.where(norms > 0, 1.0), w)
        best = torch.where(_like(better, w).bool(), direction * _like(distances, w), best)
    return best


def _bisect_to_boundary(net: CheckedModel, x: Tensor, r: Tensor, own: Tensor, near: Tensor) -> Tensor:
    """r, shortened by bisection where x + r is further than `near` across the boundary."""
    across = (_margin(finite_logits(net(x + r)), own) > near).nonzero().squeeze(1)
    across = across[r[across].flatten(1).any(dim=1)]
    low = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    high = torch.ones_like(low)
    for _ in range(HALVINGS):
        if len(across) == 0:
            break
        middle = (low[across] + high[across]) / 2
        points = x[across] + r[across] * _like(middle, x)
        margins = _margin(finite_logits(net(points)), own[across])
        high[across] = torch.where(margins >= -near[across], middle, high[across])
        low[across] = torch.where(margins <= near[across], middle, low[across])
        across = across[margins.abs() > near[across]]
    return r * _like(high, r)


def _margin(logits: Tensor, own: Tensor) -> Tensor:
    """(n,) largest of the other logits minus the own one: 0 at the boundary, where the two top logits are equal."""
    others = logits.scatter(1, own[:, None], -math.inf).amax(dim=1)
    return others - logits.gather(1, own[:, None]).squeeze(1)


def _near(logits: Tensor, own: Tensor) -> Tensor:
    """(n,) the margin that counts as 0: TOLERANCE, times the first margin if that is below 1; at least the resolution.

    The resolution is that of the logits in their floating-point type.
    """
    resolution = 8 * torch.finfo(logits.dtype).eps * logits.abs().amax(dim=1)
    return torch.maximum(TOLERANCE * _margin(logits, own).abs().clamp(max=1), resolution)


def _like(v: Tensor, t: Tensor) -> Tensor:
    """v (n,) in the precision of t, shaped to broadcast against it."""
    return v.to(t.dtype).view(-1, *[1] * (t.dim() - 1))
