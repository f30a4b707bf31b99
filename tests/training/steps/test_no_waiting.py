"""A training step does not make the host wait for a GPU: with every method and every optimiser, on pretended CUDA."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from helpers.method_runs import MANY_STEPS, OPTIONS
from tools.pretended_cuda import DEVICE, PretendedCuda

from pyengm.data import loader
from pyengm.methods import METHODS
from pyengm.optim.registry import CLOSURE_OPTIMIZERS, OPTIMIZERS
from pyengm.pergrad.norm_estimator import UPDATE_INTERVAL
from pyengm.pergrad.row_layout import RowLayout
from pyengm.training import TrainComponents, TrainConfig, build_components, builders, loop
from pyengm.utils.checks import Checks

SHRINKS = "aten.nonzero.default: its shape depends on values"
EXPECTED = {  # of a step here, at most: later steps of an attack take the remaining examples; singular values
    "ates": [SHRINKS],
    "dynamic": [SHRINKS],
    "fat": [SHRINKS],
    "ssat": [SHRINKS, SHRINKS],
    "nuat": ["aten._linalg_svd.default: reads a value"],
}
WITH_NORMS = [name for name, kind in OPTIMIZERS.items() if "norms" in kind.stateful_attributes]


@pytest.fixture(scope="module")
def images(short) -> tuple:
    """What `load_images` returns, read once."""
    return builders.load_images(short.resolve())


@pytest.fixture
def cuda(images, monkeypatch) -> Iterator[PretendedCuda]:
    monkeypatch.setattr(builders, "load_images", lambda config: images)
    monkeypatch.setattr(builders, "local_device", lambda device: DEVICE)
    monkeypatch.setattr(loader, "_fits", lambda data, device: True)
    with PretendedCuda() as mode:
        yield mode


@pytest.fixture(scope="module")
def short(tiny) -> TrainConfig:
    """Batches of four images."""
    return tiny.override(batch_size=4, attack_steps=None)


def warmed_up(config: TrainConfig) -> tuple[TrainComponents, Iterator]:
    """The components after two updates, and the batches that follow.

    The first looks at the structure of the graph and fits norms under batch norm, for all updates to come here.
    """
    components = build_components(config)
    loop.start_epoch(components, 0)
    batches = loop.grouped(components.batches.epoch(0), components.step.batches_per_update)
    loop.update(config, components, next(batches), 0)
    if hasattr(components.optimizer, "norms"):
        components.optimizer.norms.refit_interval = 100
    loop.update(config, components, next(batches), 0)
    return components, batches


def waits(cuda: PretendedCuda, config: TrainConfig) -> list[str]:
    """What makes the host wait in the step after the first two, its checks collected as in the training loop."""
    components, batches = warmed_up(config)
    checks = Checks()
    with checks.at("here"), cuda.recorded() as found:
        loop.update(config, components, next(batches), 0)
    with cuda.recorded() as read:
        checks.read()
    assert len(read) <= 1  # all checks in one transfer, which the loop makes every SYNC_INTERVAL batches
    return found


@pytest.mark.parametrize(
    "wait",
    [
        lambda t: t.sum().item(),
        lambda t: bool((t > 0).all()),
        lambda t: float(t[0]),
        lambda t: t.tolist(),
        lambda t: t.cpu(),
        lambda t: torch.empty(3).copy_(t),
        lambda t: t[t > 0],
        lambda t: t[[0, 2]],
        lambda t: t[torch.tensor([0, 2])],
        lambda t: t.nonzero(),
        lambda t: t.unique(),
        lambda t: t.masked_select(t > 0),
        lambda t: t.equal(t.clone()),
        lambda t: t.new_tensor(2.0),
        lambda t: t + torch.tensor([1.0, 2.0, 3.0], device=DEVICE),
        lambda t: torch.linalg.solve(t.diag(), t),
        lambda t: torch.segment_reduce(t, "sum", lengths=torch.full((1,), 3, device=DEVICE)),
    ],
)
def test_waits_are_seen(wait):
    with PretendedCuda() as cuda:
        t = torch.rand(3, device=DEVICE)
        with cuda.recorded() as found:
            wait(t)
            assert len(found) == 1
        with cuda.recorded() as found:
            (t[1:] * 2 + torch.ones(2, device=DEVICE)).sum().add(1.0).to(DEVICE)
    assert not found


@pytest.mark.parametrize("optimizer", ["msgd", "engm"])
@pytest.mark.parametrize("method", METHODS)
def test_methods(method, optimizer, short, cuda):
    config = short.override(
        method=method,
        method_options=OPTIONS.get(method, ()),
        optimizer=optimizer,
        attack_steps=2 if method in MANY_STEPS else None,
        norm_layer="gn" if method in ("free_at", "grad_align") and optimizer == "engm" else "bn",
    ).resolve()
    found, expected = waits(cuda, config), EXPECTED.get(method, [])
    assert found == expected[: len(found)]


def test_attacks_that_wait_take_fewer_passes_for_it():
    shrinking = {name for name, expected in EXPECTED.items() if SHRINKS in expected}
    assert shrinking == {name for name, kind in METHODS.items() if kind.info.passes.remark.startswith("at most")}


@pytest.mark.parametrize(
    ("optimizer", "norm_layer"),
    [*((name, "bn") for name in OPTIMIZERS | CLOSURE_OPTIMIZERS), *((name, "gn") for name in WITH_NORMS)],
)
def test_optimizers(optimizer, norm_layer, short, cuda):
    options = ("inner_steps=2",) if optimizer in CLOSURE_OPTIMIZERS else ()
    config = short.override(optimizer=optimizer, optimizer_options=options, norm_layer=norm_layer, attack_steps=1)
    assert not waits(cuda, config.override(threat="l2", average="ema", label_smoothing=0.1).resolve())


def test_when_estimated_norms_wait(short, cuda):
    """In a fit to exact gradients, and where one example updates it.

    Between them all steps are plain, the same operations.
    """
    config = short.override(method="natural", optimizer="engm").resolve()
    components, batches = warmed_up(config)
    estimator = components.optimizer.norms
    estimator.refit_interval = 12
    plain = []
    for _ in range(14):
        waits = estimator.due or estimator.steps_since_fit % UPDATE_INTERVAL == 0
        assert estimator.is_plain != waits
        cuda.operations.clear()
        with Checks().at("here"), cuda.recorded() as found:
            loop.update(config, components, next(batches), 0)
        assert bool(found) == waits, (estimator.steps_since_fit, found)
        plain += [] if waits else [dict(cuda.operations)]
    assert len(plain) == 12
    assert all(operations == plain[0] for operations in plain)


def test_low_rank_norms_wait_for_their_directions(short, cuda):
    config = short.override(method="natural", optimizer="engm", norms="lowrank").resolve()
    assert waits(cuda, config) == ["aten._linalg_eigh.default: reads a value"]


@pytest.mark.parametrize(
    ("norm_layer", "kernels"), [("gn", {"conv_gradients"}), ("bn", {"conv_direct_sqnorm", "conv_gram_sqnorm"})]
)
def test_norms_of_convolutions_come_from_kernels(norm_layer, kernels, short, cuda):
    """From those that `conv_dispatch` runs on CUDA tensors."""
    waits(cuda, short.override(method="natural", optimizer="engm", norm_layer=norm_layer).resolve())
    assert cuda.operations.keys() & kernels


def test_rows_of_unequal_examples_are_moved_once(cuda):
    layout, rows = RowLayout.of(np.array([0, 1, 1]), 2), torch.rand(3, 4, device=DEVICE)
    layout.split(rows)
    with cuda.recorded() as found:
        layout.sums(rows)
    assert not found
