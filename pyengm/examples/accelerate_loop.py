"""Accelerate: backward(accelerator, optimizer, losses) takes the place of accelerator.backward(losses.mean()).

python -m pyengm.examples.accelerate_loop
torchrun --nproc-per-node 2 -m pyengm.examples.accelerate_loop
"""

from accelerate import Accelerator  # pyright: ignore[reportMissingImports]
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import pyengm
from pyengm.examples.problem import ALPHA, BATCH, LR, digits, network, processes, report
from pyengm.integrations.accelerate import backward, unwrap


def main() -> nn.Module:
    """Trains for an epoch and returns the network."""
    accelerator, net = Accelerator(cpu=True), network()
    model, optimizer, loader = accelerator.prepare(
        net, pyengm.ENGM(net.parameters(), lr=LR, alpha=ALPHA), DataLoader(digits(), BATCH // processes())
    )
    for step, (x, y) in enumerate(loader):
        with accelerator.accumulate(model):
            losses = F.cross_entropy(model(x), y, reduction="none")
            backward(accelerator, optimizer, losses)
            optimizer.step()
            optimizer.zero_grad()
        if step % 4 == 3:
            report(losses, unwrap(optimizer).statistics())
    accelerator.end_training()
    return net


if __name__ == "__main__":
    main()
