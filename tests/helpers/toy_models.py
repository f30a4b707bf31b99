"""Small models by name for the tests of per-example gradients, and the definition with which these tests compare."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from pyengm.models import build


class ToyModel(nn.Module):
    """A function of the model and its input, and modules and parameters by name."""

    def __init__(self, function: Callable[..., Tensor], /, **members: nn.Module | Tensor):
        super().__init__()
        self.function = function
        for name, member in members.items():
            setattr(self, name, member)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, dtype=torch.float64) * 0.5)


def rows(n: int = 5, d: int = 6) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64)


def sequences(n: int = 5, t: int = 4, d: int = 6) -> Tensor:
    return torch.randn(n, t, d, dtype=torch.float64)


def images(n: int = 5, c: int = 3, h: int = 7, w: int = 6) -> Tensor:
    return torch.randn(n, c, h, w, dtype=torch.float64)


def token_ids(n: int = 5, t: int = 6, vocabulary: int = 7) -> Tensor:
    return torch.randint(0, vocabulary, (n, t))


def cross_entropy(model: nn.Module, x: Tensor) -> Tensor:
    logits = model(x).flatten(1)
    return F.cross_entropy(logits, torch.arange(len(logits)) % logits.shape[1], reduction="none")


def _clean_and_moved(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of x and of a perturbed x, and labels."""
    return model(x), model(x + 0.1 * torch.sin(9 * x)), torch.arange(len(x)) % 3


def trades(model: nn.Module, x: Tensor) -> Tensor:
    clean, moved, y = _clean_and_moved(model, x)
    robust = F.kl_div(moved.log_softmax(1), clean.softmax(1), reduction="none").sum(1)
    return F.cross_entropy(clean, y, reduction="none") + 6 * robust


def mart(model: nn.Module, x: Tensor) -> Tensor:
    clean, moved, y = _clean_and_moved(model, x)
    true = clean.softmax(1).gather(1, y[:, None])[:, 0]
    wrong = moved.softmax(1).scatter(1, y[:, None], 0).amax(1)
    boosted = F.cross_entropy(moved, y, reduction="none") - torch.log1p(1e-12 - wrong)
    robust = F.kl_div(moved.log_softmax(1), clean.softmax(1), reduction="none").sum(1)
    return boosted + 5 * robust * (1 - true)


def input_gradients(model: nn.Module, x: Tensor) -> Tensor:
    """The cross-entropy, and the square of its gradient in x."""
    leaf = x.clone().requires_grad_()
    losses = cross_entropy(model, leaf)
    (g,) = torch.autograd.grad(losses.sum(), leaf, create_graph=True)
    return losses + 100 * g.flatten(1).square().sum(1)


def fresh(name: str) -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor], Tensor]:
    """A model, a function of (model, x) that returns the losses, and x: float64, and the same at every call.

    No parameter keeps an initial value of 0 or 1.
    """
    torch.manual_seed(0)
    model, x, *loss = TOY_MODELS[name]()
    model = model.double()
    for p in model.parameters():
        if p.dim() < 2:
            p.data += 0.1 * torch.randn_like(p)
    return model, loss[0] if loss else cross_entropy, x


def gradients(losses: Tensor, params: Iterable[Tensor]) -> Tensor:
    """The definition: the gradient of each loss by all parameters, from one backward pass each; (n, P)."""
    params = [p for p in dict.fromkeys(params) if p.requires_grad]
    found = []
    for loss in losses:
        grads = torch.autograd.grad(loss, params, retain_graph=True, materialize_grads=True)
        found.append(torch.cat([g.to_dense().flatten() for g in grads]))
    return torch.stack(found)


def norms_of(losses: Tensor, params: Iterable[Tensor]) -> Tensor:
    """The norms of these gradients, (n,); the gradient of only one example is in memory."""
    params = [p for p in dict.fromkeys(params) if p.requires_grad]
    found = []
    for loss in losses:
        grads = torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
        found.append(sum(g.to_dense().double().square().sum() for g in grads if g is not None) ** 0.5)
    return torch.stack(found)


def filled(params: Iterable[Tensor]) -> Tensor:
    """The values of .grad of all parameters, flat; (P,)."""
    params = [p for p in dict.fromkeys(params) if p.requires_grad]
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad.to_dense()).flatten() for p in params])


def _conv(conv, x):
    """A convolution (or another layer), and a tanh and a linear layer after it, so that every output matters."""
    features = conv.double()(x[:1])[0].numel()
    return nn.Sequential(conv, nn.Tanh(), nn.Flatten(), nn.Linear(features, 3)), x


def _stack(*layers, x):
    """Layers, and a tanh and a linear layer after them."""
    layers = nn.Sequential(*layers).double()
    return nn.Sequential(layers, nn.Tanh(), nn.Flatten(), nn.Linear(layers(x[:2])[0].numel(), 3)), x, input_gradients


def _heads(f, d=6, x=None, **parts):
    return ToyModel(f, h=nn.Linear(d, 3), **parts), rows() if x is None else x


def _sequence_layer(layer, axis=1, d=6, x=None):
    return ToyModel(lambda m, x: m.h(torch.tanh(m.a(x)).mean(axis)), a=layer, h=nn.Linear(d, 3)), (
        sequences() if x is None else x
    )


def _sequence_first(n):
    def forward(m, x):
        x = m.norm(torch.tanh(m.up(x.transpose(0, 1))))
        return m.h(torch.tanh(m.down(x.contiguous())).mean(0))

    return ToyModel(
        forward, up=nn.Linear(6, 8), norm=nn.LayerNorm(8), down=nn.Linear(8, 5, bias=False), h=nn.Linear(5, 3)
    ), sequences(n)


def _tokens():
    """A class token, a position embedding and a scaled residual branch, as in a vision transformer."""

    def forward(m, x):
        x = torch.cat([m.token.expand(len(x), -1, -1), x], 1) + m.position
        x = x + m.scale * m.a(m.norm(x))
        return m.h(x[:, 0] + x.mean(1))

    return ToyModel(
        forward, token=weight(1, 1, 6), position=weight(1, 5, 6), scale=weight(6), norm=nn.LayerNorm(6),
        a=nn.Linear(6, 6), h=nn.Linear(6, 3),
    ), sequences()  # fmt: skip


def _attention(forward, **options):
    return ToyModel(forward, a=nn.MultiheadAttention(6, 2, **options), h=nn.Linear(6, 3)), sequences()


def _recurrent(kind):
    return ToyModel(lambda m, x: m.h(m.a(x)[0].mean(1)), a=kind(6, 4, batch_first=True), h=nn.Linear(4, 3)), sequences()


def _residual(m, x):
    x = F.relu_(m.stem(x))
    return m.h((x + 0.5 * torch.tanh(m.norm(m.conv(x)))).mean((2, 3)))


def _residual_net(x=None):
    return ToyModel(
        _residual, stem=nn.Conv2d(3, 4, 3, padding=1), conv=nn.Conv2d(4, 4, 3, padding=1, bias=False),
        norm=nn.GroupNorm(2, 4), h=nn.Linear(4, 3),
    ), images() if x is None else x  # fmt: skip


def _in_channels_last():
    model, x = _residual_net()
    return model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)


def _running(layer, *shape):
    """A norm layer in eval mode whose running statistics differ from the initial ones."""
    layer.double()(torch.randn(shape, dtype=torch.float64) * 2 + 1)
    return layer.eval()


def _frozen_conv():
    model, x = _residual_net()
    model.conv.requires_grad_(False)
    return model, x


def _ragged(m, x):
    """Examples of 3, 1, 4, 2 and 2 rows, packed into one matrix; one of them alone in its layout."""
    counts = torch.tensor([3, 1, 4, 2, 2])
    mask = torch.arange(4) < counts[:, None]
    packed = m.norm(torch.tanh(m.a(x[mask])))
    owner = torch.arange(5).repeat_interleave(counts)
    return m.h(packed.new_zeros(5, packed.shape[1]).index_add(0, owner, packed))


def _windows(m, x):
    """2 x 2 windows folded into the batch axis, examples outermost or innermost."""
    n, c = x.shape[:2]
    w = x.unfold(2, 3, 3).unfold(3, 3, 3).flatten(2, 3)  # (n, c, windows, 3, 3)
    outer = m.c(w.transpose(1, 2).reshape(-1, c, 3, 3)).view(n, -1, 4, 2, 2).mean((1, 3, 4))
    inner = m.c(w.permute(2, 0, 1, 3, 4).reshape(-1, c, 3, 3)).tanh().view(-1, n, 4, 2, 2).mean((0, 3, 4))
    return m.h(torch.cat([outer, inner], 1))


def _group_norm_resnet():
    return build("resnet18", norm_layer="gn", width=4, image_size=16, num_classes=3), torch.rand(3, 3, 16, 16).double()


def _one_pixel(m, x):
    return m.h(m.b(m.a(x)).mean((2, 3)))


def _loop(m, x):
    return torch.stack([m.h(torch.tanh(m.a(row))) for row in x])


def _standardised(m, x):
    w = m.w
    w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
    return m.h(torch.tanh(F.conv2d(x, w * m.gain)).mean((2, 3)))


def _fold(m, x):
    return m.h(m.c(x.reshape(15, 1, 7, 6)).mean((2, 3)).view(5, 3, 2).mean(1))


def _mixed_by_a_mean(m, x):
    """The mean over the batch passes through a layer of its own, whose output is subtracted from all examples."""
    return m.h(torch.tanh(m.a(x) - 0.1 * m.b(x).mean(0)))


CONVS = {
    "conv1d": (nn.Conv1d, (5, 4, 9), (4, 6, 3)),
    "conv2d": (nn.Conv2d, (5, 4, 7, 6), (4, 6, 3)),
    "conv3d": (nn.Conv3d, (3, 4, 5, 4, 4), (4, 6, 3)),
}
OPTIONS = {
    "plain": {},
    "no bias": {"bias": False},
    "stride and padding": {"stride": 2, "padding": 1},
    "same": {"padding": "same"},
    "dilation": {"dilation": 2, "padding": 2},
    "groups": {"groups": 2},
    "depthwise": {"groups": 4, "out": 8, "padding": 1},
    "circular": {"padding": 1, "padding_mode": "circular"},
    "reflect": {"padding": "same", "padding_mode": "reflect"},
}


def _conv_case(kind, options):
    make, shape, (i, o, k) = CONVS[kind]
    if kind == "conv3d" and options.get("padding_mode") == "reflect":
        options = {**options, "padding": 1}
    o = options.get("out", o)
    conv = make(i, o, k, **{name: value for name, value in options.items() if name != "out"})
    return lambda: _conv(
        type(conv)(i, o, k, **{a: b for a, b in options.items() if a != "out"}), torch.randn(shape).double()
    )


TOY_MODELS = {
    **{f"linear n={n}": lambda n=n: (nn.Linear(6, 4), rows(n)) for n in (1, 2, 5, 9)},
    **{f"sequence first n={n}": lambda n=n: _sequence_first(n) for n in (1, 2, 5, 9)},
    **{f"sequence n={n}": lambda n=n: _sequence_layer(nn.Linear(6, 6), x=sequences(n)) for n in (1, 2, 5, 9)},
    "linear over four axes": lambda: (
        ToyModel(lambda m, x: m.h(torch.tanh(m.a(x)).mean((1, 2))), a=nn.Linear(6, 5), h=nn.Linear(5, 3)), images()
    ),
    "wide linear, many positions": lambda: _sequence_layer(nn.Linear(6, 6, bias=False), x=sequences(t=20)),
    **{
        f"{kind} {option}": _conv_case(kind, options)
        for kind in CONVS
        for option, options in OPTIONS.items()
    },
    "conv2d kernel of even size": lambda: _conv(nn.Conv2d(3, 4, 4, padding="same"), images()),
    "conv2d oblong": lambda: _conv(nn.Conv2d(3, 4, (3, 1), (1, 2), (2, 0), (2, 1)), images()),
    "conv2d 1x1 with stride": lambda: _conv(nn.Conv2d(3, 4, 1, stride=3), images()),
    "conv2d with more weights than pixels": lambda: _conv(nn.Conv2d(16, 24, 3, padding=1), images(c=16, h=3, w=3)),
    "conv2d groups, more weights than pixels": lambda: _conv(
        nn.Conv2d(16, 24, 3, padding=1, groups=2), images(c=16, h=2, w=3)
    ),
    "conv1d with more weights than positions": lambda: _conv(nn.Conv1d(16, 24, 3, 2, 1), sequences(5, 16, 5)),
    "conv2d without a batch axis, in a loop": lambda: (
        ToyModel(lambda m, x: torch.stack([m.h(m.a(p).tanh().mean((1, 2))) for p in x]), a=nn.Conv2d(3, 4, 3),
            h=nn.Linear(4, 3)),
        images(),
    ),
    "transposed conv1d": lambda: _conv(nn.ConvTranspose1d(4, 6, 3, dilation=2), torch.randn(4, 4, 5).double()),
    "transposed conv2d": lambda: _conv(
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), images(c=4, h=3, w=3)
    ),
    "transposed conv3d": lambda: _conv(nn.ConvTranspose3d(4, 3, 2, bias=False), torch.randn(4, 4, 3, 3, 2).double()),
    "second derivatives of convolutions": lambda: _stack(
        nn.Conv2d(4, 6, 3, 2, 1, groups=2), nn.GELU(), nn.ConvTranspose2d(6, 4, 3, dilation=2), nn.PReLU(),
        x=images(c=4)
    ),
    "second derivatives of convolutions of one dimension": lambda: _stack(
        nn.Flatten(2), nn.Conv1d(3, 4, 5, 2), nn.SiLU(), nn.Conv1d(4, 2, 3, padding="valid"), nn.Softplus(),
        x=images()
    ),
    "second derivatives of norms": lambda: _stack(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4).eval(), nn.Tanh(), nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4), nn.ELU(),
            nn.LayerNorm(4), x=images()
    ),
    "second derivatives of pools": lambda: _stack(
        nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1), nn.Softmax(1), nn.AvgPool2d(2), nn.LayerNorm(1),
        x=images()
    ),
    "a node without a weight rule, twice": lambda: (
        ToyModel(
            lambda m, x: m.h(torch.maximum(m.a(torch.maximum(m.b(x), m.w.view(1, 6))), m.w.view(1, 6))),
            a=nn.Linear(6, 6), b=nn.Linear(6, 6), h=nn.Linear(6, 3), w=weight(6),
        ),
        rows(),
    ),
    "embedding": lambda: _sequence_layer(nn.Embedding(7, 6), x=token_ids()),
    "embedding with padding": lambda: _sequence_layer(nn.Embedding(7, 6, padding_idx=2), x=token_ids()),
    "embedding sequence first": lambda: (
        ToyModel(lambda m, x: m.h(torch.tanh(m.a(x.T)).mean(0)), a=nn.Embedding(7, 6), h=nn.Linear(6, 3)), token_ids()
    ),
    "embedding twice": lambda: (
        ToyModel(lambda m, x: m.h(torch.tanh(m.a(x) + m.a(6 - x)).mean(1)), a=nn.Embedding(7, 6), h=nn.Linear(6, 3)),
        token_ids(),
    ),
    "embedding tied to the head": lambda: (
        ToyModel(lambda m, x: torch.tanh(m.a(x)).mean(1) @ m.a.weight.T, a=nn.Embedding(7, 4)), token_ids()
    ),
    "table looked up by indexing": lambda: _heads(lambda m, x: m.h(m.w[(x > 0).sum(1)] * x), w=weight(7, 6)),
    "table looked up by index_select": lambda: _heads(
        lambda m, x: m.h(m.w.index_select(0, (x > 0).sum(1)) * x), w=weight(7, 6)
    ),
    "embedding bag": lambda: (nn.Sequential(nn.EmbeddingBag(7, 6), nn.Linear(6, 3)), token_ids()),
    "layer norm": lambda: _sequence_layer(nn.LayerNorm(6)),
    "layer norm over two axes": lambda: _sequence_layer(nn.LayerNorm((4, 6))),
    "layer norm without bias": lambda: _sequence_layer(nn.LayerNorm(6, bias=False)),
    "rms norm": lambda: _sequence_layer(nn.RMSNorm(6)),
    "group norm": lambda: _conv(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)), images()),
    "group norm of rows": lambda: (nn.Sequential(nn.Linear(6, 4), nn.GroupNorm(2, 4), nn.Linear(4, 3)), rows()),
    "instance norm": lambda: _conv(nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True)), images()),
    "instance norm without weights": lambda: _conv(nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4)), images()),
    "instance norm 1d": lambda: _conv(nn.InstanceNorm1d(4, affine=True), sequences(5, 4, 6)),
    "instance norm that tracks": lambda: _conv(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True, track_running_stats=True)), images()
    ),
    "instance norm of running statistics": lambda: _conv(
        _running(nn.InstanceNorm2d(3, affine=True, track_running_stats=True), 5, 3, 4, 4), images()
    ),
    "batch norm in eval mode": lambda: _conv(
        nn.Sequential(nn.Conv2d(3, 4, 3), _running(nn.BatchNorm2d(4), 5, 4, 5, 4)), images()
    ),
    "batch norm 1d in eval mode": lambda: (
        nn.Sequential(nn.Linear(6, 4), _running(nn.BatchNorm1d(4), 9, 4), nn.Tanh(), nn.Linear(4, 3)), rows()
    ),
    "prelu": lambda: _conv(nn.PReLU(), images()),
    "prelu per channel": lambda: _conv(nn.PReLU(3), images()),
    "prelu of rows": lambda: (nn.Sequential(nn.Linear(6, 4), nn.PReLU(4), nn.Linear(4, 3)), rows()),
    "self attention": lambda: _attention(lambda m, x: m.h(m.a(x, x, x)[0].mean(1)), batch_first=True),
    "self attention, fused": lambda: _attention(
        lambda m, x: m.h(m.a(x, x, x, need_weights=False)[0].mean(1)), batch_first=True
    ),
    "self attention sequence first": lambda: _attention(
        lambda m, x: m.h(m.a(*[x.transpose(0, 1)] * 3)[0].mean(0)), add_bias_kv=True
    ),
    "cross attention": lambda: _attention(
        lambda m, x: m.h(m.a(x, x[:, :3].sin(), x[:, :3].cos())[0].mean(1)), batch_first=True
    ),
    "attention with kdim": lambda: _attention(
        lambda m, x: m.h(m.a(x, x[:, :, :3], x[:, :, 3:])[0].mean(1)), batch_first=True, kdim=3, vdim=3
    ),
    "attention with bias_kv": lambda: _attention(
        lambda m, x: m.h(m.a(x, x, x)[0].mean(1)), batch_first=True, add_bias_kv=True, add_zero_attn=True
    ),
    "attention bias of each pair of positions": lambda: _heads(
        lambda m, x: m.h(
            F.scaled_dot_product_attention(*[x.reshape(-1, 1, 3, 2).expand(-1, 2, -1, -1)] * 3, attn_mask=m.w)
            .mean(1).flatten(1)
        ),
        w=weight(1, 2, 3, 3),
    ),
    "encoder layer": lambda: _sequence_layer(nn.TransformerEncoderLayer(6, 2, 8, dropout=0, batch_first=True)),
    "encoder layer, norm first": lambda: _sequence_layer(
        nn.TransformerEncoderLayer(6, 2, 8, dropout=0, batch_first=True, norm_first=True)
    ),
    "gru": lambda: _recurrent(nn.GRU),
    "lstm": lambda: _recurrent(nn.LSTM),
    "rnn cell": lambda: _heads(lambda m, x: m.h(m.a(x, m.a(x))), a=nn.RNNCell(6, 6)),
    "class token": _tokens,
    "weight norm": lambda: (
        nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, 3)), rows()
    ),
    "weight norm of a conv": lambda: _conv(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), images()),
    "spectral norm": lambda: (
        nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, 3)), rows()
    ),
    "spectral norm of a conv": lambda: _conv(parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)), images()),
    "orthogonal": lambda: (
        nn.Sequential(parametrizations.orthogonal(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, 3)), rows()
    ),
    "standardised weight": lambda: (
        ToyModel(_standardised, w=weight(4, 3, 3, 3), gain=weight(4, 1, 1, 1), h=nn.Linear(4, 3)), images()
    ),
    "weight of two parameters": lambda: _heads(lambda m, x: m.h(x @ (m.a @ m.b)), a=weight(6, 2), b=weight(2, 6)),
    "weight and a part of it": lambda: _heads(
        lambda m, x: m.h(torch.tanh(x @ m.w) + torch.tanh(x[:, :3]) @ m.w[:3]), w=weight(6, 6)
    ),
    "functional conv": lambda: (
        ToyModel(lambda m, x: m.h(F.conv2d(x, m.w, m.b, 2, 1).tanh().mean((2, 3))), w=weight(4, 3, 3, 3), b=weight(4),
            h=nn.Linear(4, 3)),
        images(),
    ),
    "matmul from the left": lambda: (
        ToyModel(lambda m, x: m.h((m.w @ x).tanh().mean(1)), w=weight(3, 4), h=nn.Linear(6, 3)), sequences()
    ),
    "matmul from the left of rows": lambda: (ToyModel(lambda m, x: (m.w @ x.T).T, w=weight(3, 6)), rows()),
    "batched matmul": lambda: (
        ToyModel(lambda m, x: m.h(torch.bmm(x.reshape(15, 2, 7).transpose(0, 1), m.w).tanh().sum(0).view(5, -1)),
            w=weight(2, 7, 4), h=nn.Linear(12, 3)),
        images(w=2),
    ),
    "batched matmul, one row of each example": lambda: _heads(
        lambda m, x: m.h(torch.bmm(x.expand(2, -1, -1), m.w).tanh().sum(0)), w=weight(2, 6, 6)
    ),
    "batched matmul from the left": lambda: (
        ToyModel(lambda m, x: m.h(torch.bmm(m.w, x.permute(1, 2, 0)).tanh().sum(0).T), w=weight(4, 5, 6),
            h=nn.Linear(5, 3)),
        sequences(),
    ),
    "einsum": lambda: (ToyModel(lambda m, x: torch.einsum("nti,oi->no", x, m.w), w=weight(3, 6)), sequences()),
    "einsum of heads": lambda: (
        ToyModel(lambda m, x: m.h(torch.einsum("nti,hio->nhto", x, m.w).tanh().mean((1, 2))), w=weight(2, 6, 5),
            h=nn.Linear(5, 3)),
        sequences(),
    ),
    "matrix times vector": lambda: _heads(lambda m, x: m.h(x * (x @ m.w)[:, None]), w=weight(6)),
    "dot products in a loop": lambda: _heads(
        lambda m, x: m.h(x * torch.stack([torch.dot(row, m.w).sin() for row in x])[:, None]), w=weight(6)
    ),
    "addmm with alpha and beta": lambda: _heads(
        lambda m, x: m.h(torch.addmm(m.b, x, m.w, beta=0.5, alpha=2.0).tanh()), w=weight(6, 6), b=weight(6)
    ),
    "add and subtract": lambda: _heads(
        lambda m, x: m.h(torch.tanh(torch.add(x, m.a, alpha=2) + torch.sub(m.b, x, alpha=3) - torch.sub(x, m.c))),
        a=weight(6), b=weight(1, 6), c=weight(1),
    ),
    "reversed subtract": lambda: _heads(lambda m, x: m.h(torch.rsub(x, m.w).tanh()), w=weight(6)),
    "multiply and divide": lambda: _heads(
        lambda m, x: m.h(x * m.a + x / (m.b + 3) + m.c / (x.abs() + 1)), a=weight(6), b=weight(6), c=weight(1, 6)
    ),
    "scalar weight": lambda: _heads(lambda m, x: m.h(x) * m.w.exp() + m.w, w=weight()),
    "position embedding": lambda: (
        ToyModel(lambda m, x: m.h(torch.tanh(x + m.w).mean(1)), w=weight(4, 6), h=nn.Linear(6, 3)), sequences()
    ),
    "position embedding of pixels": lambda: (
        ToyModel(lambda m, x: m.h(torch.tanh(x * m.v + m.w).flatten(1)), w=weight(3, 1, 6), v=weight(1, 1, 7, 1),
            h=nn.Linear(126, 3)),
        images(),
    ),
    "repeated queries": lambda: (
        ToyModel(lambda m, x: m.h((m.w.repeat(len(x), 1, 1) @ x.mT).flatten(1)), w=weight(2, 6), h=nn.Linear(8, 3)),
        sequences(),
    ),
    "affine weights plus one": lambda: _heads(
        lambda m, x: m.h(F.layer_norm(x, (6,), 1 + m.w, m.b)), w=weight(6), b=weight(6)
    ),
    "bilinear": lambda: (nn.Sequential(ToyModel(lambda m, x: m.b(x, x), b=nn.Bilinear(6, 6, 3))), rows()),
    "bilinear twice": lambda: (ToyModel(lambda m, x: m.b(m.b(x, x).tanh(), x), b=nn.Bilinear(6, 6, 6)), rows()),
    "where": lambda: _heads(lambda m, x: m.h(torch.where(x > 0, x, m.w)), w=weight(6)),
    "where of one value": lambda: _heads(lambda m, x: m.h(torch.where(x > 0, x, m.w)), w=weight(1)),
    "lerp": lambda: _heads(lambda m, x: m.h(torch.lerp(x, x.sin(), m.w)), w=weight(6)),
    "addcmul": lambda: _heads(lambda m, x: m.h(torch.addcmul(m.v, x, m.w, value=0.5)), w=weight(6), v=weight(6)),
    "maximum": lambda: _heads(lambda m, x: m.h(torch.maximum(x, m.w)), w=weight(6)),
    "clamp": lambda: _heads(lambda m, x: m.h(x.clamp(min=m.w)), w=weight(6)),
    "distances": lambda: _heads(lambda m, x: m.h(torch.cdist(x, m.w)), w=weight(6, 6)),
    "cosines": lambda: _heads(lambda m, x: m.h(F.cosine_similarity(x[:, None], m.w[None], dim=2)), w=weight(6, 6)),
    **{
        f"{name} between layers": lambda f=f: _heads(
            lambda m, x: m.h(f(m.a(x), m.v if f is torch.cdist else m.w)), a=nn.Linear(6, 6),
            w=weight(6), v=weight(6, 6),
        )
        for name, f in {
            "where": lambda x, w: torch.where(x > 0, x, w),
            "lerp": lambda x, w: torch.lerp(x, x.sin(), w),
            "power": lambda x, w: (x.abs() + 0.1) ** w,
            "distances": torch.cdist,
        }.items()
    },
    "power": lambda: _heads(lambda m, x: m.h((x.abs() + 0.1) ** m.w), w=weight(6)),
    "concatenated": lambda: _heads(
        lambda m, x: m.h(torch.cat([x[:, :3], m.w.expand(len(x), -1)], 1)), w=weight(3)
    ),
    "chunks of a weight": lambda: _heads(
        lambda m, x: m.h(sum(F.linear(x, part).tanh() for part in m.w.chunk(3))), w=weight(18, 6)
    ),
    "second chunk of a weight alone": lambda: _heads(lambda m, x: m.h(x @ m.w.chunk(2)[1]), w=weight(12, 6)),
    "first chunk without a gradient": lambda: _heads(
        lambda m, x: m.h(0 * (x @ m.w.unbind(0)[0]) + x @ m.w.unbind(0)[1]), w=weight(2, 6, 6)
    ),
    "frames": lambda: (ToyModel(_fold, c=nn.Conv2d(1, 2, 3), h=nn.Linear(2, 3)), images()),
    "windows": lambda: (ToyModel(_windows, c=nn.Conv2d(3, 4, 2), h=nn.Linear(8, 3)), images(h=6)),
    "ragged": lambda: (ToyModel(_ragged, a=nn.Linear(6, 5), norm=nn.LayerNorm(5), h=nn.Linear(5, 3)), sequences()),
    "examples in another order": lambda: _heads(
        lambda m, x: m.h(torch.tanh(m.a(x[[3, 1, 4, 0, 2]]))[[3, 1, 4, 0, 2]].roll(1, 0)), a=nn.Linear(6, 6)
    ),
    "examples in a loop": lambda: (ToyModel(_loop, a=nn.Linear(6, 5), h=nn.Linear(5, 3)), rows()),
    "layer twice": lambda: (ToyModel(lambda m, x: m.a(torch.tanh(m.a(x))), a=nn.Linear(6, 6)), rows()),
    "conv twice": lambda: (
        ToyModel(lambda m, x: m.h(m.c(torch.tanh(m.c(x))).mean((2, 3))), c=nn.Conv2d(3, 3, 3, padding=1),
            h=nn.Linear(3, 3)),
        images(),
    ),
    "conv twice at two sizes": lambda: (
        ToyModel(lambda m, x: m.h(m.c(F.avg_pool2d(m.c(x), 2).tanh()).mean((2, 3))), c=nn.Conv2d(3, 3, 3, padding=1),
            h=nn.Linear(3, 3)),
        images(),
    ),
    "tied to its transpose": lambda: (
        ToyModel(lambda m, x: torch.tanh(m.a(x)) @ m.a.weight, a=nn.Linear(6, 4)), rows()
    ),
    "trades": lambda: (*_residual_net(), trades),
    "mart": lambda: (*_residual_net(), mart),
    "trades with tied weights": lambda: (
        ToyModel(lambda m, x: m.h(torch.tanh(m.a(x)) @ m.a.weight), a=nn.Linear(6, 4), h=nn.Linear(6, 3)),
        rows(), trades,
    ),
    "mart with weight norm": lambda: (
        nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, 3)), rows(), mart
    ),
    "residual, in place": _residual_net,
    "channels last": _in_channels_last,
    "input not contiguous": lambda: _residual_net(images(w=3, h=7, c=6).transpose(1, 3)),
    "rows not contiguous": lambda: (nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)), rows(6, 5).T),
    "frozen weight": _frozen_conv,
    "unused parameter": lambda: _heads(lambda m, x: m.h(x), spare=weight(3)),
    "conv behind a linear layer": lambda: (
        ToyModel(_one_pixel, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 3, 3, groups=1), h=nn.Linear(3, 3)), images()
    ),
    "mixed by the mean of another layer": lambda: _heads(
        _mixed_by_a_mean, a=nn.Linear(6, 6), b=nn.Linear(6, 6)
    ),
    "batch-wide gate of another layer": lambda: _heads(
        lambda m, x: m.h(m.a(x) * m.b(x).mean(0).sigmoid()), a=nn.Linear(6, 6), b=nn.Linear(6, 6)
    ),
    "neighbour in the batch": lambda: _heads(
        lambda m, x: m.h(torch.tanh(m.a(x) + m.a(x.roll(1, 0)))), a=nn.Linear(6, 6)
    ),
    "resnet18 with group norm": _group_norm_resnet,
}  # fmt: skip
