"""Batch norm as a scale and a shift during attacks: the same values, and the model restored."""

import copy

import pytest
import torch
from torch import nn

from pyengm.attacks import attack_mode
from pyengm.attacks.fused_batch_norm import affine_batch_norm


class Net(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3, **options)
        self.sequence, self.flat, self.head = nn.BatchNorm1d(3, affine=False), nn.BatchNorm1d(3), nn.Linear(3, 4)

    def forward(self, x):
        h = torch.relu_(self.norm(self.conv(x))) + 1
        h = self.sequence(h.flatten(2)).mean(2)
        return self.head(self.flat(h))


def trained(dtype=torch.float64, **options):
    torch.manual_seed(0)
    model = Net(**options).to(dtype)
    for norm in (model.norm, model.sequence, model.flat):
        for p in norm.parameters():
            nn.init.uniform_(p, 0.5, 2)
    model(torch.rand(6, 2, 5, 5, dtype=dtype) * 3)
    return model


def logits_and_gradient(model, x):
    leaf = x.clone().requires_grad_()
    logits = model(leaf)
    (g,) = torch.autograd.grad(logits.square().sum(), leaf)
    return logits.detach(), g


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"eps": 0.1}])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_same_values(options, memory_format):
    model, x = trained(**options).eval(), torch.rand(4, 2, 5, 5, dtype=torch.float64).to(memory_format=memory_format)
    expected = logits_and_gradient(copy.deepcopy(model), x)
    with attack_mode(model, "eval"):
        assert "forward" in vars(model.norm)
        found = logits_and_gradient(model, x)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("mode", ["train", "batch_stats"])
def test_other_modes_use_torchs_own(mode):
    model = trained()
    with attack_mode(model, mode):
        assert not any("forward" in vars(module) for module in model.modules())


def test_the_model_is_restored_after_an_error_and_a_nested_attack():
    model = trained()
    before = {name: set(vars(module)) for name, module in model.named_modules()}

    def attack():
        with attack_mode(model, "eval"):
            with attack_mode(model, "eval"):
                pass
            assert "forward" in vars(model.norm)
            1 / 0  # noqa: B018

    with pytest.raises(ZeroDivisionError):
        attack()
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before


def test_statistics_of_the_time_of_the_attack_count():
    model = trained().eval()
    x = torch.rand(4, 2, 5, 5, dtype=torch.float64)
    for _ in range(2):
        model.norm.running_mean += 1
        expected = model(x)
        with attack_mode(model, "eval"):
            torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=0)


def test_a_layer_in_training_mode_within_the_attack_uses_the_batch():
    model, x = trained().eval(), torch.rand(4, 2, 5, 5, dtype=torch.float64)
    with attack_mode(model, "eval"), attack_mode(model, "batch_stats"):
        found = model(x)
    with attack_mode(model, "batch_stats"):
        torch.testing.assert_close(found, model(x), rtol=1e-12, atol=0)


def test_autocast_is_left_to_torch():
    model, x = trained(torch.float32).eval(), torch.rand(4, 2, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(x)
        with attack_mode(model, "eval"):
            found = model(x)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected)


def test_compiled_models_and_changed_layers_are_unchanged():
    model = trained().eval()
    compiled = torch.compile(model, backend="eager")
    with affine_batch_norm(compiled):
        assert "forward" not in vars(model.norm)

    class Own(nn.BatchNorm2d):
        def forward(self, x):
            return x

    own = nn.Sequential(Own(3)).eval()
    with affine_batch_norm(own):
        assert own(torch.ones(1, 3, 2, 2)).equal(torch.ones(1, 3, 2, 2))


def test_hooks_still_run():
    model, calls = trained().eval(), []
    model.norm.register_forward_hook(lambda *_: calls.append(1))
    with attack_mode(model, "eval"):
        model(torch.rand(1, 2, 5, 5, dtype=torch.float64))
    assert calls == [1]
