"""The windows of a CropFlip on images without padding, there and back, in terms of those on padded images."""

from torch import Tensor
from torch.nn import functional as F

from pyengm.data import CropFlip


def show(transform: CropFlip, images: Tensor, fill: float = 0) -> Tensor:
    """The windows (n, C, H, W) of images (n, C, H, W) that are padded with the value `fill`."""
    return transform.gather_window(F.pad(images, (transform.padding,) * 4, value=fill))


def put_back(transform: CropFlip, windows: Tensor, out: Tensor) -> Tensor:
    """Writes the visible part of windows (n, C, H, W) to its place in images `out` (n, C, H, W), and returns `out`."""
    p, (height, width) = transform.padding, out.shape[2:]
    canvas = transform.scatter_window(windows, F.pad(out, (p,) * 4))
    return out.copy_(canvas[:, :, p : p + height, p : p + width])
