"""TI-FGSM (Dong et al. 2019): gradients smoothed by a kernel, for attacks by transfer."""

import torch
from torch import Tensor
from torch.nn import functional as F

from pyengm.attacks.difgsm import DIFGSM
from pyengm.attacks.logits import CheckedModel
from pyengm.errors import ConfigError
from pyengm.ops import Key


class TIFGSM(DIFGSM):
    """The translation-invariant iterative fast gradient sign method (TI-FGSM).

    The gradient of every channel is convolved with a Gaussian kernel, which stands for the mean of the gradients at
    shifted images. With decay > 0 it is TI-MI-FGSM, with diversity > 0 TI-DIM.

    Args:
        eps, step_size, steps, decay, resize_rate, norm, loss, bn: As for `DIFGSM`.
        diversity: As for `DIFGSM`; 0 by default.
        kernel_size: Side of the kernel in pixels, odd. The paper's 15 is for images of 299 pixels.
        sigmas: Standard deviations of the Gaussian from the centre of the kernel to its edge.

    Raises:
        ConfigError: For values and names out of range.

    References:
        Dong et al. 2019, "Evading Defenses to Transferable Adversarial Examples by Translation-Invariant Attacks",
        Eq. 7 and Sec. 3.2.
    """

    def __init__(
        self,
        eps: float,
        step_size: float | None = None,
        steps: int = 10,
        *,
        decay: float = 0.0,
        kernel_size: int = 15,
        sigmas: float = 3.0,
        resize_rate: float = 0.9,
        diversity: float = 0.0,
        norm: str = "linf",
        loss: str = "ce",
        bn: str = "eval",
    ):
        shared = {"norm": norm, "loss": loss, "bn": bn}
        super().__init__(eps, step_size, steps, decay=decay, resize_rate=resize_rate, diversity=diversity, **shared)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ConfigError(f"kernel_size is {kernel_size}; expected an odd number of pixels, such as 15")
        if not 0 < sigmas < float("inf"):
            raise ConfigError(f"sigmas is {sigmas}; expected a finite number above 0, such as 3")
        self.kernel_size, self.sigmas = kernel_size, sigmas

    def _gradient(self, net: CheckedModel, x: Tensor, y: Tensor, key: Key | None, step: int) -> Tensor:
        grad = super()._gradient(net, x, y, key, step)
        kernel = gaussian_kernel(self.kernel_size, self.sigmas).to(grad)
        channels = grad.shape[1]
        return F.conv2d(grad, kernel.expand(channels, 1, -1, -1), padding="same", groups=channels)


def gaussian_kernel(size: int, sigmas: float) -> Tensor:
    """The kernel (size, size) in float64 with sum 1, whose edges are `sigmas` standard deviations from its centre."""
    line = torch.linspace(-sigmas, sigmas, size, dtype=torch.float64) if size > 1 else torch.zeros(1).double()
    profile = (-line.square() / 2).exp()
    kernel = profile[:, None] * profile
    return kernel / kernel.sum()
