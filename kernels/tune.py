"""Times tiles on this GPU and stores the fastest: python -m pyengm.kernels.tune, for the layers of ResNet-18."""

from functools import partial

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources
from triton.testing import do_bench

from pyengm.kernels import conv_tuning
from pyengm.kernels.conv_direct_sqnorm import conv_direct_sqnorm
from pyengm.kernels.conv_gram_sqnorm import conv_gram_sqnorm
from pyengm.kernels.conv_shape import ConvShape, Window

KERNELS = {"direct": conv_direct_sqnorm, "gram": conv_gram_sqnorm}
# channels in and out, height, stride, kernel
RESNET18 = [
    *((3, 64, 32, 1, 3), (64, 64, 32, 1, 3), (128, 128, 16, 1, 3), (256, 256, 8, 1, 3), (512, 512, 4, 1, 3)),
    *((64, 128, 32, 2, 3), (128, 256, 16, 2, 3), (256, 512, 8, 2, 3)),
    *((64, 128, 32, 2, 1), (128, 256, 16, 2, 1), (256, 512, 8, 2, 1)),
]


def tune(x: Tensor, g: Tensor, window: Window) -> dict[str, dict[tuple, float]]:
    """Times both forms on these operands and stores the fastest tiles for their shape.

    A tile takes about a second, most of it for compilation.

    Args:
        x: input (n, C, H, W), on a GPU; types as in `conv_direct_sqnorm`.
        g: gradient in the output (n, O, Ho, Wo).
        window: kernel, stride, padding and dilation.

    Returns:
        form -> tile -> median in microseconds, without the tiles that are too large for this GPU.

    Raises:
        RuntimeError: the operands are not on a GPU.
    """
    if not x.is_cuda:
        raise RuntimeError(f"expected operands on a GPU, on which tiles are timed, got them on {x.device}")
    shape = ConvShape.of(x, g, *window)
    times: dict[str, dict[tuple, float]] = {form: {} for form in KERNELS}
    for form, tiles in conv_tuning.candidates(shape).items():
        for tile in tiles:
            try:
                found = do_bench(partial(KERNELS[form], x, g, window, tile=tile), return_mode="median")
            except OutOfResources:
                continue
            assert isinstance(found, float)  # one mode gives one value
            times[form][tile] = 1e3 * found
    conv_tuning.store(shape, times)
    return times


def operands(c: int, o: int, height: int, stride: int, k: int, n: int, dtype: torch.dtype, device: str = "cuda"):
    """Random x and g of a convolution in channels_last, and its window."""
    window = ((k, k), (stride, stride), (k // 2, k // 2), (1, 1))
    out = (height - 1) // stride + 1
    shapes = ((n, c, height, height), (n, o, out, out))
    x, g = (torch.randn(s, device=device).to(dtype, memory_format=torch.channels_last) for s in shapes)
    return x, g, window


def main() -> None:
    """Times and prints the tiles of all convolutions of ResNet-18 for images of 32 pixels."""
    for dtype in (torch.bfloat16, torch.float32):
        for layer in RESNET18:
            times = tune(*operands(*layer, n=128, dtype=dtype))
            for form, tiles in times.items():
                best, default = min(tiles, key=tiles.__getitem__), next(iter(tiles))
                print(
                    f"{str(dtype).removeprefix('torch.')} {'-'.join(map(str, layer)):15} {form:6} "
                    f"{tiles[best]:7.1f} us {best}, default {tiles[default]:7.1f} us",
                    flush=True,
                )


if __name__ == "__main__":
    main()
