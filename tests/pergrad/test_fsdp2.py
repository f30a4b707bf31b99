"""fully_shard over two gloo processes, with half of the batch each, against one process with the whole batch."""

import contextlib
import copy
import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pyengm import per_example_grad_norms
from pyengm.errors import ConfigError, NonFiniteError, UnsupportedOperationError
from pyengm.optim import ENGM, OPTIMIZERS
from pyengm.pergrad import NormEstimator, clipped_backward, exact_norms, weighted_backward

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo"
)
WORLD, N, STEPS = 2, 6, 3


class ConvNet(nn.Module):
    """Convolutions with group norm; no size is a multiple of two, so shards are uneven, and some are empty."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 5, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(5, 5, 3, padding=1, bias=False), nn.GroupNorm(1, 5), nn.ReLU()) for _ in range(2)
        )
        self.gain = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.gain * x.mean((2, 3)))


class Block(nn.Module):
    """Attention with a bias that all blocks share, and an MLP, which is checkpointed if asked."""

    def __init__(self, width: int, checkpointed: bool):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width + 1), nn.GELU(), nn.Linear(2 * width + 1, width))
        self.checkpointed = checkpointed

    def forward(self, x, bias):
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=bias))
        h = self.norm2(x)
        return x + (checkpoint(self.mlp, h, use_reentrant=False) if self.checkpointed else self.mlp(h))


class Transformer(nn.Module):
    def __init__(self, checkpointed: bool = False):
        super().__init__()
        self.embedding = nn.Linear(4, 6)
        self.bias = nn.Parameter(torch.randn(4, 4) / 5)
        self.blocks = nn.ModuleList(Block(6, checkpointed) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.embedding(x.flatten(1).unflatten(1, (4, 4)))
        for block in self.blocks:
            x = block(x, self.bias)
        return self.head(self.norm(x).mean(1))


@dataclass
class Case:
    build: Callable[[], nn.Module]
    params: Callable[[nn.Module], Any] = lambda model: model
    blocks: bool = True  # whether each of model.blocks is sharded by itself, besides the root
    options: dict[str, Any] = field(default_factory=dict)  # of fully_shard
    inputs: bool = False  # whether the inputs require grad
    mesh: tuple[int, ...] = (WORLD,)


CASES = {
    "conv": Case(ConvNet),
    "conv, root alone": Case(ConvNet, nn.Module.parameters, blocks=False),
    "conv, gathered throughout": Case(ConvNet, nn.Module.named_parameters, options={"reshard_after_forward": False}),
    "conv, root freed too": Case(ConvNet, nn.Module.named_parameters, options={"reshard_after_forward": True}),
    "conv, replicated shards": Case(ConvNet, nn.Module.parameters, mesh=(WORLD, 1)),
    "conv, inputs": Case(ConvNet, nn.Module.parameters, inputs=True),
    "transformer": Case(Transformer, nn.Module.named_parameters),
    "transformer, inputs": Case(Transformer, nn.Module.parameters, inputs=True),
    "transformer, checkpointed": Case(lambda: Transformer(checkpointed=True), lambda m: dict(m.named_parameters())),
}


def fully_shard(*args, **options):
    from torch.distributed import fsdp  # not every torch has it

    return fsdp.fully_shard(*args, **options)


def network(case: Case, *, sharded: bool, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    model = case.build().to(dtype)
    if sharded:
        shard(model, case)
    return model


def shard(model: nn.Module, case: Case) -> None:
    names = ("replicate", "shard")[-len(case.mesh) :]
    mesh = dist.device_mesh.init_device_mesh("cpu", case.mesh, mesh_dim_names=names)
    for block in model.blocks if case.blocks else ():
        fully_shard(block, mesh=mesh, **case.options)
    fully_shard(model, mesh=mesh, **case.options)


def batch(seed: int, part: slice, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(N, 1, 4, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (N,), generator=generator)
    return x[part].to(dtype), y[part]


def losses_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y, reduction="none")


def part_of(rank: int) -> slice:
    return slice(rank * N // WORLD, (rank + 1) * N // WORLD)


def whole(tensors) -> Tensor:
    """The given tensors, sharded or not, as one vector; all processes call it."""
    return torch.cat([(t.full_tensor() if hasattr(t, "full_tensor") else t).detach().flatten() for t in tensors])


def grads(model: nn.Module) -> Tensor:
    return whole(p.grad for p in model.parameters())


def alpha_of(case: Case) -> float:
    """Clips about half of the examples of the first batch."""
    model = network(case, sharded=False)
    return exact_norms(losses_of(model, *batch(0, slice(None))), model).median().item() * 1.01


def run(case: Case, part: slice, *, sharded: bool) -> dict[str, Tensor]:
    """Norms, the clipped gradient and the weights after a few steps, of one part of the batch."""
    model, alpha, found = network(case, sharded=sharded), alpha_of(case), {}
    x, y = batch(0, part)
    x.requires_grad_(case.inputs)
    losses = losses_of(model, x, y)
    found["norms"] = per_example_grad_norms(losses, case.params(model))
    found["exact norms"] = exact_norms(losses, case.params(model))
    found["second call"] = per_example_grad_norms(losses, case.params(model))
    clipped_backward(losses, case.params(model), alpha)
    found["gradient"] = grads(model)
    clipped_backward(losses_of(model, x, y), case.params(model), alpha)
    found["accumulated"] = grads(model)
    model.zero_grad()
    optimizer = ENGM(model.parameters(), lr=0.3, momentum=0.9, weight_decay=1e-2, alpha=alpha)
    for step in range(STEPS):
        optimizer.zero_grad()
        x, y = batch(step, part)
        x.requires_grad_(case.inputs)
        used = optimizer.backward(losses_of(model, x, y), inputs=x if case.inputs else None)
        found[f"norms of step {step}"] = used.norms
        if case.inputs:
            found[f"inputs of step {step}"] = x.grad
        optimizer.step()
    found["weights"] = whole(model.parameters())
    return found


def torch_trains(case: Case) -> bool:
    """Old versions of torch cannot average the gradients of replicated shards on the CPU."""
    try:
        losses_of(network(case, sharded=True), *batch(0, slice(None))).mean().backward()
    except AssertionError:
        return False
    return True


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    found = {
        name: run(case, part_of(rank), sharded=True) if torch_trains(case) else None for name, case in CASES.items()
    }
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp2")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one(name, ranks):
    first, second = (found[name] for found in ranks)
    if first is None:
        pytest.skip("this torch does not train such a model itself")
    expected = run(CASES[name], slice(None), sharded=False)
    assert first.keys() == expected.keys()
    for key, value in expected.items():
        if "norms" in key or key == "second call":
            found = torch.cat([first[key], second[key]])
        elif key.startswith("inputs"):
            found = torch.cat([first[key], second[key]]) / WORLD
        else:
            assert first[key].equal(second[key])
            found = first[key]
        torch.testing.assert_close(found, value, rtol=1e-9, atol=1e-12, msg=lambda text, key=key: f"{key}: {text}")
    clipped = expected["norms"] > alpha_of(CASES[name])
    assert clipped.any()
    assert not clipped.all()
