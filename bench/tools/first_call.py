"""The price of the first calls of `clipped_backward` on a model, in plain steps, each in fresh processes.

    cd bench && python -m tools.first_call resnet18 "vit" --processes 5

Before the first call, the process takes plain steps of the model, and clips a model of one layer, which loads the
native code: what is left is what the engine does for a new model.
"""

import argparse
import json
from functools import partial
from statistics import median

import torch
from baselines.per_example_libraries import PLAIN, STEPS
from baselines.per_example_models import MODELS, Batch, Problem, class_losses, make
from torch import nn

from tools.interleaved_timing import format_quantiles, time_call
from tools.machine import describe_machine
from tools.memory import run_and_read

CALLS = 4
STEP = "pyengm, one pass"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=MODELS)
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--here", action="store_true", help="measure one model in this process, and print JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.here:
        print(json.dumps(measure(make(args.models[0]))))
        return
    print(describe_machine())
    for model in args.models:
        runs = [run_and_read("tools.first_call", model, "--here") for _ in range(args.processes)]
        calls = (format_quantiles(run[str(number)] for run in runs) for number in range(1, CALLS + 1))
        print(f"{model}: calls 1 to {CALLS} take {', '.join(calls)} plain steps", flush=True)


def measure(problem: Problem) -> dict[str, float]:
    """Plain steps by number of the call, from 1; every call has a new batch."""
    layer = Problem(nn.Linear(3, 2), class_losses, lambda: Batch((torch.rand(4, 3),), torch.zeros(4).long()), 4)
    STEPS[STEP].build(layer, 1.0)(layer.draw())
    plain, step = (STEPS[name].build(problem, 1.0) for name in (PLAIN, STEP))
    batches = [problem.draw() for _ in range(CALLS)]
    for batch in batches:
        plain(batch)
    calls = [time_call(partial(step, batch)) for batch in batches]
    unit = median(time_call(partial(plain, batch)) for batch in batches)
    return {str(number): seconds / unit for number, seconds in enumerate(calls, 1)}


if __name__ == "__main__":
    main()
