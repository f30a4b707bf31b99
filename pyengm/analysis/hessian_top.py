"""The largest eigenvalues of the Hessian of the loss in the weights."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from pyengm.analysis.images import Attack, Batches, analysis_mode
from pyengm.analysis.parts import Arrays, Parts
from pyengm.analysis.weight_space import adversarial_batches, gaussian_like, trained_params
from pyengm.attacks.logits import logits_of
from pyengm.attacks.losses import cross_entropy
from pyengm.errors import ConfigError
from pyengm.utils.figures import COLORS, axes_or_new

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class HessianTop:
    """Eigenvalues of the Hessian of the mean loss.

    Attributes:
        eigenvalues: (k,) the largest ones, descending.
        residuals: (k,) |H v - lambda v| of unit vectors v: an eigenvalue of H is at most this far.
        iterations: Steps of the Lanczos method, one Hessian-vector product each.
        converged: Whether all residuals are below the tolerance.
    """

    eigenvalues: np.ndarray
    residuals: np.ndarray
    iterations: int
    converged: bool

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """The eigenvalues, with their residuals."""
        ax = axes_or_new(ax)
        ranks = np.arange(1, len(self.eigenvalues) + 1)
        label = f"{self.iterations} Hessian-vector products"
        ax.errorbar(ranks, self.eigenvalues, self.residuals, fmt="o", color=COLORS[0], capsize=4, label=label)
        ax.set(xlabel="rank", ylabel="eigenvalue of the Hessian", xticks=ranks)
        ax.axhline(0, color="0.6", linewidth=0.8)
        ax.legend()
        return ax


def hessian_top(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    attack: Attack | None = None,
    k: int = 1,
    tolerance: float = 1e-3,
    max_iterations: int = 100,
    bn: str = "eval",
    batch_size: int = 250,
    seed: int = 0,
    parts: Parts | None = None,
) -> HessianTop:
    """The k largest eigenvalues of the Hessian of the mean loss in the weights, by the Lanczos method.

    The vectors are kept and made orthogonal in float64, max_iterations of them at most, of all weights each.

    Args:
        model: Classifier of images in [0, 1] whose derivatives can be differentiated.
        images: (n, ...) in [0, 1].
        labels: (n,) int64.
        attack: Whose examples the loss is of, made once and held; None for the images themselves.
        k: Number of eigenvalues.
        tolerance: Residuals at which it stops, as shares of the largest eigenvalue in absolute value.
        max_iterations: Largest number of steps.
        bn: "eval", or "train" for statistics of the batch.
        batch_size: Largest size of a batch.
        seed: Of the first vector, random starts and dropout.
        parts: Keeps the parts of an interrupted analysis.

    Returns:
        Eigenvalues and residuals.

    Raises:
        ConfigError: k is larger than max_iterations or than the number of weights, or a value is out of range.
        DataError: Images or labels do not fit.

    References:
        Kanai et al. 2023, supplement, Eqs. 73 to 75; Golub & Van Loan 2013, "Matrix Computations", Sec. 10.1.
    """
    params = trained_params(model)
    size = sum(p.numel() for p in params)
    if not 1 <= k <= min(max_iterations, size) or not tolerance > 0:
        raise ConfigError(
            f"expected k from 1 to max_iterations ({max_iterations}) and to {size} weights, and a tolerance > 0, got "
            f"{k} and {tolerance}"
        )
    inputs = list(adversarial_batches(model, Batches(images, labels, batch_size, seed), attack))
    vectors = [_unit(torch.cat([t.flatten() for t in gaussian_like(params, seed)]))]

    def product(_: int) -> Arrays:
        return {"product": _hessian_times(model, params, inputs, vectors[-1], bn, seed).cpu().numpy()}

    return _lanczos(vectors, (parts or Parts()).run(min(max_iterations, size), product), k, tolerance, seed)


def _lanczos(vectors: list[Tensor], products: Iterator[Arrays], k: int, tolerance: float, seed: int) -> HessianTop:
    """The Lanczos method, from products of the matrix and the last of the vectors, a list that grows."""
    diagonal, beside = [], []
    for part in products:
        w = torch.from_numpy(part["product"]).to(vectors[0].device)
        diagonal.append(float(w @ vectors[-1]))
        basis = torch.stack(vectors)
        for _ in range(2):  # once leaves rounding errors that grow
            w = w - basis.T @ (basis @ w)
        beside.append(float(w.norm()))
        values, residuals = _ritz(diagonal, beside)
        limit = tolerance * np.abs(values).max()
        exhausted = beside[-1] <= 1e-12 * np.abs(values).max()
        if len(values) >= k and (exhausted or residuals[:k].max() <= limit):
            break
        # The space that the first vector spans is used up: a new one, orthogonal to it, begins the next.
        w = gaussian_orthogonal(basis, seed + len(vectors)) if exhausted else w
        beside[-1] = 0.0 if exhausted else beside[-1]
        vectors.append(_unit(w))
    return HessianTop(values[:k], residuals[:k], len(diagonal), bool(residuals[:k].max() <= limit))


def gaussian_orthogonal(basis: Tensor, seed: int) -> Tensor:
    """A random vector orthogonal to the rows of a basis (m, P)."""
    (w,) = gaussian_like([basis[0]], seed)
    for _ in range(2):
        w = w - basis.T @ (basis @ w)
    return w


def _unit(vector: Tensor) -> Tensor:
    return vector / vector.norm()


def _ritz(diagonal: list[float], beside: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of the tridiagonal matrix, descending, and the residuals of their vectors."""
    off = np.array(beside[:-1])
    values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1))
    return values[::-1], beside[-1] * np.abs(vectors[-1, ::-1])


def _hessian_times(
    model: nn.Module,
    params: Sequence[Tensor],
    inputs: Sequence[tuple[Tensor, Tensor]],
    vector: Tensor,
    bn: str,
    seed: int,
) -> Tensor:
    """The product of the Hessian of the mean loss and a vector (P,), in float64."""
    pieces = [v.view_as(p).to(p.dtype) for v, p in zip(vector.split([p.numel() for p in params]), params, strict=True)]
    total, count = torch.zeros_like(vector), sum(len(y) for _, y in inputs)
    for number, (x, y) in enumerate(inputs):
        with analysis_mode(model, bn, seed + number):
            losses = cross_entropy(logits_of(model, x, y), y)
            grads = torch.autograd.grad(losses.sum(), params, create_graph=True, allow_unused=True)
            # Gradients without a graph are those that the weights do not change.
            used = [(g, v) for g, v in zip(grads, pieces, strict=True) if g is not None and g.requires_grad]
            found: Sequence[Tensor | None] = [None] * len(params)
            if used:
                along = torch.stack([(g * v).sum() for g, v in used]).sum()
                found = torch.autograd.grad(along, params, allow_unused=True)
        rows = [torch.zeros_like(p) if t is None else t for t, p in zip(found, params, strict=True)]
        total += torch.cat([t.flatten().double() for t in rows]) / count
    return total
