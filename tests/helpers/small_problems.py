"""A small network on images of 8 x 8 pixels, and what tests of methods and optimisers do with it."""

import io

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyengm.models import build


def cnn4(norm="bn", dtype=torch.float64, seed=0, **options) -> nn.Module:
    """A network in training mode for images (n, 1, 8, 8)."""
    torch.manual_seed(seed)
    return build("cnn4", width=4, image_size=8, in_channels=1, norm_layer=norm, **options).to(dtype).train()


def images_and_labels(n, seed, dtype=torch.float64) -> tuple[Tensor, Tensor]:
    """Random images (n, 1, 8, 8) and labels (n,)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 1, 8, 8, generator=generator, dtype=dtype)
    return x, torch.randint(0, 10, (n,), generator=generator)


def losses_of(model, x, y) -> Tensor:
    """Cross-entropies (n,)."""
    return F.cross_entropy(model(x), y, reduction="none")


def ce(logits, y) -> Tensor:
    """Cross-entropies (n,) of logits."""
    return F.cross_entropy(logits, y, reduction="none")


def buffers(model) -> dict[str, Tensor]:
    """Copies of the buffers by name."""
    return {name: b.clone() for name, b in model.named_buffers()}


def weights(model) -> dict[str, Tensor]:
    """Copies of the parameters by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def theta(model) -> Tensor:
    """All parameters in one vector."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def same_bits(first, second) -> bool:
    """Whether two models have the same state, bit for bit."""
    states = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(a.equal(b) for a, b in states)


def distances(x_adv, x, norm) -> Tensor:
    """The norms (n,) of perturbations."""
    return torch.linalg.vector_norm((x_adv - x).flatten(1), ord=torch.inf if norm == "linf" else 2, dim=1)


def through_a_file(state):
    """A state after it was saved and loaded."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


class NanGradient(nn.Module):
    """Finite logits whose gradient is nan."""

    def forward(self, x):
        x = x.flatten(1)[:, :10]
        return x + (x - x).abs().sqrt()
