"""Every op in plain PyTorch: the reference of the tests, and the implementation on devices without kernels."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pyengm.ops._memory_format import computation_dtype


def pgd_linf_step_(
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    step_size: float,
    eps: float,
    lo: float,
    hi: float,
    step_sizes: Tensor | None,
    mask: Tensor | None,
) -> None:
    wide, x = _widened(x_adv), _widened(x)
    size = step_size if step_sizes is None else _per_example(step_sizes, x)
    v = wide + size * _widened(grad).sign().nan_to_num(0.0)  # sign(nan) = 0: such an element does not move
    inside = torch.fmin(torch.fmax(v, x - eps), x + eps).clamp(lo, hi)  # the bound inf - inf does not bind
    v = torch.where(v.isnan() | x.isnan(), math.nan, inside)
    x_adv.copy_(v if mask is None else torch.where(_per_example(mask, x), v, wide))


def _widened(t: Tensor) -> Tensor:
    return t.to(computation_dtype(t.dtype))


def _rows(t: Tensor) -> Tensor:
    return t.double().reshape(t.shape[0], math.prod(t.shape[1:]))


def _per_example(values: Tensor, like: Tensor) -> Tensor:
    return values.view((-1,) + (1,) * (like.dim() - 1))


def row_norms(t: Tensor) -> Tensor:
    return torch.linalg.vector_norm(_rows(t), dim=1).to(computation_dtype(t.dtype))


def pgd_l2_step_(
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    step_size: float,
    eps: float,
    lo: float,
    hi: float,
    step_sizes: Tensor | None,
    mask: Tensor | None,
) -> None:
    grad_norms = _per_example(row_norms(grad.double()), grad)
    moves = grad_norms.isfinite() & (grad_norms > 0)
    size = step_size if step_sizes is None else _per_example(step_sizes.double(), grad)
    v = x_adv.double() + torch.where(moves, size * (grad.double() / grad_norms), 0.0)
    delta = v - x.double()
    norms = _per_example(row_norms(delta), delta)
    v = torch.where(norms <= eps, v, x.double() + delta * (eps / norms))
    v = torch.where(norms.isfinite(), v, math.nan).clamp(lo, hi).to(x.dtype)
    x_adv.copy_(v if mask is None else torch.where(_per_example(mask, v), v, x_adv))


def fosc(x_adv: Tensor, grad: Tensor, x: Tensor, eps: float, l2: bool) -> Tensor:
    dual = torch.linalg.vector_norm(_rows(grad), ord=2 if l2 else 1, dim=1)
    reached = (_rows(x_adv) - _rows(x)).mul(_rows(grad)).sum(1)
    return (eps * dual - reached).to(computation_dtype(x_adv.dtype))


def fosc_step_(
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    active: Tensor,
    step_size: float,
    eps: float,
    threshold: float,
    lo: float,
    hi: float,
) -> Tensor:
    condition = fosc(x_adv, grad, x, eps, False)
    active.logical_and_(~(condition <= threshold))
    pgd_linf_step_(x_adv, grad, x, step_size, eps, lo, hi, None, active)
    return condition


def atas_step_(
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    v: Tensor,
    eps: float,
    step_scale: float,
    c: float,
    min_step: float,
    max_step: float,
    beta: float,
    lo: float,
    hi: float,
) -> Tensor:
    average = (beta * v.double() + (1 - beta) * _rows(grad).square().sum(1)).to(v.dtype)
    moves = average.isfinite()
    v.copy_(torch.where(moves, average, v))
    sizes = (step_scale / (1 + v.double().sqrt() / c)).clamp(min_step, max_step).to(v.dtype)
    pgd_linf_step_(x_adv, grad, x, 0.0, eps, lo, hi, sizes, moves)
    return sizes


def clip_weights(norms: Tensor, alpha: float) -> Tensor:
    quotient = torch.full_like(norms, alpha) / norms  # a float over a tensor would round twice: alpha * (1 / norm)
    bounded = torch.where(norms > alpha, quotient, torch.ones_like(norms))
    return torch.where(norms.isnan(), norms, bounded)


def regression_statistics(input_norms: Tensor, norms: Tensor) -> Tensor:
    x, y = input_norms.double(), norms.double()
    return torch.stack([torch.ones_like(x), x, y, x * x, x * y]).sum(1)


def regression_fit(statistics: Tensor, gammas: Tensor, keep: float) -> Tensor:
    n, sx, sy, sxx, sxy = statistics
    spread = n * sxx - sx * sx
    varies = spread > 1e-12 * n * sxx
    slope = torch.where(varies, (n * sxy - sx * sy) / spread, gammas[1])
    fitted = torch.stack([(sy - slope * sx) / n, slope])
    return torch.where(fitted.isfinite().all(), keep * gammas + (1 - keep) * fitted, gammas)


def regression_weights(
    input_norms: Tensor, norms: Tensor | None, gammas: Tensor, alpha: float, keep: float
) -> tuple[Tensor, Tensor]:
    if norms is None:
        gammas = gammas.clone()
    else:
        gammas = regression_fit(regression_statistics(input_norms, norms), gammas, keep)
    predicted = gammas[1] * input_norms.double() + gammas[0]
    return clip_weights(predicted, alpha).to(input_norms.dtype), gammas


def philox4x32(counter: list[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Ten rounds on four int64 tensors that hold 32-bit words; products wrap, which keeps their low 64 bits."""
    low = 0xFFFFFFFF
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32 & low) ^ c1 ^ k0, p1 & low, (p0 >> 32 & low) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    return [c0, c1, c2, c3]


def _words(index: Tensor, count: int, seed: int, epoch: int, purpose: int) -> Tensor:
    """(n, blocks, 4) words: the counter is (block, example, epoch, purpose), the key is the seed."""
    block = torch.arange((count + 3) // 4, device=index.device)
    example = (index & 0xFFFFFFFF)[:, None].expand(-1, len(block))
    counter = [
        block.expand_as(example),
        example,
        torch.full_like(example, epoch),
        torch.full_like(example, purpose),
    ]
    return torch.stack(philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32)), dim=-1)


def philox_uniform(index: Tensor, count: int, seed: int, epoch: int, purpose: int) -> Tensor:
    words = _words(index, count, seed, epoch, purpose)
    return ((words >> 8).float() * 2.0**-24).flatten(1)[:, :count].contiguous()


def philox_normal(index: Tensor, count: int, seed: int, epoch: int, purpose: int) -> Tensor:
    words = _words(index, count, seed, epoch, purpose).double()
    radius = (-2.0 * ((words[..., 0::2] + 1.0) * 2.0**-32).log()).sqrt()
    angle = words[..., 1::2] * (2.0 * math.pi * 2.0**-32)
    normals = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)
    return normals.flatten(1)[:, :count].float().contiguous()


def conv_gradients(
    x: Tensor, g: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int]
) -> tuple[Tensor, Tensor]:
    patches = F.unfold(x, tuple(kernel), tuple(dilation), tuple(padding), tuple(stride))  # (n, C kh kw, T)
    gradients = g.flatten(2) @ patches.mT
    sqnorm = gradients.double().square().sum((1, 2)).to(x.dtype)
    return sqnorm, gradients.view(x.shape[0], g.shape[1], x.shape[1], *kernel)


def conv_direct_sqnorm(x: Tensor, g: Tensor, *window: list[int]) -> Tensor:
    return conv_gradients(x, g, *window)[0]


conv_gram_sqnorm = conv_direct_sqnorm


def row_sums(g: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return g.double().sum(1).to(g.dtype), (g * x).double().sum(1).to(g.dtype)


def crop_flip(
    images: Tensor,
    positions: Tensor | None,
    rows: Tensor,
    cols: Tensor,
    flip: Tensor,
    padding: int,
    channels_last: bool,
) -> Tensor:
    images = images if positions is None else images.index_select(0, positions)
    height, width = images.shape[2:]
    y = torch.arange(height, device=images.device) + (rows - padding)[:, None]  # (n, H), of the source
    x = torch.arange(width, device=images.device).expand(len(images), -1)
    x = torch.where(flip[:, None], width - 1 - x, x) + (cols - padding)[:, None]  # (n, W)
    inside = ((y >= 0) & (y < height))[:, None, :, None] & ((x >= 0) & (x < width))[:, None, None, :]
    pixel = y.clamp(0, height - 1)[:, :, None] * width + x.clamp(0, width - 1)[:, None, :]  # (n, H, W)
    pixel = pixel.flatten(1)[:, None].expand(-1, images.shape[1], -1)
    values = images.flatten(2).gather(2, pixel).view(images.shape).masked_fill_(~inside, 0)
    # CUDA replaces a division by a Python scalar by a product with 1/255, which rounds differently; not by a tensor.
    values = values / torch.full((), 255, dtype=torch.float32, device=images.device)
    return values.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
