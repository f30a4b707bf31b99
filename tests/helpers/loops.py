"""Ways to train the network of pyengm/examples/problem.py, by name; run by torchrun, one file of weights per process.

torchrun --nproc-per-node 2 tests/helpers/loops.py LIBRARY FOLDER
"""

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def theta(net: nn.Module) -> Tensor:
    """All weights in one vector."""
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def example(name: str, *args, **options) -> nn.Module:
    return importlib.import_module(f"pyengm.examples.{name}").main(*args, **options)


def quiet() -> dict[str, bool]:
    return {"enable_progress_bar": False, "enable_model_summary": False}


def lightning_automatic() -> nn.Module:
    return example("lightning_module", **quiet())


def manual(backward: Callable) -> nn.Module:
    """Lightning's manual optimisation, with backward(module, optimizer, losses)."""
    module = importlib.import_module("pyengm.examples.lightning_module")

    class Manual(module.Classifier):
        def __init__(self, net):
            super().__init__(net)
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            x, y = batch
            optimizer = self.optimizers()
            optimizer.zero_grad()
            backward(self, optimizer, F.cross_entropy(self.net(x), y, reduction="none"))
            optimizer.step()

    return module.main(Manual, **quiet())


def lightning_manual() -> nn.Module:
    return manual(lambda module, optimizer, losses: module.manual_backward(losses))


def lightning_wrapper() -> nn.Module:
    """The optimiser's own method, through Lightning's wrapper, inside the forward pass of its DDP."""
    return manual(lambda module, optimizer, losses: optimizer.backward(losses))


WAYS: dict[str, dict[str, Callable[[], nn.Module]]] = {
    "torch": {"plain_loop": lambda: example("plain_loop")},
    "lightning": {
        "lightning_module": lightning_automatic,
        "lightning_manual": lightning_manual,
        "lightning_wrapper": lightning_wrapper,
    },
    "accelerate": {"accelerate_loop": lambda: example("accelerate_loop")},
    "transformers": {"hf_trainer": lambda: example("hf_trainer", disable_tqdm=True)},
}
"""Ways to train, by the library that they need and by name."""


def main(library: str, folder: str) -> None:
    torch.set_num_threads(1)
    weights = {name: theta(train()) for name, train in WAYS[library].items()}
    torch.save(weights, Path(folder) / f"{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
