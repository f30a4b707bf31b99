"""The state of a model during an attack: no weight gradients, batch-norm modes, and everything restored."""

from contextlib import nullcontext

import pytest
import torch
from helpers.attacked import batch, network
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pyengm.attacks import FGSM, PGD, attack_mode
from pyengm.attacks.losses import cross_entropy


class BackwardMasks(TorchDispatchMode):
    """Which gradients (input, weight, bias) each fused backward op computes."""

    def __init__(self):
        super().__init__()
        self.masks = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "backward" in func.name() and isinstance(args[-1], list):
            self.masks.append(args[-1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("bn", ["eval", "train", "batch_stats"])
def test_no_weight_gradient_is_computed(bn):
    model, (x, y) = network("bn"), batch()
    model.head.bias.requires_grad_(False)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    model.head.weight.grad = mark = torch.ones_like(model.head.weight)
    with BackwardMasks() as recorded:
        PGD(0.1, 0.02, 2, bn=bn)(model, x, y)
    # Two steps through two convolutions, and two norms, which are no more than a scale and a shift with bn="eval".
    assert recorded.masks == [[True, False, False]] * (4 if bn == "eval" else 8)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert model.head.weight.grad is mark
    assert mark.eq(1).all()
    assert all(p.grad is None for name, p in model.named_parameters() if name != "head.weight")


def test_linear_layers_store_nothing_for_weight_gradients():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Sigmoid(), nn.Linear(32, 10))
    x, saved = batch()[0], []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()), lambda t: t):
        with attack_mode(model, "eval"):
            leaf = x.clone().requires_grad_()
            model(leaf)
        assert leaf.data_ptr() not in saved
        model(leaf)
        assert leaf.data_ptr() in saved


def test_a_graph_from_before_the_attack_still_gives_its_gradients():
    model, (x, y) = network("gn"), batch()
    expected = torch.autograd.grad(F.cross_entropy(model(x), y), model.parameters())
    loss = F.cross_entropy(model(x), y)
    PGD(0.1, 0.02, 2)(model, x, y)
    loss.backward()
    for p, g in zip(model.parameters(), expected, strict=True):
        assert p.grad.equal(g)


class Norms(nn.Module):
    """Every kind of layer with running statistics, and one without."""

    def __init__(self):
        super().__init__()
        self.batch = nn.BatchNorm2d(2)
        self.cumulative = nn.BatchNorm2d(2, momentum=None)
        self.sync = nn.SyncBatchNorm(2)
        self.free = nn.BatchNorm2d(2, track_running_stats=False)
        self.instance = nn.InstanceNorm2d(2, affine=True, track_running_stats=True)
        self.group = nn.GroupNorm(1, 2)
        self.drop = nn.Dropout(0.0)
        self.head = nn.Linear(2 * 64, 10)

    def forward(self, x):
        x = torch.cat([x, x.square()], dim=1)
        for layer in (self.batch, self.cumulative, self.sync, self.free, self.instance, self.group, self.drop):
            x = layer(x)
        return self.head(x.flatten(1))


def statistics(model):
    return {name: b.clone() for name, b in model.named_buffers()}


def same(first, second):
    return {name: first[name].equal(second[name]) for name in first}


def model_with_statistics():
    torch.manual_seed(0)
    model = Norms()
    model(torch.rand(8, 1, 8, 8))  # running statistics that differ from the initial ones
    return model


@pytest.mark.parametrize("bn", ["eval", "train", "batch_stats"])
@pytest.mark.parametrize("fails", [False, True])
def test_mode_is_restored(bn, fails):
    model, (x, y) = model_with_statistics(), batch()
    model.sync.eval()  # a mixed state
    model.drop.eval()
    model.group.weight.requires_grad_(False)
    buffers = dict(model.named_buffers())
    tracking = {n: getattr(m, "track_running_stats", None) for n, m in model.named_modules()}
    modes = {name: module.training for name, module in model.named_modules()}
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    before = statistics(model)
    if fails:
        handle = model.head.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError) if fails else nullcontext():
        PGD(0.1, 0.02, 2, bn=bn)(model, x, y, out=(out := torch.empty_like(x)))
    if fails:
        handle.remove()
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert {n: getattr(m, "track_running_stats", None) for n, m in model.named_modules()} == tracking
    assert all(buffers[name] is b for name, b in model.named_buffers())
    assert dict(model.named_buffers()).keys() == before.keys()
    assert not out.requires_grad
    unchanged = same(before, statistics(model))
    if bn == "train":  # InstanceNorm counts no batches
        assert [name for name, equal in unchanged.items() if equal] == ["instance.num_batches_tracked"]
        assert model.batch.num_batches_tracked - before["batch.num_batches_tracked"] == (1 if fails else 2)
    else:
        assert all(unchanged.values()), unchanged


def test_batch_stats_uses_the_statistics_of_the_batch():
    model, (x, _) = model_with_statistics(), batch()
    outputs = {}
    for bn in ("eval", "batch_stats", "train"):  # train last: it changes what eval gives
        with attack_mode(model, bn), torch.no_grad():
            outputs[bn] = model(x)
    assert outputs["batch_stats"].equal(outputs["train"])
    assert not outputs["batch_stats"].allclose(outputs["eval"])


def test_modes_nest():
    model = model_with_statistics()
    before = statistics(model)
    with attack_mode(model, "batch_stats"):
        with attack_mode(model, "batch_stats"):
            model(torch.rand(4, 1, 8, 8))
        model(torch.rand(4, 1, 8, 8))
    assert all(same(before, statistics(model)).values())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("bn", ["eval", "batch_stats", "train"])
def test_attack_runs_in_the_mode(bn):
    model, (x, y) = model_with_statistics(), batch()
    leaf = x.clone().requires_grad_()
    with attack_mode(model, bn):
        (g,) = torch.autograd.grad(cross_entropy(model(leaf), y).sum(), leaf)
    expected = (x + 0.1 * g.sign()).clamp(x - 0.1, x + 0.1).clamp(0, 1)
    torch.testing.assert_close(FGSM(0.1, bn=bn)(model_with_statistics(), x, y), expected, rtol=0, atol=1e-6)
