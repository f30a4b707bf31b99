"""Two gloo processes with half of the batch each against one process with the whole batch, for every optimiser."""

import itertools

import pytest
import torch
from torch import distributed, nn
from torch.nn import functional as F

from pyengm.models import build
from pyengm.optim import CLOSURE_OPTIMIZERS, OPTIMIZERS

WORLD, STEPS, N = 2, 3, 8
OPTIONS = {
    "engm": {"alpha": 0.5},
    "ps_clip_sgd": {"alpha": 0.2},
    "mgnc": {"max_norm": 0.1},
    "aengm": {"alpha": 0.5, "tau": 2},
    "nengm": {"alpha": 0.05},
    "entropy_sgd": {"inner_steps": 2, "noise": 0.1},
    "entropy_sgd2": {"inner_steps": 2, "noise": 0.1, "gamma0": 0.5},
}
ALL = OPTIMIZERS | CLOSURE_OPTIMIZERS


def network() -> nn.Module:
    torch.manual_seed(0)
    return build("cnn4", width=4, image_size=8, in_channels=1, norm_layer="gn")


def losses_of(model: nn.Module, seed: int, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.rand(N, 1, 8, 8, generator=generator), torch.randint(0, 10, (N,), generator=generator)
    x = x[part].requires_grad_()
    return F.cross_entropy(model(x), y[part], reduction="none"), x


def train(name: str, wrap, part: slice) -> torch.Tensor:
    model = network()
    wrapped, optimizer = wrap(model), ALL[name](model.parameters(), **OPTIONS.get(name, {}))
    seeds = itertools.count()
    for _ in range(STEPS):
        if name in CLOSURE_OPTIMIZERS:
            optimizer.step(lambda: losses_of(wrapped, next(seeds), part)[0])
        else:
            optimizer.zero_grad()
            losses, x = losses_of(wrapped, next(seeds), part)
            optimizer.backward(losses, inputs=x)
            optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    part = slice(rank * N // WORLD, (rank + 1) * N // WORLD)
    torch.save({name: train(name, nn.parallel.DistributedDataParallel, part) for name in ALL}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason="this torch has no torch.distributed")
def test_two_processes_are_one(tmp_path):
    torch.multiprocessing.spawn(work, args=(str(tmp_path),), nprocs=WORLD)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD)]
    for name in ALL:
        whole = train(name, lambda model: model, slice(None))
        assert ranks[0][name].equal(ranks[1][name]), name
        torch.testing.assert_close(
            ranks[0][name], whole, rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
