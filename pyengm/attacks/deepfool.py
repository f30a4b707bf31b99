"""DeepFool (Moosavi-Dezfooli et al. 2016): the way to the nearest decision boundary in L2."""

import math
import warnings

import torch
from torch import Tensor, nn

from pyengm.attacks.model_state import BN_MODES, attack_mode
from pyengm.attacks.validation import check_batch
from pyengm.errors import ConfigError, NonFiniteError

TOLERANCE = 1e-4  # how far the boundary may be: difference of the two top logits, or that share of it at the start
HALVINGS = 40


class DeepFool:
    """Goes to the nearest boundary of the linearised model until the boundary of the model itself is reached.

    steps: linearisations at most. overshoot: examples go this share further, so that they are across. classes: how
    many of the classes with the largest logits are considered, the example's own among them (None: 10, as the
    authors; all where there are fewer). bn: the model's mode, see `attack_mode`; in other modes than "eval" examples
    depend on each other and on which of them are done.

    The iteration is Algorithm 2 of the paper. It ends across the boundary at any depth, or, from within, ever closer.
    So that a distance is one to the boundary, an example across it goes back on its straight way from x, to
    where the two top logits meet: never further from x, and found by bisection, as one end is within and one across.
    Images are not clipped to [0, 1], as in the paper: a distance says how far the boundary is, not what an image
    may be.
    Raises ConfigError for numbers and names out of range.
    """

    def __init__(self, *, steps: int = 50, overshoot: float = 0.02, classes: int | None = None, bn: str = "eval"):
        if steps < 1:
            raise ConfigError(f"steps is {steps}; expected at least 1")
        if not (math.isfinite(overshoot) and overshoot >= 0):
            raise ConfigError(f"overshoot is {overshoot}; expected a finite number >= 0, such as 0.02")
        if classes is not None and classes < 2:
            raise ConfigError(f"classes is {classes}; expected at least 2, the example's own and another")
        if bn not in BN_MODES:
            raise ConfigError(f"batch-norm mode is {bn!r}; known modes: {', '.join(BN_MODES)}")
        self.steps, self.overshoot, self.classes, self.bn = steps, overshoot, classes, bn

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor | None = None) -> Tensor:
        """x + (1 + overshoot) r for images x (n, ...) in [0, 1], which may leave [0, 1].

        Adversarial, but where the model changes its mind twice within the overshoot. Arguments and errors are those of
        `perturbations`.
        """
        return x + (1 + self.overshoot) * self.perturbations(model, x, y)

    def distances(self, model: nn.Module, x: Tensor, y: Tensor | None = None) -> Tensor:
        """(n,) L2 lengths of `perturbations` in pixel units, 0 for an example that the model has wrong."""
        return torch.linalg.vector_norm(self.perturbations(model, x, y).flatten(1), dim=1)

    def perturbations(self, model: nn.Module, x: Tensor, y: Tensor | None = None) -> Tensor:
        """(n, ...) r before the overshoot: x + r is on a decision boundary.

        y: labels (n,) int64; an example that the model has wrong stays as it is. None: all are moved.
        Warns of examples that have not reached a boundary in `steps`.
        Raises DataError for images or labels that do not fit, NonFiniteError for a model whose outputs or gradients
        are not finite.
        """
        check_batch(x, torch.zeros(len(x), dtype=torch.int64) if y is None else y)
        r = torch.zeros_like(x, memory_format=torch.contiguous_format)
        with attack_mode(model, self.bn), torch.no_grad():
            logits = _finite(model(x))
            order = logits.topk(min(self.classes or 10, logits.shape[1]), dim=1).indices  # the own class first
            own = order[:, 0]
            near = _near(logits, own)
            moved = _margin(logits, own) < -near
            active = (moved if y is None else moved & (own == y)).nonzero().squeeze(1)
            for _ in range(self.steps):
                if len(active) == 0:
                    break
                r[active] += _linear_step(model, x[active] + r[active], order[active])
                active = active[_margin(_finite(model(x[active] + r[active])), own[active]) < -near[active]]
            if len(active):
                warnings.warn(
                    f"{len(active)} of {len(x)} examples are at no boundary after {self.steps} steps of DeepFool; "
                    "their last points count",
                    stacklevel=3,
                )
            return _back_to_the_boundary(model, x, r, own, near)


def _linear_step(model: nn.Module, x: Tensor, order: Tensor) -> Tensor:
    """(n, ...) the shortest way to a boundary between class order[:, 0] and another in `order`, were the model linear.

    Zero where no gradient is. One backward pass per class for the whole batch, of which only the best is kept.
    """
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(leaf).gather(1, order)
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
        lengths = gap / norms
        better = lengths < shortest  # not where the gradient is zero: the length is infinite there, or nan
        shortest = torch.where(better, lengths, shortest)
        direction = w / _like(norms.where(norms > 0, 1.0), w)
        best = torch.where(_like(better, w).bool(), direction * _like(lengths, w), best)
    return best


def _back_to_the_boundary(model: nn.Module, x: Tensor, r: Tensor, own: Tensor, near: Tensor) -> Tensor:
    """r, shortened by bisection where x + r is further than `near` across the boundary."""
    across = (_margin(_finite(model(x + r)), own) > near).nonzero().squeeze(1)
    across = across[r[across].flatten(1).any(dim=1)]
    low = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    high = torch.ones_like(low)
    for _ in range(HALVINGS):
        if len(across) == 0:
            break
        middle = (low[across] + high[across]) / 2
        points = x[across] + r[across] * _like(middle, x)
        margins = _margin(_finite(model(points)), own[across])
        high[across] = torch.where(margins >= -near[across], middle, high[across])
        low[across] = torch.where(margins <= near[across], middle, low[across])
        across = across[margins.abs() > near[across]]
    return r * _like(high, r)


def _margin(logits: Tensor, own: Tensor) -> Tensor:
    """(n,) the largest of the other logits less the own one: 0 at the boundary, where the two top logits are alike."""
    others = logits.scatter(1, own[:, None], -math.inf).amax(dim=1)
    return others - logits.gather(1, own[:, None]).squeeze(1)


def _near(logits: Tensor, own: Tensor) -> Tensor:
    """(n,) the margin that counts as 0: TOLERANCE, as much of a start below 1, and no less than logits resolve."""
    resolution = 8 * torch.finfo(logits.dtype).eps * logits.abs().amax(dim=1)
    return torch.maximum(TOLERANCE * _margin(logits, own).abs().clamp(max=1), resolution)


def _finite(logits: Tensor) -> Tensor:
    if not logits.isfinite().all():
        raise NonFiniteError("the model's outputs are nan or infinite")
    return logits


def _like(v: Tensor, t: Tensor) -> Tensor:
    """v (n,) in the precision of t, shaped to broadcast against it."""
    return v.to(t.dtype).view(-1, *[1] * (t.dim() - 1))
