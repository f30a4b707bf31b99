"""How many operations that launch kernels a training step takes on a GPU, by part and by layer: Markdown.

    cd bench && python -m tools.launches --model resnet18 --image-size 32

Operations are counted on pretended CUDA tensors (pretended_cuda.py). One of torch's may launch several kernels, and a
convolution chooses its own; views and allocations launch none. The choices that depend on shapes are the same for every
batch size, so a small batch is enough.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch import nn
from torch.nn import functional as F

import pyengm
from pyengm.optim import ENGM, MSGD, PerExampleSGD
from pyengm.pergrad import backward as pergrad_backward
from pyengm.pergrad import engine
from pyengm.pergrad.batch_norm.regression import Fit
from pyengm.utils.checks import Checks
from tools.machine import describe_machine
from tools.pretended_cuda import DEVICE, PretendedCuda

N, CLASSES = 4, 10
WARM_UP = 3  # steps: the first one fits norms, none after it does
SHOWN = 3  # layers that a row of the table names
LAYERS = "norms of single layers"
PARTS = (
    "forward pass",
    "backward passes",
    LAYERS,
    "norms, together",
    "estimate under batch norm",
    "weights, checks",
    "weighted gradient",
    "optimiser",
    "size of the gradient, for logs",
)


class Parts:
    """The operations of a step by part, each counted for the innermost part that it runs in."""

    def __init__(self, mode: PretendedCuda):
        self.mode, self.by_part, self._current, self._seen = mode, Counter[str](), "", 0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        outer = self._switch(name)
        try:
            yield
        finally:
            self._switch(outer)

    def _switch(self, name: str) -> str:
        total = self.mode.operations.total()
        self.by_part[self._current] += total - self._seen
        self._seen, before, self._current = total, self._current, name
        return before

    def within(self, part: Callable[..., str], function: Callable) -> Callable:
        """The function, counted for part(*arguments)."""

        def counted(*args, **kwargs):
            with self.part(part(*args)):
                return function(*args, **kwargs)

        return counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--width", type=int)
    options = parser.parse_args()
    runs = {
        "plain": count(options, "gn", MSGD),
        "ENGM, group norm": count(options, "gn", ENGM),
        "ENGM, batch norm": count(options, "bn", ENGM),
    }
    print(f"{options.model}, {options.image_size}x{options.image_size} images, float32: {describe_machine()}\n")
    print_parts(runs)
    print_layers(runs)


def count(options: argparse.Namespace, norm_layer: str, kind: type[PerExampleSGD]) -> Counter[str]:
    """The operations of one step by part; those of single layers by the name of the layer."""
    torch.manual_seed(0)
    size, sizes = options.image_size, {} if options.width is None else {"width": options.width}
    model = pyengm.models.build(
        options.model, num_classes=CLASSES, in_channels=3, image_size=size, norm_layer=norm_layer, **sizes
    )
    with PretendedCuda() as mode:
        model.to(DEVICE)
        optimizer = kind(model.parameters(), **({"alpha": 1.0} if kind is ENGM else {}))
        x, y = torch.rand(N, 3, size, size, device=DEVICE), torch.arange(N, device=DEVICE) % CLASSES
        for _ in range(WARM_UP):
            step(Parts(mode), model, optimizer, x, y)
            if isinstance(optimizer, ENGM):
                optimizer.norms.refit_interval = 100
        mode.operations.clear()
        parts = Parts(mode)
        step(parts, model, optimizer, x, y)
    return parts.by_part


def step(parts: Parts, model: nn.Module, optimizer: PerExampleSGD, x: torch.Tensor, y: torch.Tensor) -> None:
    """One step without an attack."""
    names = [name for name, _ in model.named_parameters()]
    with ExitStack() as stack:
        for owner, name, part in (
            (engine._Collector, "visit", lambda collector, index, _: layer(collector, index, names)),
            (engine.PerExampleBackward, "_collect", lambda *_: "backward passes"),
            (engine.PerExampleBackward, "squares", lambda *_: "norms, together"),
            (engine.PerExampleBackward, "deliver", lambda *_: "weighted gradient"),
            (Fit, "squares", lambda *_: "estimate under batch norm"),
            (pergrad_backward, "_weights", lambda *_: "weights, checks"),
            (torch.autograd, "backward", lambda *_: "backward passes"),
            (PerExampleSGD, "_count_grads", lambda *_: "size of the gradient, for logs"),
        ):
            stack.enter_context(mock.patch.object(owner, name, parts.within(part, getattr(owner, name))))
        optimizer.zero_grad()
        with parts.part("forward pass"):
            losses = F.cross_entropy(model(x), y, reduction="none")
        with parts.part("weights, checks"), Checks().at("the step"):
            optimizer.backward(losses)
        with parts.part("optimiser"):
            optimizer.step()


def layer(collector: engine._Collector, index: int, names: list[str]) -> str:
    """The name of the layer whose gradients arrive, as its parameters have it."""
    use = collector.uses.get(index)
    if use is None:
        return "norms, together"
    first = collector.backward.usage.weights[min(use.slots.values())].leaves[0]
    return "." + names[first].rpartition(".")[0]


def print_parts(runs: dict[str, Counter[str]]) -> None:
    print(f"| operations of a step | {' | '.join(runs)} |")
    print(f"|---|{'--:|' * len(runs)}")
    for part in PARTS:
        cells = [run[part] + (of_layers(run) if part == LAYERS else 0) for run in runs.values()]
        print(f"| {part} | {' | '.join(str(cell or '') for cell in cells)} |")
    print(f"| all | {' | '.join(str(run.total()) for run in runs.values())} |\n")


def of_layers(run: Counter[str]) -> int:
    return sum(number for name, number in run.items() if name.startswith("."))


def print_layers(runs: dict[str, Counter[str]]) -> None:
    """One row for all layers of the same numbers."""
    columns = list(runs)[1:]
    layers = sorted({name for run in runs.values() for name in run if name.startswith(".")})
    rows: dict[tuple[int, ...], list[str]] = {}
    for name in layers:
        rows.setdefault(tuple(runs[column][name] for column in columns), []).append(f"`{name[1:]}`")
    print(f"| operations for the norms of one layer | {' | '.join(columns)} |")
    print(f"|---|{'--:|' * len(columns)}")
    for numbers, members in rows.items():
        more = f" and {len(members) - SHOWN} more" if len(members) > SHOWN else ""
        print(f"| {', '.join(members[:SHOWN])}{more} | {' | '.join(map(str, numbers))} |")


if __name__ == "__main__":
    main()
