"""The benchmarks compare steps that return the same gradient; libraries that are not installed are skipped."""

import pytest
import torch
from baselines.per_example_libraries import STEPS
from torch.nn import functional as F

from pyengm.models import build
from pyengm.pergrad import per_example_grad_norms


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # of the libraries, about the newest torch
@pytest.mark.parametrize("name", [name for name in STEPS if name not in ("plain step", "single examples")])
def test_step_returns_the_gradient_of_single_examples(name):
    torch.manual_seed(0)
    model = build("resnet18", norm_layer="gn", width=8).double()
    x, y = torch.rand(4, 3, 32, 32, dtype=torch.float64), torch.arange(4)
    losses = F.cross_entropy(model(x), y, reduction="none")
    alpha = per_example_grad_norms(losses, model.parameters()).median().item()  # clips some examples, not all
    try:
        step = STEPS[name].build(model, x, y, alpha)
    except ImportError as error:
        pytest.skip(f"{name} cannot be imported: {error}")
    expected = STEPS["single examples"].build(model, x, y, alpha)()
    for _ in range(2):  # the second step starts from the state after the first
        for got, want in zip(step(), expected, strict=True):
            assert (got - want).norm() <= 1e-6 * want.norm()
