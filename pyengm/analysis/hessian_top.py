"""The largest eigenvalues of the Hessian of the loss in the weights: sharpness."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyengm.analysis.batches import BATCH_SIZE, attacked, batches, model_mode
from pyengm.analysis.plotting import COLORS, finish, make_axes
from pyengm.errors import ConfigError


@dataclass(frozen=True)
class HessianTop:
    """Leading eigenvalues of the Hessian of the mean loss.

    Args:
        eigenvalues: (k,) the largest ones, in descending order.
        residuals: (k,) norms |H v - lambda v| of Lanczos' unit vectors: how far each may be off.
    """

    eigenvalues: np.ndarray
    residuals: np.ndarray

    def plot(self, ax: Any = None) -> Any:
        """The eigenvalues in order."""
        (axes,) = make_axes(ax)
        order = np.arange(1, len(self.eigenvalues) + 1)
        axes.errorbar(order, self.eigenvalues, yerr=self.residuals, fmt="o", color=COLORS[0])
        return finish(axes, "number of the eigenvalue", "eigenvalue of the Hessian")


def hessian_top(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    k: int = 1,
    attack: Any = None,
    bn: str = "eval",
    steps: int = 30,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> HessianTop:
    """Lanczos' iteration with Hessian-vector products, fully reorthogonalised.

    Adversarial images are made once and held fixed, as the paper's Hessian in theta does.

    Args:
        model: Classifier of images in [0, 1].
        images: (n, ...) in [0, 1].
        labels: (n,) int64.
        k: The number of eigenvalues.
        attack: None for the natural loss.
        bn: Mode of dropout and norm layers, "eval" or "train".
        steps: Steps of Lanczos' iteration, at least k; it ends early where it has found an invariant space.
        batch_size: Images at a time.
        seed: Of the first vector and random starts.

    Raises:
        ConfigError: k or steps is out of range.
        DataError, NonFiniteError: Images or labels do not fit.

    References:
        Kanai et al. 2023, Eq. 73 to 75; Golub & Van Loan, "Matrix computations", Sec. 10.1.
    """
    params: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    size = sum(p.numel() for p in params)
    steps = min(steps, size)
    if not 1 <= k <= steps:
        raise ConfigError(f"k and steps are {k} and {steps}; expected 1 <= k <= steps")
    fixed = [(attacked(model, attack, x, y, i, seed), y) for x, y, i in batches(images, labels, batch_size)]

    def product(vector: Tensor) -> Tensor:
        return _hessian_vector(model, params, fixed, vector, bn)

    first = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return lanczos(product, first.to(params[0].device), k, steps)


def lanczos(product: Any, first: Tensor, k: int, steps: int) -> HessianTop:
    """The k largest eigenvalues of a symmetric linear map of vectors (d,) in float64."""
    basis, diagonal, beside = [first / first.norm()], [], []
    for _ in range(steps):
        w = product(basis[-1])
        diagonal.append(torch.dot(w, basis[-1]).item())
        for _ in range(2):  # once is not enough in floating point
            stacked = torch.stack(basis)
            w = w - stacked.T @ (stacked @ w)
        beside.append(w.norm().item())
        if beside[-1] <= 1e-10 * max(map(abs, diagonal)):
            beside[-1] = 0.0
            break
        basis.append(w / beside[-1])
    matrix = np.diag(diagonal) + np.diag(beside[:-1], 1) + np.diag(beside[:-1], -1)
    values, vectors = np.linalg.eigh(matrix)
    order = values.argsort()[::-1][:k]
    return HessianTop(values[order], np.abs(beside[-1] * vectors[-1, order]))


def _hessian_vector(
    model: nn.Module, params: list[Tensor], fixed: list[tuple[Tensor, Tensor]], vector: Tensor, bn: str
) -> Tensor:
    """H v of the mean loss, (d,) in float64."""
    pieces = [v.view_as(p).to(p) for v, p in zip(vector.split([p.numel() for p in params]), params, strict=True)]
    total, count = torch.zeros_like(vector), sum(len(y) for _, y in fixed)
    for x, y in fixed:
        with model_mode(model, bn):
            loss = F.cross_entropy(model(x), y, reduction="sum") / count
        grads = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
        along = [(g * v).sum() for g, v in zip(grads, pieces, strict=True) if g is not None]
        if not along or not (dot := torch.stack(along).sum()).requires_grad:
            continue
        found = torch.autograd.grad(dot, params, allow_unused=True)
        flat = [
            torch.zeros(p.numel(), device=p.device) if h is None else h.flatten()
            for h, p in zip(found, params, strict=True)
        ]
        total += torch.cat([piece.to(vector) for piece in flat])
    return total
