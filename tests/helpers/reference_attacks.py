"""Threat models, random starts and attack steps in plain torch, for tests that implement a method a second time."""

import torch
from torch.nn import functional as F

from pyengm.models import build
from pyengm.ops import Key, Purpose, philox_normal, philox_uniform

EPS = {"linf": 0.1, "l2": 0.5}


def network(norm="bn", dtype=torch.float64):
    torch.manual_seed(0)
    model = build("cnn4", width=4, image_size=8, in_channels=1, norm_layer=norm).to(dtype).train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(8, 1, 8, 8, dtype=dtype))  # running statistics that differ from the initial ones
    return model


def batch(n=6, seed=1, epoch=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 1, 8, 8, generator=generator, dtype=dtype)
    x[:, :, 0, :4] = torch.tensor([0.0, 0.0, 1.0, 1.0])  # pixels at the bounds
    return x, torch.randint(0, 10, (n,), generator=generator), Key(3, epoch, torch.arange(n) * 10 + 5)


def norms(t):
    """Norms of the examples, of a shape that broadcasts over them."""
    return t.flatten(1).norm(dim=1).view(-1, *[1] * (t.dim() - 1))


def noise(x, key, norm, purpose=Purpose.START):
    """Uniform in the ball of radius EPS[norm]."""
    named = {"seed": key.seed, "epoch": key.epoch}
    if norm == "linf":
        return EPS[norm] * (2 * philox_uniform(key.index, x.shape[1:], purpose=purpose, **named).to(x) - 1)
    direction = philox_normal(key.index, x.shape[1:], purpose=purpose, **named).to(x)
    draw = (purpose - Purpose.START) * 2**12
    radius = philox_uniform(key.index, (1, 1, 1), purpose=Purpose.RADIUS, draw=draw, **named).to(x)
    return EPS[norm] * direction / norms(direction) * radius ** (1 / x[0].numel())


def project(x_adv, x, norm):
    delta, eps = x_adv - x, EPS[norm]
    delta = delta.clamp(-eps, eps) if norm == "linf" else delta * (eps / norms(delta)).clamp(max=1)
    return (x + delta).clamp(0, 1)


def step(x_adv, gradient, x, norm, size):
    return project(x_adv + size * (gradient.sign() if norm == "linf" else gradient / norms(gradient)), x, norm)


def gradient_at(model, x, y):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)[0]


def fosc(x_adv, gradient, origin, norm):
    """FOSC of each example, (n,), summed pixel by pixel."""
    values = []
    for point, g, center in zip(x_adv, gradient, origin, strict=True):
        reach = sum(abs(v) for v in g.flatten().tolist())
        if norm == "l2":
            reach = sum(v * v for v in g.flatten().tolist()) ** 0.5
        moved = sum(d * v for d, v in zip((point - center).flatten().tolist(), g.flatten().tolist(), strict=True))
        values.append(EPS[norm] * reach - moved)
    return torch.tensor(values, dtype=x_adv.dtype)


def check_in_threat_model(x_adv, x, norm):
    distance = (x_adv - x).abs().amax() if norm == "linf" else norms(x_adv - x).max()
    assert distance <= EPS[norm] + 1e-9
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


def statistics(model):
    return {name: b.clone() for name, b in model.named_buffers()}


def gradients(losses, model):
    return torch.autograd.grad(losses.mean(), list(model.parameters()))
