"""Norms from one walk over the graph: against one-example-at-a-time autograd in float64, and what must be refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pyengm.errors import ConfigError
from pyengm.models import build, names
from pyengm.optim import ENGM
from pyengm.pergrad import UnservedError, exact_norms, per_example_grad_norms, rules, walk, walk_norms

ROUNDING = 1e-12  # relative, float64: sums of up to 1e4 terms in another order


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch):
    monkeypatch.setattr(walk, "_known", type(walk._known)())


def one_at_a_time(losses, params):
    """The definition: the norm of each loss's gradient over all parameters."""
    params, result = list(params), []
    for loss in losses:
        grads = torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
        result.append(sum(g.square().sum() for g in grads if g is not None) ** 0.5)
    return torch.stack(result)


def setting(model, *shape, classes=10, dtype=torch.float64):
    torch.manual_seed(0)
    model = model.to(dtype)
    x = torch.rand(shape, dtype=dtype)
    y = torch.arange(shape[0]) % classes
    for p in model.parameters():  # initial zeros and ones would hide errors
        if p.dim() == 1:
            p.data += 0.1 * torch.randn_like(p)
    return model, x, y


def check(model, x, y):
    losses = F.cross_entropy(model(x), y, reduction="none")
    torch.testing.assert_close(
        walk_norms(losses, model.parameters()), one_at_a_time(losses, model.parameters()), rtol=ROUNDING, atol=0
    )


class Residual(nn.Module):
    """Two paths, one scaled; an activation in place; mean over positions."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm, self.head = nn.GroupNorm(2, 4), nn.Linear(4, 10)

    def forward(self, x):
        x = F.relu_(self.stem(x))
        return self.head((x + 0.5 * torch.tanh(self.norm(self.conv(x)))).mean((2, 3)))


class Sequences(nn.Module):
    """Linear and layer norm over (n, T, d), or over (T, n, d)."""

    def __init__(self, batch_first):
        super().__init__()
        self.batch_first = batch_first
        self.up, self.norm, self.down = nn.Linear(7, 12), nn.LayerNorm(12), nn.Linear(12, 5, bias=False)
        self.head = nn.Linear(5, 10)

    def forward(self, x):
        x = x if self.batch_first else x.transpose(0, 1).contiguous()
        x = self.down(F.gelu(self.norm(self.up(x))))
        return self.head(x.mean(1 if self.batch_first else 0))


class TestExact:
    @pytest.mark.parametrize("name", names())
    def test_models_with_group_norm(self, name):
        width = 1 if name.startswith("wrn") else 8
        check(*setting(build(name, norm="gn", width=width, image_size=16), 3, 3, 16, 16))

    def test_batch_norm_in_eval_mode(self):
        model, x, y = setting(build("cnn8", width=4, image_size=16), 5, 3, 16, 16)
        model(x)
        check(model.eval(), x, y)

    @pytest.mark.parametrize(
        "conv",
        [
            nn.Conv2d(4, 8, 3, stride=2, padding=2, dilation=2, groups=4),
            nn.Conv2d(4, 6, (3, 1), padding="same", padding_mode="circular"),
            nn.Conv2d(4, 4, 3, groups=4, bias=False),
            nn.Conv2d(4, 6, 4, padding="same"),
            nn.Conv2d(4, 5, 1, stride=3),
        ],
        ids=str,
    )
    def test_conv2d(self, conv):
        head = nn.Linear(9 * conv.out_channels, 10)
        model = nn.Sequential(conv, nn.Tanh(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), head)
        check(*setting(model, 5, 4, 9, 11))

    @pytest.mark.parametrize(
        "conv",
        [
            nn.Conv3d(4, 6, 2, stride=2, padding=1, groups=2),
            nn.ConvTranspose3d(4, 3, 2, bias=False),
            nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
            nn.ConvTranspose1d(4, 6, 3, dilation=2),
        ],
        ids=str,
    )
    def test_transposed_and_three_dimensional(self, conv):
        shape = (4, 4, 3, 3, 3)[: conv.weight.dim()]
        size = conv.float()(torch.rand(shape))[0].numel()
        check(*setting(nn.Sequential(conv, nn.Tanh(), nn.Flatten(), nn.Linear(size, 10)), *shape))

    def test_conv1d(self):
        conv = nn.Conv1d(4, 8, 3, stride=2, padding=1, groups=2)
        check(*setting(nn.Sequential(conv, nn.Tanh(), nn.Flatten(), nn.Linear(40, 10)), 5, 4, 9))

    def test_residual_and_in_place(self):
        check(*setting(Residual(), 6, 3, 5, 7))

    @pytest.mark.parametrize("batch_first", [True, False])
    @pytest.mark.parametrize("n", [1, 2, 5, 9])
    def test_sequences(self, n, batch_first):
        check(*setting(Sequences(batch_first), n, 4, 7))

    def test_channels_last(self):
        model, x, y = setting(Residual(), 6, 3, 5, 7)
        check(model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last), y)

    def test_blocks_of_examples(self, monkeypatch):
        monkeypatch.setattr(rules, "CHUNK_ELEMENTS", 500)
        check(*setting(Residual(), 7, 3, 5, 7))

    def test_frozen_and_chosen_parameters(self):
        model, x, y = setting(Residual(), 6, 3, 5, 7)
        model.conv.weight.requires_grad_(False)
        check_params = [model.stem.weight, model.conv.weight, model.norm.bias]
        losses = F.cross_entropy(model(x), y, reduction="none")
        expected = one_at_a_time(losses, [model.stem.weight, model.norm.bias])
        torch.testing.assert_close(walk_norms(losses, check_params), expected, rtol=ROUNDING, atol=0)

    def test_a_second_call_needs_no_verification(self, monkeypatch):
        model, x, y = setting(Residual(), 6, 3, 5, 7)
        check(model, x, y)
        monkeypatch.setattr(walk, "_verify", None)
        monkeypatch.setattr(walk, "_find_rows", None)
        check(model, x.flip(0), y)

    def test_nothing_is_left_behind(self):
        model, x, y = setting(Residual(), 6, 3, 5, 7)
        x.requires_grad_()
        losses = F.cross_entropy(model(x), y, reduction="none")
        first = walk_norms(losses, model.parameters())
        assert torch.equal(walk_norms(losses, model.parameters()), first)
        assert x.grad is None
        assert all(p.grad is None for p in model.parameters())
        losses.sum().backward()  # the graph is kept

    @pytest.mark.parametrize("inside", [True, False])
    def test_autocast(self, inside):
        model, x, y = setting(Residual(), 6, 3, 5, 7, dtype=torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = F.cross_entropy(model(x), y, reduction="none")
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
            norms = walk_norms(losses, model.parameters())
        assert norms.dtype == torch.float32
        torch.testing.assert_close(norms, one_at_a_time(losses, model.parameters()), rtol=3e-2, atol=0)


class Coupled(nn.Module):
    """Subtracts a tenth of the batch's mean between two layers."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(6, 8), nn.Linear(8, 10)

    def forward(self, x):
        x = self.first(x)
        return self.head(torch.tanh(x - 0.1 * x.mean(0)))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared, self.head = nn.Linear(6, 6), nn.Linear(6, 10)

    def forward(self, x):
        return self.head(torch.tanh(self.shared(torch.tanh(self.shared(x)))))


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)), nn.Linear(6, 10)

    def forward(self, x):
        return self.head(checkpoint(self.body, x, use_reentrant=False))


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.head = nn.Parameter(torch.ones(6)), nn.Linear(6, 10)

    def forward(self, x):
        return self.head(x * self.scale)


class Frames(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 3, 1), nn.Linear(3, 10)

    def forward(self, x):
        n = len(x)
        frames = self.conv(x.view(n * 2, 1, 3, 1))
        return self.head(frames.mean((2, 3)).view(n, 2, 3).mean(1))


UNSERVED = {
    "mixes examples": Coupled,
    "used more than once": Twice,
    "MulBackward0 with parameters in slots": Scaled,
    "has 10 pictures for 5 examples": Frames,
    "batch norm in training mode": lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 10)),
    "output gradient of AddmmBackward0 mixes": lambda: nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8, affine=False), nn.Linear(8, 10)
    ),
    "unpack|checkpoint": Checkpointed,
}


class TestRefused:
    @pytest.mark.parametrize("reason", UNSERVED)
    def test_falls_back_to_exact_norms(self, reason):
        model, x, y = setting(UNSERVED[reason](), 5, 6)
        for _ in range(2):  # the second time from what the first has learned
            losses = F.cross_entropy(model(x), y, reduction="none")
            with pytest.raises(UnservedError, match=reason):
                walk_norms(losses, model.parameters())
            norms = per_example_grad_norms(losses, model.parameters())
            torch.testing.assert_close(norms, one_at_a_time(losses, model.parameters()), rtol=ROUNDING, atol=0)

    def test_training_mode_after_eval_mode(self):
        """The two modes run nodes of the same names."""
        model, x, y = setting(build("cnn8", width=4, image_size=16), 5, 3, 16, 16)
        check(model.eval(), x, y)
        for mode, served in ((True, False), (False, True), (True, False)):
            losses = F.cross_entropy(model.train(mode)(x), y, reduction="none")
            if served:
                check(model, x, y)
            else:
                with pytest.raises(UnservedError):
                    walk_norms(losses, model.parameters())
            norms = per_example_grad_norms(losses, model.parameters())
            torch.testing.assert_close(norms, one_at_a_time(losses, model.parameters()), rtol=ROUNDING, atol=0)

    def test_another_model_with_the_same_nodes(self):
        class Minus(nn.Module):
            def __init__(self, axis):
                super().__init__()
                self.axis, self.first, self.head = axis, nn.Linear(6, 6), nn.Linear(6, 6)

            def forward(self, x):
                x = self.first(x)
                return self.head(torch.tanh(x - x.mean(self.axis, keepdim=True)))

        check(*setting(Minus(1), 6, 6, classes=6))
        model, x, y = setting(Minus(0), 6, 6, classes=6)
        with pytest.raises(UnservedError, match="mixes"):
            walk_norms(F.cross_entropy(model(x), y, reduction="none"), model.parameters())

    @pytest.mark.parametrize("make", [lambda: Sequences(False), Coupled])
    def test_zero_gradients_prove_nothing(self, make):
        """Behind a head of zeros all gradients are zero, and every layout and every coupling fits them."""
        shape = (5, 4, 7) if make is not Coupled else (5, 6)
        model, x, y = setting(make(), *shape)
        weight = model.head.weight.detach().clone()
        for new in (torch.zeros_like(weight), weight):
            model.head.weight.data.copy_(new)
            losses = F.cross_entropy(model(x), y, reduction="none")
            norms = per_example_grad_norms(losses, model.parameters())
            torch.testing.assert_close(norms, one_at_a_time(losses, model.parameters()), rtol=ROUNDING, atol=0)

    def test_one_live_example_proves_no_layout(self):
        model, x, y = setting(Sequences(False), 5, 4, 7)
        losses = F.cross_entropy(model(x), y, reduction="none")
        first = losses * torch.tensor([1.0, 0, 0, 0, 0]).double()
        for of in (first, losses):
            norms = per_example_grad_norms(of, model.parameters())
            torch.testing.assert_close(norms, one_at_a_time(of, model.parameters()), rtol=ROUNDING, atol=0)

    def test_a_wrong_rule_is_found_out(self, monkeypatch):
        rule, slots = rules.RULES["AddmmBackward0"]
        monkeypatch.setitem(rules.RULES, "AddmmBackward0", (lambda *arguments: 1.01 * rule(*arguments), slots))
        model, x, y = setting(nn.Linear(6, 10), 5, 6)
        with pytest.raises(RuntimeError, match=r"should be .*AddmmBackward0"):
            walk_norms(F.cross_entropy(model(x), y, reduction="none"), model.parameters())

    def test_a_broken_example_shows_in_its_norm_alone(self):
        model, x, y = setting(Residual(), 6, 3, 5, 7)
        x[2] = torch.inf
        losses = model(x).logsumexp(1).nan_to_num(1.0)
        norms = walk_norms(losses, model.parameters())
        assert norms.isfinite().tolist() == [True, True, False, True, True, True]
        check(model, torch.rand_like(x.nan_to_num(0)), y)

    def test_unknown_kind_of_norms(self):
        losses = torch.zeros(3, requires_grad=True) * 2
        with pytest.raises(ConfigError, match="norms is 'some'; known: auto, exact"):
            per_example_grad_norms(losses, [torch.zeros(1, requires_grad=True)], norms="some")

    def test_exact_on_request(self, monkeypatch):
        monkeypatch.setattr(walk, "find_consumers", None)
        model, x, y = setting(nn.Linear(6, 10), 5, 6)
        losses = F.cross_entropy(model(x), y, reduction="none")
        norms = per_example_grad_norms(losses, model.parameters(), norms="exact")
        assert torch.equal(norms, exact_norms(losses, model.parameters()))

    def test_memory_of_graphs_is_bounded(self):
        for n in range(1, walk.KNOWN_GRAPHS + 5):
            check(*setting(nn.Linear(2, 3), n, 2, classes=3))
        assert len(walk._known) == walk.KNOWN_GRAPHS


def test_engm_clips_by_these_norms():
    model, x, y = setting(Residual(), 6, 3, 5, 7)
    alpha = 0.5
    expected = [torch.zeros_like(p) for p in model.parameters()]
    for loss in F.cross_entropy(model(x), y, reduction="none"):
        grads = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        norm = sum(g.square().sum() for g in grads) ** 0.5
        for total, g in zip(expected, grads, strict=True):
            total += min(alpha / norm, 1) * g / len(x)
    opt = ENGM(model.parameters(), lr=0.1, alpha=alpha)
    used = opt.backward(F.cross_entropy(model(x), y, reduction="none"))
    assert (used.weights < 1).any()
    for p, total in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, total, rtol=1e-10, atol=1e-14)
