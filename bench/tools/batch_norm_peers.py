"""What other libraries do with batch norm in training mode: a Markdown table.

    cd bench && python -m tools.batch_norm_peers

Each clips the gradients of the examples of one batch to their median norm, on a ResNet-18 with batch norm. The
reference is one backward pass per example through the whole batch, which counts what each loss owes to the statistics.
Libraries that are not installed have no row.
"""

import argparse
import warnings

import torch
from baselines import per_example_libraries
from baselines.per_example_models import Batch, Problem, class_losses
from torch import Tensor

from pyengm.models import build
from pyengm.pergrad import exact_norms

MESSAGE = 150  # characters of an error that are shown


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model = build("resnet18", norm_layer="bn", width=options.width).train()
    batch = Batch((torch.rand(options.batch_size, 3, 32, 32),), torch.arange(options.batch_size) % 10)
    problem = Problem(model, class_losses, lambda: batch, options.batch_size)
    norms = exact_norms(class_losses(model(*batch.inputs), batch.targets), model.parameters())
    alpha = norms.median().item()
    reference = _flat(per_example_libraries.paper_loop(problem, alpha)(batch))
    print("| by | outcome | error of the clipped gradient |")
    print("|---|---|---|", flush=True)
    for name, baseline in per_example_libraries.STEPS.items():
        if name == per_example_libraries.PLAIN:
            continue
        try:
            gradient = _flat(baseline.build(problem, alpha)(batch))
        except ModuleNotFoundError:
            continue
        except Exception as error:
            message = " ".join(str(error).split()).replace("|", "/")[:MESSAGE]
            print(f"| {name} | {type(error).__name__}: {message} | |", flush=True)
            continue
        difference = ((gradient - reference).norm() / reference.norm()).item()
        print(f"| {name} | a number | {difference:.1%} |", flush=True)


def _flat(gradients: list[Tensor]) -> Tensor:
    return torch.cat([g.detach().flatten().double() for g in gradients])


if __name__ == "__main__":
    main()
