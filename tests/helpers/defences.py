"""Defences that hide gradients without making a model robust, and an honestly trained model, on digits."""

from functools import cache

import torch
from torch import Tensor, nn

from pyengm.attacks import PGD, ThreatModel
from pyengm.data import load
from pyengm.models import build

THREAT = ThreatModel("linf", 0.1)


class Wrapped(nn.Module):
    """A model with changed inputs or outputs."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net


class RoundedInput(Wrapped):
    """Pixels in 5 grey values: the gradient of rounding is zero."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x * 4).round() / 4)


class SaturatedSoftmax(Wrapped):
    """Probabilities of a very low temperature, which are 0 or 1 in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return (1000 * self.net(x)).softmax(dim=1)


class NoisyInput(Wrapped):
    """Noise on the image at every call."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + 0.3 * torch.randn_like(x))


DEFENCES = {"rounded": RoundedInput, "saturated": SaturatedSoftmax, "noisy": NoisyInput}


@cache
def honest_model(adversarial: bool, norm_layer: str = "bn") -> nn.Module:
    """A small network, trained on digits for a few seconds, with PGD or without an attack."""
    torch.manual_seed(0)
    data = load("digits", "train")
    images, labels = data.images.float() / 255, data.labels
    model = build("cnn4", num_classes=10, in_channels=1, image_size=8, width=8, norm_layer=norm_layer)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    attack = PGD(THREAT.eps, THREAT.eps / 2, 3, norm=THREAT.norm)
    for _ in range(8):
        for batch in torch.randperm(len(labels)).split(64):
            x, y = images[batch], labels[batch]
            x = attack(model, x, y) if adversarial else x
            optimizer.zero_grad()
            nn.functional.cross_entropy(model.train()(x), y).backward()
            optimizer.step()
    return model.eval()
