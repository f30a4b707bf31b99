"""DI-FGSM (Xie et al. 2019): gradients at images that are randomly resized and padded, for attacks by transfer."""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from pyengm.attacks.input_grad import input_grad
from pyengm.attacks.logits import CheckedModel
from pyengm.attacks.mifgsm import MIFGSM
from pyengm.errors import ConfigError, DataError
from pyengm.ops import Key, Purpose, philox_uniform


class DIFGSM(MIFGSM):
    """The diverse inputs iterative fast gradient sign method (DI-FGSM, with decay > 0 M-DI-FGSM).

    Before each gradient, an example is resized to a random smaller size and padded with zeros at a random place, with
    probability `diversity`. The paper enlarges images of 299 pixels to 330; here the size of the model's input stays.

    Args:
        eps, step_size, steps, norm, loss, bn: As for `MIFGSM`.
        decay: As for `MIFGSM`; 0, the paper's DI-FGSM, by default.
        resize_rate: The smallest size, as a share of the image's, above 0 and at most 1.
        diversity: The probability p that an example is transformed in a step.

    Raises:
        ConfigError: For values and names out of range.

    References:
        Xie et al. 2019, "Improving Transferability of Adversarial Examples with Input Diversity", Sec. 3.2 and 4.1.
    """

    keyed = True

    def __init__(
        self,
        eps: float,
        step_size: float | None = None,
        steps: int = 10,
        *,
        decay: float = 0.0,
        resize_rate: float = 0.9,
        diversity: float = 0.5,
        norm: str = "linf",
        loss: str = "ce",
        bn: str = "eval",
    ):
        super().__init__(eps, step_size, steps, decay=decay, norm=norm, loss=loss, bn=bn)
        if not 0 < resize_rate <= 1:
            raise ConfigError(f"resize_rate is {resize_rate}; expected a share above 0 and at most 1, such as 0.9")
        if not 0 <= diversity <= 1:
            raise ConfigError(f"diversity is {diversity}; expected a probability from 0 to 1")
        self.resize_rate, self.diversity = resize_rate, diversity

    def _gradient(self, net: CheckedModel, x: Tensor, y: Tensor, key: Key | None, step: int) -> Tensor:
        if x.dim() != 4 or x.shape[2] != x.shape[3]:
            raise DataError(f"{type(self).__name__} expects square images (n, c, s, s), got {tuple(x.shape)}")
        assert key is not None  # `keyed`
        u = philox_uniform(key.index, (4,), seed=key.seed, epoch=key.epoch, purpose=Purpose.DIVERSITY, draw=step)
        sizes, tops, lefts = random_places(u, x.shape[-1], self.resize_rate)
        transformed = (u[:, 0] < self.diversity) & (sizes < x.shape[-1])
        transform = partial(_resize_some, rows=transformed, sizes=sizes, tops=tops, lefts=lefts)
        return input_grad(_Before(net, transform), x, self.loss, y)[0]


class _Before(CheckedModel):
    """A checked model that gets images after a transformation."""

    def __init__(self, net: CheckedModel, transform: partial[Tensor]):
        self.model, self.input_dtype, self.dtype = net.model, net.input_dtype, net.dtype
        self.highest_label, self.transform = net.highest_label, transform

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(self.transform(x))


def random_places(u: Tensor, side: int, rate: float) -> tuple[Tensor, Tensor, Tensor]:
    """Sizes from rate * side (rounded down, at least 1) to side, tops and lefts, each (n,), of uniform u (n, 4)."""
    smallest = max(int(side * rate), 1)
    sizes = smallest + (u[:, 1] * (side - smallest + 1)).long()
    tops, lefts = ((u[:, i] * (side - sizes + 1)).long() for i in (2, 3))
    return sizes, tops, lefts


def _resize_some(x: Tensor, rows: Tensor, sizes: Tensor, tops: Tensor, lefts: Tensor) -> Tensor:
    return torch.where(rows.view(-1, 1, 1, 1), resize_and_pad(x, sizes, tops, lefts), x)


def resize_and_pad(x: Tensor, sizes: Tensor, tops: Tensor, lefts: Tensor) -> Tensor:
    """Resizes every image to a size of its own and pads it with zeros to its former size.

    The values are those of torch.nn.functional.interpolate (bilinear, align_corners=False) and pad, for all sizes in
    one call of grid_sample.

    Args:
        x: (n, c, s, s) images.
        sizes: (n,) int64, from 1 to s.
        tops: (n,) int64, rows of zeros above the image.
        lefts: (n,) int64, columns of zeros on its left.

    Returns:
        (n, c, s, s) images.
    """
    side = x.shape[-1]
    pixels = torch.arange(side, device=x.device)
    rows, inside_rows = _sources(pixels, sizes, tops, x)
    columns, inside_columns = _sources(pixels, sizes, lefts, x)
    shape = len(x), side, side
    grid = torch.stack([columns[:, None, :].expand(shape), rows[:, :, None].expand(shape)], dim=-1)
    resized = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return resized * (inside_rows[:, None, :, None] & inside_columns[:, None, None, :])


def _sources(pixels: Tensor, sizes: Tensor, offsets: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Positions (n, s), from -1 to 1, that the pixels of one axis come from, and whether they are inside the image."""
    position = pixels - offsets[:, None]
    inside = (position >= 0) & (position < sizes[:, None])
    return (2 * position + 1).to(x.dtype) / sizes[:, None] - 1, inside
