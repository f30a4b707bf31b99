"""Models, losses and batches on which the libraries of per_example_libraries.py are compared.

Every batch differs from the one before: other images or texts, other dropped paths, other padding. The model is
written so that as many libraries as possible support it: layers are modules of torch, and every input of a layer has an
axis of examples (positions are expanded, dropped paths are an input).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyengm.models import build

CLASSES = 10
VOCABULARY, PADDING, IGNORED = 1000, 0, -100  # token 0 pads; the loss ignores label -100
CONTEXT = 64  # tokens
DROP_PATH = 0.1  # timm's rate of the last block


@dataclass(frozen=True)
class Batch:
    """One batch of n examples.

    Attributes:
        inputs: arguments of the model, (n, ...) each.
        targets: classes (n,) or next tokens (n, T).
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor


@dataclass(frozen=True)
class Problem:
    """A model, its losses and a source of batches.

    Attributes:
        model: a module whose examples are independent.
        losses: maps outputs and targets to the losses (n,).
        draw: returns a new batch of n examples.
        n: examples of a batch.
    """

    model: nn.Module
    losses: Callable[[Tensor, Tensor], Tensor]
    draw: Callable[[], Batch]
    n: int

    def double(self) -> "Problem":
        """The same problem in float64; the model itself is converted."""
        return Problem(self.model.double(), self.losses, lambda: _to_float64(self.draw()), self.n)


def class_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropies of (n, classes) logits."""
    return F.cross_entropy(logits, labels, reduction="none")


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropies of (n, T, vocabulary) logits over the tokens that are not padding."""
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=IGNORED)
    return losses.view_as(labels).sum(1) / (labels != IGNORED).sum(1)


def resnet18(n: int = 32, width: int = 32) -> Problem:
    """ResNet-18 with group norm, images of 32 x 32 pixels."""
    model = build("resnet18", norm_layer="gn", width=width)
    return Problem(model, class_losses, lambda: Batch((_images(n),), _labels(n)), n)


class GivenDropPath(nn.Module):
    """timm's DropPath with factors (n,) that come with the batch, so that every library drops the same paths.

    Raises:
        RuntimeError: where a library runs the model again on other examples. timm's own module, which draws its
            factors, raises under torch.func as well.
    """

    factors: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if len(x) != len(self.factors):
            raise RuntimeError(f"got {len(x)} examples and random factors of drop path for {len(self.factors)}")
        return x * self.factors.view(-1, *[1] * (x.dim() - 1))


class WithDroppedPaths(nn.Module):
    """A model whose second argument (n, paths) holds the factors of its `GivenDropPath` modules in order."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, factors: Tensor) -> Tensor:
        paths = [module for module in self.modules() if isinstance(module, GivenDropPath)]
        for path, column in zip(paths, factors.unbind(1), strict=True):
            path.factors = column
        return self.model(x)


def stochastic_depth(n: int = 16, channels: int = 16, blocks: int = 3) -> Problem:
    """A small residual network whose blocks are dropped with probability 0.3."""

    class Block(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return x + super().forward(x)

    def block() -> nn.Module:
        return Block(nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(4, channels), nn.ReLU(), GivenDropPath())

    stem, pool = nn.Conv2d(3, channels, 3, padding=1), nn.AdaptiveAvgPool2d(1)
    model = nn.Sequential(stem, *(block() for _ in range(blocks)), pool, nn.Flatten(), nn.Linear(channels, CLASSES))
    rates = torch.full((blocks,), 0.3)
    return Problem(WithDroppedPaths(model), class_losses, lambda: _with_factors(n, 32, rates, scale=False), n)


def vit(n: int = 32, *, size: int = 32, patch: int = 4, depth: int = 6, frozen: bool = False) -> Problem:
    """timm's vision transformer of width 192 with drop path.

    Args:
        n: images.
        size: pixels of a side.
        patch: pixels of the side of a patch.
        depth: blocks.
        frozen: whether the class token and the table of positions, which belong to no layer, are not trained.
    """
    from timm.models.vision_transformer import VisionTransformer

    sizes: dict[str, Any] = {"img_size": size, "patch_size": patch, "embed_dim": 192, "depth": depth, "num_heads": 3}
    norm = partial(nn.LayerNorm, eps=1e-6)
    model = VisionTransformer(**sizes, num_classes=CLASSES, norm_layer=norm, drop_path_rate=DROP_PATH)
    for block in model.blocks:
        vars(block)["_modules"].update(drop_path1=GivenDropPath(), drop_path2=GivenDropPath())
    for name in ("cls_token", "pos_embed"):
        model.get_parameter(name).requires_grad_(not frozen)
    rates = torch.linspace(0, DROP_PATH, depth).repeat_interleave(2)
    return Problem(WithDroppedPaths(model), class_losses, lambda: _with_factors(n, size, rates, scale=True), n)


class Block(nn.Module):
    """A transformer block with the norms in front."""

    def __init__(self, width: int, heads: int, causal: bool):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, mask, is_causal=self.causal)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """A language model in the way of GPT-2 (causal), or a classifier in the way of BERT (with a mask for padding)."""

    def __init__(self, width: int, depth: int, outputs: int, causal: bool):
        super().__init__()
        self.causal = causal
        self.tokens, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(Block(width, 4, causal) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, outputs, bias=not causal)
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        positions = torch.arange(ids.shape[1]).repeat(len(ids), 1)  # module hooks need an axis of examples
        x = self.tokens(ids) + self.positions(positions)
        mask = None if self.causal else (ids != PADDING)[:, None, None]
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        return self.head(x if self.causal else x[:, 0])


def gpt(n: int = 16, width: int = 128, depth: int = 4, *, tied: bool = False, to_longest: bool = False) -> Problem:
    """A causal language model on texts of 8 to 64 tokens.

    Args:
        n: texts.
        width: features of a token.
        depth: blocks.
        tied: whether the last layer has the weights of the token table.
        to_longest: whether a batch is padded to its longest text and not to 64 tokens.
    """
    model = Transformer(width, depth, VOCABULARY, causal=True)
    if tied:
        model.head.weight = model.tokens.weight

    def draw() -> Batch:
        ids = _texts(n, to_longest)
        labels = torch.cat([ids[:, 1:], torch.full((n, 1), PADDING)], 1)
        return Batch((ids,), labels.masked_fill(labels == PADDING, IGNORED))

    return Problem(model, token_losses, draw, n)


def bert(n: int = 16, width: int = 128, depth: int = 4) -> Problem:
    """A classifier of texts of 8 to 64 tokens; attention masks the padding."""
    model = Transformer(width, depth, CLASSES, causal=False)
    return Problem(model, class_losses, lambda: Batch((_texts(n, to_longest=False),), _labels(n)), n)


MODELS: dict[str, Callable[..., Problem]] = {
    "resnet18": resnet18,
    "stochastic depth": stochastic_depth,
    "vit": vit,
    "vit, frozen tables": partial(vit, frozen=True),
    "vit_tiny": partial(vit, n=16, size=224, patch=16, depth=12),
    "gpt": gpt,
    "gpt, to longest": partial(gpt, to_longest=True),
    "gpt, tied": partial(gpt, tied=True),
    "bert": bert,
}


def make(name: str, **sizes: int) -> Problem:
    """The problem of this name, always with the same weights; torch's generator, from which batches come, is seeded."""
    torch.manual_seed(0)
    return MODELS[name](**sizes)


def _images(n: int, size: int = 32) -> Tensor:
    return torch.rand(n, 3, size, size)


def _labels(n: int) -> Tensor:
    return torch.randint(CLASSES, (n,))


def _with_factors(n: int, size: int, rates: Tensor, scale: bool) -> Batch:
    """Images and the factors of their paths: 0 at the given rates, else 1 or, to scale, 1 / (1 - rate)."""
    kept = torch.bernoulli((1 - rates).expand(n, -1))
    return Batch((_images(n, size), kept / (1 - rates) if scale else kept), _labels(n))


def _texts(n: int, to_longest: bool) -> Tensor:
    lengths = torch.randint(8, CONTEXT + 1, (n, 1))
    ids = torch.randint(1, VOCABULARY, (n, CONTEXT)).masked_fill(torch.arange(CONTEXT) >= lengths, PADDING)
    return ids[:, : int(lengths.max())].contiguous() if to_longest else ids


def _to_float64(batch: Batch) -> Batch:
    inputs = tuple(part.double() if part.is_floating_point() else part for part in batch.inputs)
    return Batch(inputs, batch.targets)
