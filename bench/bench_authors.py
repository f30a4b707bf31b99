"""Our training steps against the authors' public code: pytest bench/bench_authors.py --baseline-dir DIR.

DIR holds their repositories as folders, each at the commit that is named here; rows without their folder are skipped.
    TRADES  https://github.com/yaodongyu/TRADES       6e8e11b7c281371c2f027ffadfbaea80361f09de
    MART    https://github.com/YisenWang/MART         2d83e17b381dd2ee52223695e517bf6d5ff09c2c
    AWP     https://github.com/csdongxian/AWP         a7acf5d842fccf1bbb4b91644352ce157d370a26
    ATAS    https://github.com/HuangZhiChao95/ATAS    674b195b124b7313a5e9052045f7659672300838
    ATTA    https://github.com/hzzheng93/ATTA         2c987de56986f2b0599e96b1b9c12b1df9b62b54
ResNet-18 of width 16 with batch norm on 64 pictures of 32 x 32, float32, momentum SGD, one CPU thread; 10 attack steps,
1 in ATAS and ATTA. Network, initial weights and numbers are the same on both sides, rounds in turn. Theirs: a step as
their script takes it (see authors.py) on a batch that lies ready; only in ATAS and ATTA do they crop within the step.
Ours: a batch from `Batches`, cropped and mirrored, then `train_step`.

test_saving says where the difference comes from, without their code: "unit" is our step, "step" the same with one
saving switched off, or all of the method's; the latter should take as long as theirs.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from unittest import mock

import authors
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyengm import MSGD
from pyengm.attacks.losses import kl_divergence, log_softmax
from pyengm.data import Batches, CropFlip, ImageData
from pyengm.methods import ATAS, ATTA, MART, PGDATAWP, TRADES, TRADESAWP, Examples, Method, Outcome, train_step
from pyengm.models import build, in_fast_layout, layout_of
from pyengm.ops import Key, atas_step_, pgd_linf_step_

WIDTH, N, SIDE, EPOCH = 16, 64, 32, 12  # the epoch: after every warm-up
EPS, STEP, K = 8 / 255, 2 / 255, 10
SGD = {"lr": 1e-4, "momentum": 0.9, "weight_decay": 5e-4}  # too small to learn the one batch by heart
CPU = torch.device("cpu")

pytestmark = pytest.mark.filterwarnings("ignore:size_average")


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network() -> nn.Module:
    torch.manual_seed(0)
    return build("resnet18", width=WIDTH).train()


def pictures() -> ImageData:
    images = torch.randint(256, (N, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageData(images, torch.arange(N) % 10, tuple("0123456789"), "cifar10", "train")


class Ours:
    """A model, its optimiser and steps of a method, as the trainer takes them."""

    def __init__(self, method: Method):
        self.model, self.method = in_fast_layout(network(), CPU), method
        self.optimizer = MSGD(self.model.parameters(), **SGD)
        data = pictures()
        layout = layout_of(self.model)
        self.batches = Batches(data, N, device=CPU, seed=0, augment="shift", shuffle=True, memory_format=layout)
        method.prepare(Examples(data.index, data.shape, padding=self.batches.padding, batches=1))
        method.start_epoch(self.model, EPOCH)
        self.batch = next(self.batches.epoch(EPOCH))

    def step(self) -> float:
        self.batch = batch = next(self.batches.epoch(EPOCH))
        key = Key(0, EPOCH, batch.index)
        used = train_step(self.method, self.model, self.optimizer, batch.x, batch.y, key, batch.transform)
        return used[0][0].losses.mean().item()

    def without(self, savings: tuple[str, ...]) -> float:
        with ExitStack() as stack:
            for saving in savings:
                stack.enter_context(SAVINGS[saving](self))
            return self.step()

    @property
    def base(self) -> Method:
        """The method under AWP."""
        return getattr(self.method, "base", self.method)


def clean_in_each_attack_step(ours: Ours) -> AbstractContextManager:
    def loss(logits: Tensor, _: Tensor) -> Tensor:
        return kl_divergence(logits, log_softmax(ours.model(ours.batch.x)))

    return mock.patch.multiple(ours.base.attack, loss=loss, relative=False)


def clean_twice_in_the_loss(ours: Ours) -> AbstractContextManager:
    def outcome(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Outcome:
        natural, logits = model(x), model(x_adv)
        robust = kl_divergence(logits, log_softmax(model(x)))
        return Outcome(F.cross_entropy(natural, y, reduction="none") + ours.base.beta * robust, x_adv, logits)

    return mock.patch.object(ours.base, "outcome", outcome)


def weight_gradients_in_the_attack(ours: Ours) -> AbstractContextManager:
    def gradient(model: nn.Module, x: Tensor, loss: Callable, *targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            logits = model.requires_grad_()(leaf)
            losses = loss(logits, *targets)
            total = losses.sum()
        grad = torch.autograd.grad(total, [leaf, *model.parameters()])[0]
        return grad, losses.detach(), logits.detach()

    return mock.patch("pyengm.attacks.pgd.input_gradient", gradient)


@contextmanager
def two_more_forward_passes(ours: Ours):
    """Theirs choose among restarts, of which there is one, and measure the clean pictures for the log."""
    yield
    for _ in range(2):
        ours.model(ours.batch.x)


def batch_norm_of_torch(ours: Ours) -> AbstractContextManager:
    return mock.patch("pyengm.attacks.affine.KINDS", ())


@contextmanager
def contiguous(ours: Ours):
    if ours.batches.memory_format is not torch.contiguous_format:  # once, and for good
        ours.batches.memory_format = torch.contiguous_format
        for p in ours.model.parameters():  # nn.Module.to leaves 1 x 1 convolutions as they are
            p.data = p.data.clone(memory_format=torch.contiguous_format)
    yield


@contextmanager
def eager_steps(ours: Ours):
    with (
        mock.patch("pyengm.attacks.threat.pgd_linf_step_", partial(pgd_linf_step_, backend="reference")),
        mock.patch("pyengm.methods.atas.atas_step_", partial(atas_step_, backend="reference")),
    ):
        yield


def crops_one_by_one(ours: Ours) -> AbstractContextManager:
    def windows(crop: CropFlip):
        for i, (row, col, flip) in enumerate(
            zip(*(t.tolist() for t in (crop.rows, crop.cols, crop.flip)), strict=True)
        ):
            yield (i, slice(None), slice(row, row + SIDE), slice(col, col + SIDE)), flip

    def cut(crop: CropFlip, canvas: Tensor) -> Tensor:
        return torch.stack([canvas[place].flip(2) if flip else canvas[place] for place, flip in windows(crop)])

    def paste(crop: CropFlip, pictures: Tensor, canvas: Tensor) -> Tensor:
        for picture, (place, flip) in zip(pictures, windows(crop), strict=True):
            canvas[place] = picture.flip(2) if flip else picture
        return canvas

    def to_float(crop: CropFlip, images: Tensor, positions: Tensor, *, memory_format: torch.memory_format) -> Tensor:
        crops = cut(crop, F.pad(images[positions], (crop.padding,) * 4))
        return (crops / 255.0).contiguous(memory_format=memory_format)

    return mock.patch.multiple(CropFlip, cut=cut, paste=paste, to_float=to_float)


SAVINGS: dict[str, Callable[[Ours], AbstractContextManager]] = {
    "clean pictures once per attack": clean_in_each_attack_step,
    "clean pictures once in the loss": clean_twice_in_the_loss,
    "no weight gradients in the attack": weight_gradients_in_the_attack,
    "two forward passes less": two_more_forward_passes,
    "batch norm as scale and shift": batch_norm_of_torch,
    "channels_last": contiguous,
    "fused steps": eager_steps,
    "crops of all pictures at once": crops_one_by_one,
}
EVERYWHERE = ("channels_last", "fused steps")
EVAL = ("batch norm as scale and shift", *EVERYWHERE)  # attacks with batch norm in evaluation mode
CLEAN = ("clean pictures once per attack", "clean pictures once in the loss")
AWP = ("no weight gradients in the attack", "two forward passes less")
CROPS = ("crops of all pictures at once",)


@dataclass(frozen=True)
class Row:
    folder: str
    theirs: Callable[..., authors.Step]
    ours: Callable[[], Method]
    savings: tuple[str, ...] = ()
    rounds: int = 5


PGD = {"eps": EPS, "step": STEP, "steps": K}
ROWS = {
    "TRADES": Row("TRADES", partial(authors.trades, **PGD), partial(TRADES, **PGD), CLEAN + EVAL),
    "MART": Row("MART", partial(authors.mart, **PGD), partial(MART, **PGD), EVAL),
    "AT-AWP": Row("AWP", partial(authors.at_awp, **PGD), partial(PGDATAWP, **PGD), AWP + EVERYWHERE),
    "TRADES-AWP": Row("AWP", partial(authors.trades_awp, **PGD), partial(TRADESAWP, **PGD)),
    "ATAS": Row("ATAS", partial(authors.atas, eps=EPS), partial(ATAS, EPS, epochs=30), CROPS + EVAL, 15),
    "ATTA": Row("ATTA", partial(authors.atta, eps=EPS, step=EPS / 2, steps=1), partial(ATTA, EPS), rounds=15),
}


@pytest.mark.parametrize("name", ROWS)
def test_authors(compare, request, name):
    row, root = ROWS[name], request.config.getoption("--baseline-dir")
    _, repository, commit = next(words for words in map(str.split, __doc__.splitlines()) if words[:1] == [row.folder])
    if root is None or not (root / row.folder).is_dir():
        pytest.skip(f"--baseline-dir has no folder {row.folder} with {repository} at {commit}")
    ours, model = Ours(row.ours()), network()
    x, y = ours.batch.x.contiguous(), ours.batch.y
    theirs = row.theirs(root, model, torch.optim.SGD(model.parameters(), **SGD), x, y)
    loss = theirs()
    assert loss is None or ours.step() == pytest.approx(loss, rel=0.02)  # random starts and crops differ
    compare(ours.step, {f"{repository.partition('.com/')[2]} {commit[:7]}": theirs}, rounds=row.rounds, warm_up=1)


@pytest.mark.parametrize(
    ("name", "savings"),
    [
        pytest.param(name, savings, id=f"{name}, {savings[0] if len(savings) == 1 else 'all of these'}")
        for name, row in ROWS.items()
        for savings in [*((saving,) for saving in row.savings), row.savings]
        if savings
    ],
)
def test_saving(price, name, savings):
    row = ROWS[name]
    price(partial(Ours(row.ours()).without, savings), Ours(row.ours()).step, rounds=row.rounds)
