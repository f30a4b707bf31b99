"""The clipped gradient by all libraries in units of a plain step, in turn, on models whose batches differ in zeros.

    pip install timm opacus backpack-for-pytorch
    pip install transformers git+https://github.com/awslabs/fast-differential-privacy
    cd bench && python -m tools.compare_libraries "vit" "gpt" --rounds 9

Every round draws a new batch (images or texts, dropped paths, padding), and takes a step by each library on it. A
library is compared with pyengm first; one that raises, or whose gradient differs, is listed with its error.
"""

import argparse
import copy
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from baselines.per_example_libraries import PLAIN, STEPS, Step
from baselines.per_example_models import MODELS, Problem, make
from torch import Tensor, nn

from pyengm.pergrad import per_example_grad_norms
from tools.interleaved_timing import format_quantiles, time_call
from tools.machine import describe_machine

SLOW = ("the paper's loop", "BackPACK gradients")  # on ResNet-18 more than ten plain steps
TOLERANCE = 1e-4  # of the gradient's relative error in float32, whose rounding adds up to some 1e-6
COMPARED = 2  # batches; the second starts from what a library has kept of the first
WARM_UP = 2  # rounds
MESSAGE = 110  # characters of an error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=MODELS)
    parser.add_argument("--libraries", nargs="+", choices=STEPS, default=[name for name in STEPS if name not in SLOW])
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(describe_machine())
    print("versions:", ", ".join(sorted({found for name in args.libraries if (found := _version(name))})))
    for model in args.models:
        print("\n".join(["", *compare(model, make(model), args.libraries, args.rounds)]), flush=True)


def compare(title: str, problem: Problem, libraries: list[str], rounds: int) -> list[str]:
    """Times the libraries on a problem.

    Args:
        title: Heading of the table.
        problem: Model and batches.
        libraries: Names in `STEPS`.
        rounds: Steps of each library that count.

    Returns:
        The lines of a table: median of the ratios to the plain step by library (p20 to p80), or its error.
    """
    cells: dict[str, str] = {}
    steps: dict[str, Step] = {}
    alpha = median_norm(problem)
    for name in libraries:
        try:
            error = 0.0 if name == PLAIN else gradient_error(name, problem)
            if error < TOLERANCE:
                steps[name] = STEPS[name].build(problem, alpha)
            else:
                cells[name] = f"wrong: relative error {error:.1g}"
        except Exception as error:  # whatever a library raises is its result
            cells[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:MESSAGE]
    times = _time_in_turn({PLAIN: STEPS[PLAIN].build(problem, alpha), **steps}, problem, rounds)
    unit = times[PLAIN]
    for name in steps:
        cells[name] = format_quantiles([own / one for own, one in zip(times[name], unit, strict=True)])
    cells[PLAIN] = f"{1e3 * median(unit):.0f} ms"
    width = max(map(len, libraries))
    return [f"{title}, n = {problem.n}"] + [f"{name.ljust(width)}  {cells[name]}" for name in libraries]


def gradient_error(name: str, problem: Problem) -> float:
    """The largest relative error of a library's gradient against pyengm's on a few batches, in float32."""
    # Rounding can change the sign of a ReLU's input, which alone changes a gradient by some 1e-3.
    smooth = Problem(_without_relu(copy.deepcopy(problem.model)), problem.losses, problem.draw, problem.n)
    alpha = median_norm(smooth)
    step, ours = (STEPS[which].build(smooth, alpha) for which in (name, "pyengm, two passes"))
    errors = []
    for _ in range(COMPARED):
        batch = smooth.draw()
        gradient, expected = _flat(step(batch)), _flat(ours(batch))
        errors.append(((gradient - expected).norm() / expected.norm()).item())
    return max(errors)


def in_pairs(name: str, problem: Problem) -> tuple[Callable[[], object], Callable[[], object]]:
    """A library's step and the plain step on the same batch; the plain step, which runs first, takes the next batch."""
    alpha = median_norm(problem)
    step, plain = (STEPS[which].build(problem, alpha) for which in (name, PLAIN))
    batch = problem.draw()

    def unit() -> object:
        nonlocal batch
        batch = problem.draw()
        return plain(batch)

    return lambda: step(batch), unit


def median_norm(problem: Problem) -> float:
    """The median norm of a batch: as alpha it clips half of the examples."""
    batch = problem.draw()
    params = [p for p in problem.model.parameters() if p.requires_grad]
    losses = problem.losses(problem.model(*batch.inputs), batch.targets)
    return per_example_grad_norms(losses, params).median().item()


def _time_in_turn(steps: dict[str, Step], problem: Problem, rounds: int) -> dict[str, list[float]]:
    """Seconds by library and round; every round starts with another library."""
    names = list(steps)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(WARM_UP + rounds):
        batch = problem.draw()
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(time_call(partial(steps[name], batch)))
    return {name: seconds[WARM_UP:] for name, seconds in times.items()}


def _version(name: str) -> str | None:
    try:
        return STEPS[name].version()
    except ImportError:
        return None


def _without_relu(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        setattr(module, name, nn.SiLU() if isinstance(child, nn.ReLU) else _without_relu(child))
    return module


def _flat(gradient: list[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in gradient])


if __name__ == "__main__":
    main()
