"""The step of a run and the runner of its attack are chosen once, from the method, the optimiser and the options."""

import pytest
import torch
from torch import nn

from pyengm.attacks import EagerRunner
from pyengm.methods import METHODS
from pyengm.optim import ENGM, MSGD, EntropySGD
from pyengm.training import build_components
from pyengm.training.steps import build_runner, build_step
from pyengm.training.steps.closure_step import ClosureStep
from pyengm.training.steps.cuda_graph_step import CudaGraphStep
from pyengm.training.steps.runners import CompiledRunner, CudaGraphRunner
from pyengm.training.steps.train_step import EagerStep


@pytest.mark.parametrize(
    ("method", "optimizer", "capture_size", "expected"),
    [
        ("pgd_at", MSGD, None, EagerStep),
        ("pgd_at", MSGD, 4, CudaGraphStep),
        ("pgd_at", ENGM, 4, CudaGraphStep),
        ("pgd_at_awp", MSGD, 4, EagerStep),
        ("free_at", MSGD, None, EagerStep),
        ("pgd_at", EntropySGD, None, ClosureStep),
        ("pgd_at", EntropySGD, 4, ClosureStep),
    ],
)
def test_step(method, optimizer, capture_size, expected):
    model = nn.Linear(3, 2)
    built = build_step(METHODS[method](0.1), model, optimizer(model.parameters()), capture_size=capture_size)
    assert type(built) is expected
    assert built.batches_per_update == (20 if optimizer is EntropySGD else 1)


def test_no_captured_step_with_a_scaler():
    model = nn.Linear(3, 2)
    scaler = torch.amp.GradScaler("cpu")
    built = build_step(METHODS["pgd_at"](0.1), model, MSGD(model.parameters()), scaler=scaler, capture_size=4)
    assert isinstance(built, EagerStep)
    assert built.scaler is scaler


def test_runner():
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    assert type(build_runner(model)) is EagerRunner
    assert type(build_runner(model, capture_size=4)) is CudaGraphRunner
    compiled = build_runner(model, compile_model=True, capture_size=4)
    assert isinstance(compiled, CompiledRunner)
    assert type(compiled.runner) is CudaGraphRunner
    assert compiled.module_for(model) is compiled.compiled
    assert compiled.module_for(other) is other


@pytest.mark.parametrize(("optimizer", "expected"), [("msgd", EagerStep), ("entropy_sgd", ClosureStep)])
def test_of_a_run(tiny, optimizer, expected):
    components = build_components(tiny.override(optimizer=optimizer).resolve())
    assert type(components.step) is expected
    assert components.step.model is components.network
