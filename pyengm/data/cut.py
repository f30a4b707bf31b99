"""Cutout and CutMix: boxes of images that are erased, or show another image.

The boxes depend on the seed, the epoch and each image's index alone. torchvision.transforms.v2 draws one box for a
whole batch from torch's global generator, so that a run that resumes, or has other processes, would draw others.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pyengm.ops import Purpose, philox_uniform


def cutout(x: Tensor, index: Tensor, side: int, *, seed: int, epoch: int) -> Tensor:
    """Erases a square of each image, in place.

    Its centre is uniform over the pixels, and what lies outside the image is left out. Erased pixels are 0, as those
    that a shift leaves empty.

    Args:
        x: (n, C, H, W), changed.
        index: (n,) int64, the indices of the images.
        side: of the square in pixels.
        seed: of the random values.
        epoch: of the random values.

    Returns:
        x.

    References:
        DeVries & Taylor 2017, "Improved Regularization of Convolutional Neural Networks with Cutout"; 16 pixels on
        CIFAR-10 and 8 on CIFAR-100 there.
    """
    center = philox_uniform(index, (2,), seed=seed, purpose=Purpose.CUTOUT, epoch=epoch)
    top, left = (_pixel(center[:, axis], x.shape[2 + axis]) - side // 2 for axis in range(2))
    return x.masked_fill_(_boxes(x, top, top + side, left, left + side)[0], 0.0)


def cutmix(
    x: Tensor,
    other: Tensor,
    y: Tensor,
    other_y: Tensor,
    index: Tensor,
    *,
    share: float,
    classes: int,
    seed: int,
    epoch: int,
) -> tuple[Tensor, Tensor]:
    """Replaces a box of some images by that of other images, and mixes the labels in proportion to the areas.

    The box has the area 1 - lambda of the image's, with lambda uniform in [0, 1), the image's ratio of sides, and a
    centre uniform over the pixels; what lies outside the image is left out.

    Args:
        x: (n, C, H, W).
        other: (n, C, H, W), the images that the boxes show.
        y: (n,) int64, the labels of x.
        other_y: (n,) int64, those of the others.
        index: (n,) int64, the indices of x.
        share: probability of a box; other images stay whole.
        classes: the number of classes k.
        seed: of the random values.
        epoch: of the random values.

    Returns:
        The images (n, C, H, W), and the probabilities (n, k) float32 of their classes.

    References:
        Yun et al. 2019, "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", Sec.
        3.1; with an average of the weights in Rebuffi et al. 2021, "Data Augmentation Can Improve Robustness".
    """
    height, width = x.shape[2:]
    drawn, area, *center = philox_uniform(index, (4,), seed=seed, purpose=Purpose.CUTMIX, epoch=epoch).unbind(1)
    reach = 0.5 * (1 - area.double()).sqrt() * (drawn < share)  # of the box to each side, as a share of the image
    row, col = _pixel(center[0], height), _pixel(center[1], width)
    high, wide = (reach * height).long(), (reach * width).long()
    mask, pixels = _boxes(x, row - high, row + high, col - wide, col + wide)
    shown = (pixels.to(torch.float32) / (height * width))[:, None]
    labels = (1 - shown) * F.one_hot(y, classes) + shown * F.one_hot(other_y, classes)
    return torch.where(mask, other, x), labels


def _pixel(u: Tensor, size: int) -> Tensor:
    """Uniform values in [0, 1) as pixels 0 to size - 1."""
    return (u * size).long()  # below size also after rounding: u <= 1 - 2**-24


def _boxes(x: Tensor, top: Tensor, bottom: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Which pixels boxes hold, from top and left to before bottom and right, (n, 1, H, W), and their number (n,)."""
    rows, cols = (torch.arange(size, device=x.device) for size in x.shape[2:])
    inside_rows = (rows >= top[:, None]) & (rows < bottom[:, None])  # (n, H)
    inside_cols = (cols >= left[:, None]) & (cols < right[:, None])
    return (inside_rows[:, :, None] & inside_cols[:, None, :])[:, None], inside_rows.sum(1) * inside_cols.sum(1)
