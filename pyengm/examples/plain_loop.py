"""A plain loop: backward(losses) takes the place of losses.mean().backward().

    python -m pyengm.examples.plain_loop
    torchrun --nproc-per-node 2 -m pyengm.examples.plain_loop

With several processes, DistributedDataParallel averages the clipped gradients as it does any others.
"""

from torch import distributed, nn
from torch.nn import functional as F

import pyengm
from pyengm.examples.problem import ALPHA, LR, loader, network, processes, report


def main() -> nn.Module:
    """Trains for an epoch and returns the network."""
    several, net = processes() > 1, network()
    if several:
        distributed.init_process_group("gloo")
    model = nn.parallel.DistributedDataParallel(net) if several else net
    optimizer = pyengm.ENGM(net.parameters(), lr=LR, alpha=ALPHA)
    for step, (x, y) in enumerate(loader()):
        losses = F.cross_entropy(model(x), y, reduction="none")
        optimizer.zero_grad()
        optimizer.backward(losses)
        optimizer.step()
        if step % 4 == 3:
            report(losses, optimizer.statistics())
    if several:
        distributed.destroy_process_group()
    return net


if __name__ == "__main__":
    main()
