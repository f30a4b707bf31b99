"""Norms from one walk over the graph: against one-example-at-a-time autograd in float64, and what must be refused."""

import contextlib
import copy
import itertools
import pickle
import re

import pytest
import torch
import torch._functorch.config as functorch_config
from helpers.toy_models import (
    TOY_MODELS,
    ToyModel,
    cross_entropy,
    fresh,
    images,
    norms_of,
    rows,
    sequences,
    token_ids,
    trades,
    weight,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils import checkpoint

from pyengm import per_example_grad_norms
from pyengm.errors import ConfigError, NonFiniteError, UnsupportedOperationError
from pyengm.models import build
from pyengm.pergrad import clipped_backward, conv_grad, engine, exact_norms, hooks, per_example_grad, weight_usage
from pyengm.pergrad.rules import WEIGHT_RULES

ROUNDING = 1e-10  # relative, float64


def check(losses, params, rtol=ROUNDING):
    params = list(params)
    expected = norms_of(losses, params)
    torch.testing.assert_close(per_example_grad_norms(losses, params).double(), expected, rtol=rtol, atol=0)


def heads(function, **parts):
    return ToyModel(function, a=nn.Linear(6, 6), h=nn.Linear(6, 3), **parts).double()


class TestExact:
    @pytest.mark.parametrize("name", TOY_MODELS)
    def test_small_nets(self, name):
        model, loss, x = fresh(name)
        check(loss(model, x), model.parameters())
        other = torch.randint_like(x, 7) if x.dtype == torch.int64 else x + 0.3 * torch.randn_like(x)
        check(loss(model, other), model.parameters())  # from what the first call has learned

    @pytest.mark.parametrize("name", TOY_MODELS)
    def test_chunks_change_nothing(self, name, monkeypatch):
        for module in (per_example_grad, conv_grad):
            monkeypatch.setattr(module, "CHUNK_ELEMENTS", 60)
        model, loss, x = fresh(name)
        check(loss(model, x), model.parameters())

    @pytest.mark.parametrize("name", ["residual, in place", "class token", "encoder layer", "gru", "trades"])
    def test_float32(self, name):
        model, loss, x = fresh(name)
        check(loss(model.float(), x.float()), model.parameters(), rtol=2e-4)

    @pytest.mark.parametrize("inside", [True, False])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("name", ["residual, in place", "class token", "trades", "bilinear", "weight norm"])
    def test_autocast(self, name, dtype, inside):
        model, loss, x = fresh(name)
        model, x = model.float(), x.float()
        with torch.autocast("cpu", dtype=dtype):
            losses = loss(model, x)
        with torch.autocast("cpu", dtype=dtype, enabled=inside):
            norms = per_example_grad_norms(losses, model.parameters())
        assert norms.dtype == torch.float32
        torch.testing.assert_close(norms.double(), norms_of(losses, model.parameters()), rtol=3e-2, atol=0)

    def test_weights_of_16_bits(self):
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3)).bfloat16()
        losses = cross_entropy(model, rows().bfloat16())
        norms = per_example_grad_norms(losses, model.parameters())
        assert norms.dtype == torch.float32
        torch.testing.assert_close(norms.double(), norms_of(losses, model.parameters()), rtol=3e-2, atol=0)

    def test_chosen_repeated_and_unused_parameters(self):
        model, loss, x = fresh("residual, in place")
        spare = weight(3)
        chosen = [model.norm.bias, spare, model.stem.weight, model.norm.bias]
        check(loss(model, x), chosen)
        check(loss(model, x), iter(chosen))

    def test_losses_that_depend_on_no_parameter(self):
        model, loss, x = fresh("residual, in place")
        for norms in ("auto", "exact"):
            with pytest.raises(ValueError, match="depend on none of the parameters"):
                per_example_grad_norms(loss(model, x), [weight(3)], norms=norms)

    def test_parameters_that_are_frozen_later(self):
        model, loss, x = fresh("residual, in place")
        for frozen in (None, model.conv.weight, model.stem.bias):
            if frozen is not None:
                frozen.requires_grad_(False)
            check(loss(model, x), model.parameters())

    def test_input_that_requires_grad(self):
        model, loss, x = fresh("class token")
        losses = loss(model, x.requires_grad_())
        check(losses, model.parameters())
        assert x.grad is None

    def test_losses_that_are_parameters(self):
        w = weight(4)
        assert per_example_grad_norms(w, [w]).eq(1).all()

    def test_sparse_embedding(self):
        model = ToyModel(
            lambda m, x: m.h(m.a(x).mean(1)), a=nn.Embedding(7, 6, sparse=True), h=nn.Linear(6, 3)
        ).double()
        check(cross_entropy(model, token_ids()), model.parameters())

    @pytest.mark.parametrize(
        "mask",
        [
            [[[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]], [[1, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]],
            [[[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]], [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]]],
        ],
        ids=["ragged at first", "even at first"],
    )
    def test_rows_whose_owners_depend_on_the_data(self, mask):
        """Two batches of equal shapes may pack their examples in different ways."""
        model, x = heads(lambda m, x: m.h(torch.tanh(m.a(x)))), sequences(3)
        for some in torch.tensor([*mask, mask[0]]).bool():
            losses = F.cross_entropy(model(x[some]), torch.arange(6) % 3, reduction="none")
            owner = some.nonzero()[:, 0]
            check(losses.new_zeros(3).index_add(0, owner, losses), model.parameters())

    def test_examples_in_an_order_that_changes(self):
        model, x = heads(lambda m, x: m.h(torch.tanh(m.a(x)))), rows(4)
        for order in ([0, 1, 2, 3], [1, 0, 3, 2], [3, 1, 0, 2]):
            place = torch.tensor(order)
            logits = model(x[place])[place.argsort()]
            check(F.cross_entropy(logits, place % 3, reduction="none"), model.parameters())

    @pytest.mark.parametrize(
        "pick",
        [
            lambda p, y: p.gather(1, y[:, None])[:, 0],
            lambda p, y: p[torch.arange(5), y],
            lambda p, y: p.scatter(1, y[:, None], 0).amax(1),
            lambda p, y: p.clone().index_put((torch.arange(5), y), p.new_zeros(5)).square().sum(1),
            lambda p, y: p.new_zeros(5, 3).scatter_add(1, y[:, None].expand(-1, 3), p).square().sum(1),
            lambda p, y: p.topk(2, 1).values[:, -1],
        ],
        ids=["gather", "index", "scatter", "index_put", "scatter_add", "topk"],
    )
    def test_labels_need_no_new_plan(self, pick, monkeypatch):
        """Indices that stay within an example change from batch to batch, and nothing else does."""
        model, x, plans, find = heads(lambda m, x: m.h(torch.tanh(m.a(x)))), rows(), [], weight_usage.find_usage
        monkeypatch.setattr(weight_usage, "find_usage", lambda *of: plans.append(of) or find(*of))
        for y in ([0, 1, 2, 0, 1], [2, 2, 1, 0, 0], [1, 0, 2, 2, 2]):
            check(pick(model(x).softmax(1), torch.tensor(y)), model.parameters())
        assert len(plans) == 1

    def test_a_row_without_a_sign(self):
        """A gradient at a right angle to the direction that rows are projected on."""
        model, direction = nn.Linear(6, 2).double(), torch.tensor([1.0, 2.0]).double().mul(12.9898).sin()
        c = torch.randn(4, 2).double()
        c[1] = torch.stack([direction[1], -direction[0]])
        per_row = (model(rows(4)) * c).sum(1)
        check(per_row.new_zeros(3).index_add(0, torch.tensor([0, 0, 1, 2]), per_row), model.parameters())

    def test_a_second_call_needs_no_verification(self, monkeypatch):
        model, loss, x = fresh("trades")
        check(loss(model, x), model.parameters())
        monkeypatch.setattr(engine, "verify", None)
        monkeypatch.setattr(weight_usage, "find_usage", None)
        check(loss(model, x.flip(0)), model.parameters())

    def test_other_shapes_need_no_verification(self, monkeypatch):
        model = nn.Sequential(nn.Embedding(7, 4), nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True)).double()
        check(model(torch.randint(0, 7, (3, 5))).mean((1, 2)), model.parameters())
        monkeypatch.setattr(engine, "verify", None)
        for n, length in [(3, 6), (4, 4), (2, 4)]:
            check(model(torch.randint(0, 7, (n, length))).mean((1, 2)), model.parameters())

    def test_another_model_of_the_same_nodes_is_verified(self, monkeypatch):
        def minus(axis):
            return heads(lambda m, x: m.h(torch.tanh(m.a(x) - m.a(x).mean(axis, keepdim=True))))

        model, x = minus(1), rows(6)
        check(cross_entropy(model, x), model.parameters())
        model = minus(0)
        check(cross_entropy(model, x), model.parameters())

    def test_memory_of_graphs_is_bounded(self):
        model = nn.Linear(2, 3).double()
        for n in range(2, weight_usage.MAX_REMEMBERED + 7):
            check(cross_entropy(model, rows(n, 2)), model.parameters())
        assert len(weight_usage._remembered) == weight_usage.MAX_REMEMBERED


def timm_model(name, **options):
    return pytest.importorskip("timm").create_model(name, num_classes=5, **options)


def torchvision_model(name, **options):
    return pytest.importorskip("torchvision").models.get_model(name, num_classes=5, **options)


MODELS = {
    "resnet18": (lambda: build("resnet18", norm_layer="gn", width=8, image_size=32, num_classes=5), 32),
    "wrn_28_10": (lambda: build("wrn_28_10", norm_layer="gn", width=1, image_size=16, num_classes=5), 16),
    "vit_tiny": (lambda: timm_model("vit_tiny_patch16_224", img_size=32), 32),
    "deit3_small": (lambda: timm_model("deit3_small_patch16_224", img_size=32), 32),
    "convnext_atto": (lambda: timm_model("convnext_atto"), 32),
    "swin_tiny": (lambda: timm_model("swin_tiny_patch4_window7_224", img_size=64, window_size=2), 64),
    "nf_resnet26": (lambda: timm_model("nf_resnet26"), 32),
    "densenet121": (lambda: torchvision_model("densenet121"), 32),
    "mobilenet_v3_small": (lambda: torchvision_model("mobilenet_v3_small"), 32),
    "shufflenet_v2_x0_5": (lambda: torchvision_model("shufflenet_v2_x0_5"), 32),
    "googlenet": (lambda: torchvision_model("googlenet", init_weights=False, aux_logits=False), 32),
}


@pytest.mark.parametrize("name", MODELS)
def test_models(name):
    make, size = MODELS[name]
    torch.manual_seed(0)
    model = make().double().eval()
    for p in model.parameters():
        if p.dim() < 2:
            p.data += 0.1 * torch.randn_like(p)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    check(cross_entropy(model, images(3, 3, size, size)), model.parameters())


def image_layer(kind, c, o):
    """A layer from c to o channels that keeps the size of images."""
    groups = 2 if c % 2 == 0 and o % 2 == 0 else 1
    return {
        "conv": lambda: nn.Conv2d(c, o, 3, padding=1, groups=groups),
        "dilated": lambda: nn.Conv2d(c, o, 3, padding="same", dilation=2, bias=False),
        "pointwise": lambda: nn.Conv2d(c, o, 1),
        "transposed": lambda: nn.ConvTranspose2d(c, o, 3, padding=1),
        "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(c, o, 3, padding=1)),
        "linear": lambda: ToyModel(lambda m, x: m.a(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), a=nn.Linear(c, o)),
    }[kind]()


def row_layer(kind, d):
    """A layer that keeps the shape of sequences (n, T, d)."""
    return {
        "linear": lambda: nn.Linear(d, d),
        "sequence first": lambda: ToyModel(lambda m, x: m.a(x.transpose(0, 1)).transpose(0, 1), a=nn.Linear(d, d)),
        "layer norm": lambda: nn.LayerNorm(d),
        "rms norm": lambda: nn.RMSNorm(d),
        "attention": lambda: nn.TransformerEncoderLayer(d, 2, d, dropout=0, batch_first=True),
        "gru": lambda: ToyModel(lambda m, x: m.a(x)[0], a=nn.GRU(d, d, batch_first=True)),
        "scale": lambda: ToyModel(lambda m, x: x * m.w, w=weight(d)),
        "position": lambda: ToyModel(lambda m, x: x + m.w, w=weight(1, 4, d)),
        "conv": lambda: ToyModel(lambda m, x: m.a(x.mT).mT, a=nn.Conv1d(d, d, 3, padding=1)),
        "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(d, d)),
    }[kind]()


IMAGE_LAYERS = ["conv", "dilated", "pointwise", "transposed", "weight norm", "linear"]
NORMS = {
    "none": lambda c: nn.Identity(),
    "group norm": lambda c: nn.GroupNorm(1, c),
    "instance norm": lambda c: nn.InstanceNorm2d(c, affine=True),
    "batch norm": lambda c: nn.BatchNorm2d(c).eval(),
    "prelu": lambda c: nn.PReLU(c),
}
ROW_LAYERS = [
    "linear", "sequence first", "layer norm", "rms norm", "attention", "gru", "scale", "position", "conv",
    "spectral norm",
]  # fmt: skip


class Drawn(nn.Module):
    """Layers in a row, each with or without a residual connection, used once or twice."""

    def __init__(self, layers, residual, twice, of_images):
        super().__init__()
        self.layers, self.residual, self.twice, self.of_images = nn.ModuleList(layers), residual, twice, of_images
        self.h = nn.LazyLinear(3)

    def forward(self, x):
        for layer, residual, twice in zip(self.layers, self.residual, self.twice, strict=True):
            y = torch.tanh(layer(x))
            if twice and y.shape == x.shape:
                y = layer(y)
            x = x + y if residual and y.shape == x.shape else y
        return self.h(x.mean((2, 3)) if self.of_images else x.mean(1))


@st.composite
def drawn_nets(draw):
    of_images = draw(st.booleans())
    size = draw(st.integers(1, 4))
    layers = []
    if of_images:
        channels = [3, *draw(st.lists(st.integers(2, 6), min_size=size, max_size=size))]
        for c, o in itertools.pairwise(channels):
            norm = draw(st.sampled_from(sorted(NORMS)))
            layers.append(nn.Sequential(image_layer(draw(st.sampled_from(IMAGE_LAYERS)), c, o), NORMS[norm](o)))
    else:
        layers = [row_layer(draw(st.sampled_from(ROW_LAYERS)), 6) for _ in range(size)]
    switches = st.lists(st.booleans(), min_size=size, max_size=size)
    return layers, draw(switches), draw(switches), of_images, draw(st.integers(2, 6)), draw(st.booleans())


@settings(max_examples=40, derandomize=True, deadline=None, database=None)
@given(drawn_nets())
def test_random_nets(drawn):
    layers, residual, twice, of_images, n, two_passes = drawn
    torch.manual_seed(0)
    model, x = Drawn(layers, residual, twice, of_images).double(), images(n, 3, 5, 4) if of_images else sequences(n)
    model(x)
    check((trades if two_passes else cross_entropy)(model, x), model.parameters())


# Layers between which examples are mixed.
DEPENDENT = {
    "mean": heads(lambda m, x: (lambda z: m.h(torch.tanh(z - 0.1 * z.mean(0))))(m.a(x))),
    "gate": heads(lambda m, x: (lambda z: m.h(z * z.mean().sigmoid()))(m.a(x))),
    "neighbour": heads(lambda m, x: (lambda z: m.h(torch.tanh(z + 0.1 * z.roll(1, 0))))(m.a(x))),
    "attention over the batch": heads(lambda m, x: (lambda z: m.h((z @ z.T).softmax(1) @ z))(m.a(x))),
    "statistics of the batch": heads(lambda m, x: (lambda z: m.h((z - z.mean(0)) / z.var(0).add(1e-5).sqrt()))(m.a(x))),
}


class Product(torch.autograd.Function):
    """A function in Python that holds a parameter."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g * w, (g * x).sum(0)


# Nodes that have no rule of their own for the weight in them.
CALLED = {
    "weight in the first factor of addmm": heads(
        lambda m, x: m.h(torch.addmm(m.w[:, None], m.v, m.a(x).T).T), w=weight(6), v=weight(6, 6)
    ),
    "batched matmul with an addend": heads(
        lambda m, x: m.h(torch.baddbmm(m.a(x) * 0, m.a(x).expand(2, -1, -1), m.w).sum(0)), w=weight(2, 6, 6)
    ),
    "shared by a softmax over the batch": heads(lambda m, x: m.h(m.a(x).softmax(0))),
}


@pytest.mark.parametrize("name", CALLED)
def test_nodes_without_a_rule(name):
    for _ in range(2):
        check(cross_entropy(CALLED[name], rows()), CALLED[name].parameters())


class TestRefused:
    def refused(self, losses, params, match):
        """Twice: the second time from what the first has learned. On request there are exact norms."""
        params = list(params)
        for _ in range(2):
            with pytest.raises(UnsupportedOperationError, match=match) as refusal:
                per_example_grad_norms(losses, params)
            assert 'norms="exact"' in str(refusal.value)
        norms = per_example_grad_norms(losses, params, norms="exact")
        torch.testing.assert_close(norms, norms_of(losses, params), rtol=ROUNDING, atol=0)

    @pytest.mark.parametrize("name", DEPENDENT)
    def test_examples_that_are_not_independent(self, name):
        model, x = DEPENDENT[name], rows()
        self.refused(cross_entropy(model, x), model.parameters(), "examples are not independent")

    def test_python_function(self):
        model = heads(lambda m, x: m.h(Product.apply(m.a(x), m.w)), w=weight(6))
        self.refused(cross_entropy(model, rows()), model.parameters(), "ProductBackward.*shape .6,")

    @pytest.mark.parametrize("name", DEPENDENT)
    def test_nothing_is_clipped(self, name):
        model, x = DEPENDENT[name], rows()
        with pytest.raises(UnsupportedOperationError):
            clipped_backward(cross_entropy(model, x), model.parameters(), 1.0)
        assert all(p.grad is None for p in model.parameters())

    def test_the_message_names_the_parameter(self):
        model = heads(lambda m, x: (lambda z: m.h(torch.tanh(z - 0.1 * z.mean(0))))(m.a(x)))
        self.refused(cross_entropy(model, rows()), model.parameters(), r"\w+Backward0.*parameter 0 of shape \(6, 6\)")

    def test_fused_lstm(self):
        """The CPU runs an LSTM of float32 as one node for all time steps, which has the sequence in its first axis."""
        model = ToyModel(lambda m, x: m.h(m.a(x)[0].mean(1)), a=nn.LSTM(6, 4, batch_first=True), h=nn.Linear(4, 3))
        losses = cross_entropy(model, sequences().float())
        expected = norms_of(losses, model.parameters())
        try:
            norms = per_example_grad_norms(losses, model.parameters())
        except UnsupportedOperationError:  # where torch was built with it
            norms = per_example_grad_norms(losses, model.parameters(), norms="exact")
        torch.testing.assert_close(norms.double(), expected, rtol=1e-5, atol=0)

    def test_embedding_scaled_by_frequency(self):
        table = nn.Embedding(7, 6, scale_grad_by_freq=True)
        model = ToyModel(lambda m, x: m.h(m.a(x).mean(1)), a=table, h=nn.Linear(6, 3)).double()
        self.refused(cross_entropy(model, token_ids()), model.parameters(), "scale_grad_by_freq")

    @functorch_config.patch(donated_buffer=False)  # exact norms pass through the compiled graph more than once
    def test_compiled_model(self):
        model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        compiled = torch.compile(model, backend="aot_eager")
        self.refused(cross_entropy(compiled, rows()), model.parameters(), "compile only the attack")

    def test_reentrant_checkpointing(self):
        model = heads(lambda m, x: m.h(checkpoint.checkpoint(m.a, x, use_reentrant=True)))
        losses = cross_entropy(model, rows().requires_grad_())
        with pytest.raises(UnsupportedOperationError, match="use_reentrant=False"):
            per_example_grad_norms(losses, model.parameters())

    def test_losses_of_a_wrong_form(self):
        model, x = heads(lambda m, x: m.h(m.a(x))), rows()
        losses = cross_entropy(model, x)
        for wrong, shape in ((losses.mean(), "()"), (model(x), "(5, 3)"), (losses[:, None], "(5, 1)")):
            with pytest.raises(ValueError, match=re.escape(f"(n,), got {shape}")):
                per_example_grad_norms(wrong, model.parameters())
        with pytest.raises(NonFiniteError, match="position 2 "):
            per_example_grad_norms(losses / torch.tensor([1, 1, 0, 1, 1]), model.parameters())
        with pytest.raises(ValueError, match="requires grad"):
            per_example_grad_norms(losses, [x])

    def test_unknown_kind_of_norms(self):
        with pytest.raises(ConfigError, match="norms is 'some'; known: auto, exact"):
            per_example_grad_norms(weight(3) * 2, [weight(1)], norms="some")

    @pytest.mark.parametrize("node", ["AddmmBackward0", "ConvolutionBackward0", "NativeGroupNormBackward0"])
    def test_a_wrong_rule_is_found_out(self, node, monkeypatch):
        rule = WEIGHT_RULES[node]
        plain = rule.gradients

        def wrong(node, slots, g, rows):
            return plain(node, slots, 1.01 * g, rows)

        monkeypatch.setattr(rule, "gradients", wrong)
        model, loss, x = fresh("residual, in place")
        shape = {"AddmmBackward0": (3, 4), "ConvolutionBackward0": (4, 3, 3, 3), "NativeGroupNormBackward0": (4,)}[node]
        with pytest.raises(UnsupportedOperationError, match=f"should be .*{re.escape(str(shape))}.* by {node}"):
            per_example_grad_norms(loss(model, x), model.parameters())


HEADS = [
    "sequence n=2", "sequence n=5", "sequence first n=2", "sequence first n=5", "embedding", "layer norm",
    "encoder layer", "self attention sequence first", "gru", "class token", "standardised weight", "frames", "windows",
    "repeated queries", "ragged", "trades", "trades with tied weights", "residual, in place",
    "mixed by the mean of another layer",
]  # fmt: skip


class TestZeros:
    """Zero gradients fit every layout and hide every coupling."""

    @pytest.mark.parametrize("name", HEADS)
    def test_head_of_zeros(self, name):
        model, loss, x = fresh(name)
        kept = copy.deepcopy(model.h.state_dict())
        for p in model.h.parameters():
            p.data.zero_()
        check(loss(model, x), model.parameters())
        model.h.load_state_dict(kept)
        check(loss(model, x), model.parameters())
        check(loss(model, x.flip(0)), model.parameters())

    @pytest.mark.parametrize("name", ["class token", "sequence first n=5", "residual, in place", "trades"])
    def test_one_live_example(self, name):
        model, loss, x = fresh(name)
        losses = loss(model, x)
        for live in (0, 3):
            one = losses * torch.eye(5).double()[live]
            check(one, model.parameters())
        check(losses, model.parameters())

    def test_scale_of_zeros(self):
        model, loss, x = fresh("class token")
        kept = model.scale.data.clone()
        for scale in (torch.zeros_like(kept), kept, torch.zeros_like(kept), kept):
            model.scale.data.copy_(scale)
            check(loss(model, x), model.parameters())

    def test_last_norm_of_a_branch_at_zero(self):
        def forward(m, x):
            x = m.stem(x)
            for conv_, norm in ((m.a, m.norm_a), (m.b, m.norm_b)):
                x = x + norm(conv_(torch.relu(x)))
            return m.h(x.mean((2, 3)))

        parts = {name: nn.Conv2d(4, 4, 3, padding=1) for name in "ab"}
        parts.update({f"norm_{name}": nn.GroupNorm(2, 4) for name in "ab"})
        model = ToyModel(forward, stem=nn.Conv2d(3, 4, 3), h=nn.Linear(4, 3), **parts).double()
        x = images()
        for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
            nn.init.constant_(model.norm_a.weight, a)
            nn.init.constant_(model.norm_b.weight, b)
            check(cross_entropy(model, x), model.parameters())

    def test_coupling_that_comes_later(self):
        """A term over the batch whose coefficient starts at zero."""
        model, x = heads(lambda m, x: torch.tanh(m.a(x))), rows()
        for share in (0.0, 0.5):
            features = model(x)
            apart = (features - features.mean(0)).square().sum(1)
            losses = F.cross_entropy(model.h(features), torch.arange(5) % 3, reduction="none") + share * apart
            try:
                norms = per_example_grad_norms(losses, model.parameters())
            except UnsupportedOperationError:
                continue  # right as well
            torch.testing.assert_close(norms, norms_of(losses, model.parameters()), rtol=ROUNDING, atol=0)

    def test_layout_of_dead_rows_is_not_guessed_for_good(self):
        """Only one row of the sequence-first layer lives at first; as many rows of the other go batch first."""

        def forward(m, x):
            late = m.b(x.transpose(0, 1)) + m.offset.reshape(3, 3, 1)
            return m.h(m.a(x).sum(1) + F.relu(late).sum(0))

        model = heads(forward, b=nn.Linear(6, 6))
        x = sequences(3, 3)
        for rest in (-99.0, 0.0):
            model.offset = torch.full((9,), rest).double()
            model.offset[0] = 9
            check(cross_entropy(model, x), model.parameters())

    def test_uneven_rows_that_look_even_at_first(self):
        """Rows 0 to 3 are the first example's; while 1 to 3 are dead, rows 0 and 4 fit examples of equal length."""
        model, x, owner = nn.Linear(6, 2).double(), rows(6), torch.tensor([0, 0, 0, 0, 1, 1])
        for live in ([1, 0, 0, 0, 1, 0], [1, 1, 1, 1, 1, 1]):
            per_row = (model(x) * torch.tensor(live)[:, None]).square().sum(1)
            check(per_row.new_zeros(2).index_add(0, owner, per_row), model.parameters())

    def test_only_class_tokens_reach_the_head(self):
        def forward(m, x):
            x = torch.cat([m.token.expand(len(x), -1, -1), x], 1)
            return m.h(m.norm(x + m.a(x).mean(1, keepdim=True))[:, 0])

        model = heads(forward, token=weight(1, 1, 6), norm=nn.LayerNorm(6))
        for t in (4, 5, 6):  # n = 5: the first rows of 5 sequences of 6 fit two layouts
            for _ in range(2):
                check(cross_entropy(model, sequences(5, t)), model.parameters())

    def test_a_clipped_gradient_behind_zeros(self):
        model, loss, x = fresh("class token")
        kept = copy.deepcopy(model.h.state_dict())
        nn.init.zeros_(model.h.weight)
        for _ in range(2):
            losses = loss(model, x)
            norms = norms_of(losses, model.parameters())
            alpha = norms.median().item()
            expected = torch.autograd.grad(
                (losses * (alpha / norms).clamp(max=1)).mean(), list(model.parameters()), materialize_grads=True
            )
            model.zero_grad()
            clipped_backward(loss(model, x), model.parameters(), alpha)
            for p, g in zip(model.parameters(), expected, strict=True):
                torch.testing.assert_close(torch.zeros_like(p) if p.grad is None else p.grad, g, rtol=1e-9, atol=1e-12)
            model.h.load_state_dict(kept)


class TestNonFiniteExamples:
    """Losses are finite, some of their derivatives are not: that shows in the norms of these examples alone."""

    @pytest.mark.parametrize("n", [2, 5])
    @pytest.mark.parametrize(
        "model",
        [
            heads(lambda m, x: m.h(torch.tanh(m.a(x)))),
            heads(lambda m, x: m.h(m.a(x) * m.w), w=weight(6)),
            nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, 3)).double(),
        ],
        ids=["plain", "scaled", "weight norm"],
    )
    def test_one_of_them(self, model, n):
        x = rows(n)
        if hasattr(model[0] if isinstance(model, nn.Sequential) else model, "parametrizations"):
            # Which nodes belong to the weight shows in finite gradients alone: here the first batch is a sound one.
            per_example_grad_norms(model(x).logsumexp(1).nan_to_num(1.0, 1.0, 1.0), model.parameters())
        for broken in (x.clone().index_fill_(0, torch.tensor([1]), torch.inf), x):
            losses = model(broken).logsumexp(1).nan_to_num(1.0, 1.0, 1.0)
            norms = per_example_grad_norms(losses, model.parameters())
            sound = broken.isfinite().all(1)
            assert norms.isfinite().equal(sound)
            alone = model(x[sound]).logsumexp(1)  # in one graph with the broken one all derivatives are nan
            torch.testing.assert_close(norms[sound], norms_of(alone, model.parameters()), rtol=ROUNDING, atol=0)

    def test_all_of_them(self):
        """The derivative of a root is infinite at 0."""
        model, x = (
            heads(lambda m, x: m.h(m.a(x) * m.w + (m.a(x) * 0).square().sum(1, keepdim=True).sqrt()), w=weight(6)),
            rows(),
        )
        assert not per_example_grad_norms(cross_entropy(model, x), model.parameters()).isfinite().any()


class TestNoSideEffects:
    def test_graph_gradients_and_model(self):
        model, loss, x = fresh("encoder layer")
        mark = model.h.bias.grad = torch.ones_like(model.h.bias)
        state, pickled = copy.deepcopy(model.state_dict()), pickle.dumps(model.a)
        losses = loss(model, x)
        first = per_example_grad_norms(losses, model.parameters())
        assert per_example_grad_norms(losses, model.parameters()).equal(first)
        assert model.h.bias.grad is mark
        assert all(p.grad is None for p in model.a.parameters())
        assert all(a.equal(b) for a, b in zip(model.state_dict().values(), state.values(), strict=True))
        assert pickle.dumps(model.a) == pickled
        assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
        losses.sum().backward()  # the graph is kept

    @pytest.mark.parametrize("known", [True, False])
    @pytest.mark.parametrize("node", ["AddmmBackward0", "ConvolutionBackward0", "NativeGroupNormBackward0"])
    def test_after_an_exception(self, known, node, monkeypatch):
        model, loss, x = fresh("residual, in place")
        losses = loss(model, x)
        if known:
            per_example_grad_norms(losses, model.parameters())
        calls = []

        def broken(*arguments):
            calls.append(arguments)
            raise OSError("the disk is gone")

        rule = WEIGHT_RULES[node]
        with monkeypatch.context() as patch:
            patch.setattr(rule, "gradients", broken)
            with pytest.raises(OSError, match="the disk is gone"):
                per_example_grad_norms(losses, model.parameters())
            assert len(calls) == 1
            losses.sum().backward(retain_graph=True)
            assert len(calls) == 1  # no hook is left on the graph
        model.zero_grad()
        check(losses, model.parameters())
        assert all(p.grad is None for p in model.parameters())


def checkpointed(early_stop=True, preserve=True):
    def forward(m, x):
        with checkpoint.set_checkpoint_early_stop(early_stop):
            for body in (m.b, m.c):
                x = x + checkpoint.checkpoint(body, x, use_reentrant=False, preserve_rng_state=preserve)
            return m.h(x)

    bodies = [nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 6)) for _ in range(2)]
    return ToyModel(forward, b=bodies[0], c=bodies[1], h=nn.Linear(6, 3)).double()


class TestCheckpointing:
    @pytest.mark.parametrize("early_stop", [True, False])
    def test_recomputed_parts(self, early_stop):
        if not hasattr(checkpoint, "GraphExecGroup"):
            pytest.skip("this torch has no GraphExecGroup")
        model, x = checkpointed(early_stop), rows()
        losses = cross_entropy(model, x)
        for _ in range(2):
            norms = per_example_grad_norms(losses, model.parameters())
            torch.testing.assert_close(norms, norms_of(losses, model.parameters()), rtol=ROUNDING, atol=0)

    def test_torch_that_recomputes_for_one_reader_alone(self, monkeypatch):
        monkeypatch.setattr(hooks, "GraphExecGroup", contextlib.nullcontext)
        model, x = checkpointed(), rows()
        for _ in range(2):
            with pytest.raises(UnsupportedOperationError, match=r'checkpoint.*norms="exact"'):
                per_example_grad_norms(cross_entropy(model, x), model.parameters())
        losses = cross_entropy(model, x)
        norms = per_example_grad_norms(losses, model.parameters(), norms="exact")
        torch.testing.assert_close(norms, norms_of(losses, model.parameters()), rtol=ROUNDING, atol=0)

    def test_clipped(self):
        if not hasattr(checkpoint, "GraphExecGroup"):
            pytest.skip("this torch has no GraphExecGroup")
        model, x = checkpointed(), rows()
        losses = cross_entropy(model, x)
        norms = norms_of(losses, model.parameters())
        alpha = norms.median().item()
        expected = torch.autograd.grad((losses * (alpha / norms).clamp(max=1)).mean(), list(model.parameters()))
        for _ in range(2):
            model.zero_grad()
            used = clipped_backward(cross_entropy(model, x), model.parameters(), alpha)
            torch.testing.assert_close(used.norms, norms, rtol=ROUNDING, atol=0)
            for p, g in zip(model.parameters(), expected, strict=True):
                torch.testing.assert_close(p.grad, g, rtol=1e-9, atol=1e-12)


def test_exact_on_request(monkeypatch):
    monkeypatch.setattr(engine, "trace", None)
    model, loss, x = fresh("class token")
    losses = loss(model, x)
    norms = per_example_grad_norms(losses, model.parameters(), norms="exact")
    assert norms.equal(exact_norms(losses, model.parameters()))
    torch.testing.assert_close(norms, norms_of(losses, model.parameters()), rtol=ROUNDING, atol=0)
