"""Our training steps against the authors' public code: pytest bench/bench_authors.py --baseline-dir DIR.

DIR holds their repositories as folders, at the commits in `author_baselines.REPOSITORIES`; rows without their folder
are skipped. ResNet-18 of width 16 with batch norm on 64 images of 32 x 32, float32, momentum SGD, one CPU thread; 10
attack steps, 1 in ATAS and ATTA. Network, initial weights and settings are the same on both sides, and rounds
alternate; tools/paired_steps.py documents the contents of a step.

test_saving shows where the difference comes from, without their code: "unit" is our step, "step" is our step without
one saving, or without all savings of the method; without all of them it should take as long as theirs.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from tools.paired_steps import IMAGE_SIZE, PAIRED_STEPS, Setting, Trainer, check_losses
from torch import Tensor, nn
from torch.nn import functional as F

from pyengm.attacks.losses import kl_divergence, log_softmax
from pyengm.data import CropFlip
from pyengm.methods import StepOutput
from pyengm.ops import atas_step_, pgd_linf_step_

SETTING = Setting()

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:size_average")]


def without(savings: tuple[str, ...], ours: Trainer) -> float:
    with ExitStack() as stack:
        for saving in savings:
            stack.enter_context(SAVINGS[saving](ours))
        return ours.step()


def base_of(ours: Trainer) -> Any:
    """The method, under AWP where it has that."""
    return getattr(ours.method, "base", ours.method)


def clean_in_each_attack_step(ours: Trainer) -> AbstractContextManager:
    def loss(logits: Tensor, _: Tensor) -> Tensor:
        return kl_divergence(logits, log_softmax(ours.model(ours.batch.x)))

    return mock.patch.multiple(base_of(ours).attack, loss=loss, relative=False)


def clean_twice_in_the_loss(ours: Trainer) -> AbstractContextManager:
    def outcome(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> StepOutput:
        natural, logits = model(x), model(x_adv)
        robust = kl_divergence(logits, log_softmax(model(x)))
        return StepOutput(F.cross_entropy(natural, y, reduction="none") + base_of(ours).beta * robust, x_adv, logits)

    return mock.patch.object(base_of(ours), "outcome", outcome)


def weight_gradients_in_the_attack(ours: Trainer) -> AbstractContextManager:
    def gradient(model: nn.Module, x: Tensor, loss: Callable, *targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            logits = model.requires_grad_()(leaf)
            losses = loss(logits, *targets)
            total = losses.sum()
        grad = torch.autograd.grad(total, [leaf, *model.parameters()])[0]
        return grad, losses.detach(), logits.detach()

    return mock.patch("pyengm.attacks.pgd.input_grad", gradient)


@contextmanager
def two_more_forward_passes(ours: Trainer):
    """Their code selects among restarts, of which there is one, and measures the clean images for the log."""
    yield
    for _ in range(2):
        ours.model(ours.batch.x)


def batch_norm_of_torch(ours: Trainer) -> AbstractContextManager:
    return mock.patch("pyengm.attacks.fused_batch_norm.KINDS", ())


@contextmanager
def contiguous(ours: Trainer):
    if ours.batches.memory_format is not torch.contiguous_format:  # lasts for all later steps
        ours.batches.memory_format = torch.contiguous_format
        for p in ours.model.parameters():  # nn.Module.to does not change 1 x 1 convolutions
            p.data = p.data.clone(memory_format=torch.contiguous_format)
    yield


@contextmanager
def eager_steps(ours: Trainer):
    with (
        mock.patch("pyengm.attacks.threat_model.pgd_linf_step_", partial(pgd_linf_step_, backend="reference")),
        mock.patch("pyengm.methods.atas.atas_step_", partial(atas_step_, backend="reference")),
    ):
        yield


def crops_one_by_one(ours: Trainer) -> AbstractContextManager:
    def windows(crop: CropFlip):
        for i, (row, col, flip) in enumerate(
            zip(*(t.tolist() for t in (crop.rows, crop.cols, crop.flip)), strict=True)
        ):
            yield (i, slice(None), slice(row, row + IMAGE_SIZE), slice(col, col + IMAGE_SIZE)), flip

    def gather_window(crop: CropFlip, canvas: Tensor) -> Tensor:
        return torch.stack([canvas[window].flip(2) if flip else canvas[window] for window, flip in windows(crop)])

    def scatter_window(crop: CropFlip, images: Tensor, canvas: Tensor) -> Tensor:
        for image, (window, flip) in zip(images, windows(crop), strict=True):
            canvas[window] = image.flip(2) if flip else image
        return canvas

    def to_float(crop: CropFlip, images: Tensor, positions: Tensor, *, memory_format: torch.memory_format) -> Tensor:
        crops = gather_window(crop, F.pad(images[positions], (crop.padding,) * 4))
        return (crops / 255.0).contiguous(memory_format=memory_format)

    return mock.patch.multiple(CropFlip, gather_window=gather_window, scatter_window=scatter_window, to_float=to_float)


SAVINGS: dict[str, Callable[[Trainer], AbstractContextManager]] = {
    "clean images once per attack": clean_in_each_attack_step,
    "clean images once in the loss": clean_twice_in_the_loss,
    "no weight gradients in the attack": weight_gradients_in_the_attack,
    "two forward passes less": two_more_forward_passes,
    "batch norm as scale and shift": batch_norm_of_torch,
    "channels_last": contiguous,
    "fused steps": eager_steps,
    "crops of all images at once": crops_one_by_one,
}
COMMON = ("channels_last", "fused steps")
BATCH_NORM = ("batch norm as scale and shift", *COMMON)  # of attacks with batch norm in evaluation mode
CLEAN = ("clean images once per attack", "clean images once in the loss")
AWP = ("no weight gradients in the attack", "two forward passes less")
CROPS = ("crops of all images at once",)


SAVED = {
    "TRADES": CLEAN + BATCH_NORM,
    "MART": BATCH_NORM,
    "AT-AWP": AWP + COMMON,
    "ATAS": CROPS + BATCH_NORM,
}


def rounds_of(name: str) -> int:
    return 15 if name in ("ATAS", "ATTA") else 5  # the steps of these two are short


@pytest.mark.parametrize("name", PAIRED_STEPS)
def test_authors(compare, author_repository, name):
    pair = PAIRED_STEPS[name]
    root, title = author_repository(pair.folder)
    ours, theirs = pair.ours(SETTING), pair.theirs(SETTING, root)
    check_losses(ours, theirs)
    compare(ours.step, {title: theirs}, rounds=rounds_of(name), warm_up=1)


@pytest.mark.parametrize(
    ("name", "savings"),
    [
        pytest.param(name, savings, id=f"{name}, {savings[0] if len(savings) == 1 else 'all of these'}")
        for name, saved in SAVED.items()
        for savings in [*((saving,) for saving in saved), saved]
    ],
)
def test_saving(relative_cost, name, savings):
    pair = PAIRED_STEPS[name]
    relative_cost(partial(without, savings, pair.ours(SETTING)), pair.ours(SETTING).step, rounds=rounds_of(name))
