"""fully_shard over two gloo processes, with half of the batch each, against one process with the whole batch."""

import contextlib
import copy
import functools
import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from pyengm import per_example_grad_norms
from pyengm.analysis import norm_errors
from pyengm.attacks import PGD
from pyengm.attacks.model_state import attack_mode
from pyengm.errors import ConfigError, UnsupportedOperationError
from pyengm.methods import AWP, PGDAT, SAM
from pyengm.optim import CLOSURE_OPTIMIZERS, ENGM, OPTIMIZERS, Muon
from pyengm.pergrad import NORMS, NormEstimator, clipped_backward, exact_norms
from pyengm.pergrad.autograd_graph import PASSED
from pyengm.pergrad.fsdp import is_sharded
from pyengm.utils.distributed import full_tensor

pytestmark = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo")
WORLD, N, STEPS = 2, 8, 3


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
    needs: str = ""


CASES = {
    "conv": Case(ConvNet),
    "conv, root alone": Case(ConvNet, nn.Module.parameters, blocks=False),
    "conv, gathered throughout": Case(ConvNet, nn.Module.named_parameters, options={"reshard_after_forward": False}),
    "conv, root freed too": Case(ConvNet, nn.Module.named_parameters, options={"reshard_after_forward": True}),
    "conv, replicated shards": Case(ConvNet, nn.Module.parameters, mesh=(WORLD, 1)),
    "conv, inputs": Case(ConvNet, nn.Module.parameters, inputs=True),
    "transformer": Case(Transformer, nn.Module.named_parameters),
    "transformer, inputs": Case(Transformer, nn.Module.parameters, inputs=True),
    "transformer, checkpointed": Case(
        lambda: Transformer(checkpointed=True), lambda model: dict(model.named_parameters()), needs="checkpointed"
    ),
}


def fully_shard(*args, **options):
    return importlib.import_module("torch.distributed.fsdp").fully_shard(*args, **options)


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


def part_of(rank: int, world: int = WORLD) -> slice:
    return slice(rank * N // world, (rank + 1) * N // world)


def whole(tensors) -> Tensor:
    """The given tensors, sharded or not, as one vector; all processes call it."""
    return torch.cat([full_tensor(t).detach().flatten() for t in tensors])


def grads(model: nn.Module) -> Tensor:
    return whole(p.grad for p in model.parameters() if p.grad is not None)


def alpha_of(case: Case) -> float:
    """Clips about half of the examples of the first batch."""
    model = network(case, sharded=False)
    return exact_norms(losses_of(model, *batch(0, slice(None))), model).median().item() * 1.01


def steps(model, optimizer, part, numbers=range(STEPS), loss=None) -> Tensor:
    """The parameters after some steps."""
    for number in numbers:
        x, y = batch(number, part)
        x.requires_grad_()
        optimizer.zero_grad()
        optimizer.backward((loss or losses_of)(model, x, y), inputs=x)
        optimizer.step()
    return whole(model.parameters())


def run(case: Case, part: slice, *, sharded: bool) -> dict[str, Tensor]:
    """Norms, the clipped gradient and the weights after a few steps, of one part of the batch."""
    model, alpha, found = network(case, sharded=sharded), alpha_of(case), {}
    x, y = batch(0, part)
    x.requires_grad_(case.inputs)
    losses = losses_of(model, x, y)
    found["norms"] = per_example_grad_norms(losses, case.params(model))
    found["exact norms"] = exact_norms(losses, case.params(model))
    found["norms again"] = per_example_grad_norms(losses, case.params(model))
    clipped_backward(losses, case.params(model), alpha)
    found["gradient"] = grads(model)
    clipped_backward(losses_of(model, x, y), case.params(model), alpha)
    found["accumulated"] = grads(model)
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


def optimiser(name: str, part: slice, *, sharded: bool) -> Tensor:
    options = {"engm": {"alpha": math.inf}, "mgnc": {"max_norm": 0.1}, "aengm": {"alpha": 0.5, "tau": 2}}
    model = network(CASES["conv"], sharded=sharded)
    optimizer = OPTIMIZERS[name](model.parameters(), **options.get(name, {}))
    found = steps(model, optimizer, part)
    total = optimizer.statistics().get("total_norm")
    return found if total is None else torch.cat([found, found.new_tensor([total])])


def trades(part: slice, *, sharded: bool) -> Tensor:
    """Two forward passes before one backward pass."""

    def loss(model, x, y):
        clean, moved = model(x.detach()), model(x + 0.1 * x.flip(-1))
        divergence = F.kl_div(moved.log_softmax(1), clean.softmax(1), reduction="none").sum(1)
        return F.cross_entropy(clean, y, reduction="none") + 6 * divergence

    model = network(CASES["transformer"], sharded=sharded)
    return steps(model, ENGM(model.parameters(), alpha=0.5), part, loss=loss)


def attack(part: slice, *, sharded: bool) -> Tensor:
    """PGD freezes the parameters, and a pass without gradients leaves those of the root whole."""
    model = network(CASES["transformer"], sharded=sharded)

    def loss(model, x, y):
        x = PGD(eps=0.1, step_size=0.04, steps=2, random_start=False)(model, x.detach(), y)
        with attack_mode(model, "eval"), torch.no_grad():
            model(x)
        return losses_of(model, x, y)

    optimizer = ENGM(model.parameters(), alpha=0.5)
    for number in range(STEPS):
        optimizer.zero_grad()
        optimizer.backward(loss(model, *batch(number, part)))
        optimizer.step()
    return whole(model.parameters())


def frozen_layers(part: slice, *, sharded: bool) -> Tensor:
    model = network(CASES["transformer"], sharded=False)
    model.blocks[0].requires_grad_(False)
    model.blocks[1].qkv.requires_grad_(False)
    if sharded:
        shard(model, CASES["transformer"])
    return steps(model, ENGM([p for p in model.parameters() if p.requires_grad], alpha=0.5), part)


def two_roots(part: slice, *, sharded: bool) -> Tensor:
    torch.manual_seed(0)
    models = nn.ModuleList([nn.Linear(16, 5).double(), nn.Linear(5, 3).double()])
    if sharded:
        for model in models:
            fully_shard(model, mesh=dist.device_mesh.init_device_mesh("cpu", (WORLD,)))

    def loss(models, x, y):
        return F.cross_entropy(models[1](models[0](x.flatten(1)).tanh()), y, reduction="none")

    return steps(models, ENGM(models.parameters(), alpha=0.5), part, loss=loss)


def without_sync(part: slice, *, sharded: bool) -> Tensor:
    """Gradients that fully_shard adds up before it reduces them."""
    model = network(CASES["transformer"], sharded=sharded)
    optimizer = ENGM(model.parameters(), alpha=0.5)
    for number in range(2):
        if sharded:
            model.set_requires_gradient_sync(number == 1)
            model.set_is_last_backward(number == 1)
        optimizer.backward(losses_of(model, *batch(number, part)), accumulate=2)
    return grads(model)


def offloaded(part: slice, *, sharded: bool) -> Tensor:
    options = {}
    if sharded:
        options["offload_policy"] = importlib.import_module("torch.distributed.fsdp").CPUOffloadPolicy(pin_memory=False)
    model = network(Case(Transformer, options=options), sharded=sharded)
    return steps(model, ENGM(model.parameters(), alpha=0.5), part)


def after_errors(part: slice, *, sharded: bool) -> Tensor:
    """A call that raised leaves nothing behind: what was gathered for it is freed, and hooks work again."""
    model = network(CASES["transformer"], sharded=sharded)
    optimizer = ENGM(model.parameters(), alpha=0.5)
    for number in range(STEPS):
        optimizer.zero_grad()
        x, y = batch(number, part)
        losses = losses_of(model, x, y)
        with pytest.raises(UnsupportedOperationError):
            optimizer.backward((losses - losses.mean()) ** 2)
        if sharded:
            assert all(is_sharded(p) for p in model.parameters())
        optimizer.backward(losses_of(model, x, y))
        optimizer.step()
    return whole(model.parameters())


def resumed(part: slice, *, sharded: bool) -> Tensor:
    """State of model and optimiser, saved and loaded."""
    model = network(CASES["transformer"], sharded=sharded)
    optimizer = ENGM(model.parameters(), alpha=0.5)
    steps(model, optimizer, part, range(2))
    states = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    model = network(CASES["transformer"], sharded=sharded)
    optimizer = ENGM(model.parameters(), alpha=0.1)
    model.load_state_dict(states[0])
    optimizer.load_state_dict(states[1])
    return steps(model, optimizer, part, range(2, 4))


SCENARIOS = {
    **{f"optimiser {name}": functools.partial(optimiser, name) for name in sorted(OPTIMIZERS) if name != "muon"},
    **{
        f.__name__: f
        for f in (
            trades,
            attack,
            frozen_layers,
            two_roots,
            without_sync,
            offloaded,
            after_errors,
            resumed,
        )
    },
}


def different_batches(rank: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of different sizes: processes meet new graphs, whose first calls take more passes, at other times."""
    model, alone, pairs = network(CASES["transformer"], sharded=True), network(CASES["transformer"], sharded=False), []
    for number, sizes in enumerate([(3, 3), (3, 2), (1, 3)]):
        model.zero_grad()
        clipped_backward(losses_of(model, *batch(number, slice(0, sizes[rank]))), model, 0.5)
        each = []
        for size in sizes:
            alone.zero_grad()
            clipped_backward(losses_of(alone, *batch(number, slice(0, size))), alone, 0.5)
            each.append(grads(alone))
        pairs.append((grads(model), sum(each) / WORLD))
    return pairs


def batch_norm(rank: int) -> list[tuple[Tensor, Tensor]]:
    """The same as under DistributedDataParallel for every kind of norms."""
    pairs = []
    for kind in NORMS:
        weights = []
        for sharded in (True, False):
            torch.manual_seed(0)
            layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
            model = nn.Sequential(*layers).double()
            mesh = dist.device_mesh.init_device_mesh("cpu", (WORLD,))
            wrapped = fully_shard(model, mesh=mesh) if sharded else DistributedDataParallel(model)
            optimizer = ENGM(model.parameters(), alpha=0.5, norms=kind)
            torch.manual_seed(1)  # of the estimates
            for number in range(2):
                optimizer.zero_grad()
                x, y = batch(number, slice(None))
                optimizer.backward(losses_of(model if sharded else wrapped, x + rank, y))
                optimizer.step()
            weights.append(whole(model.parameters()))
        pairs.append(tuple(weights))
    return pairs


def half_precision(rank: int) -> list[tuple[Tensor, Tensor]]:
    """bfloat16 parameters in the graph: the gradient is that of a plain pass, norms are as exact as bfloat16."""
    policy = importlib.import_module("torch.distributed.fsdp").MixedPrecisionPolicy
    pairs = []
    for options in ({"param_dtype": torch.bfloat16}, {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32}):
        case = Case(Transformer, options={"mp_policy": policy(**options)})
        model = network(case, sharded=True, dtype=torch.float32)
        x, y = batch(0, part_of(rank), torch.float32)
        exact = exact_norms(losses_of(model, x, y), model)
        used = clipped_backward(losses_of(model, x, y), model, 1.0)
        torch.testing.assert_close(used.norms, exact, rtol=1e-2, atol=0)
        found = grads(model)
        model.zero_grad()
        losses = losses_of(model, x, y)
        losses.backward((used.weights / len(losses)).to(losses.dtype))
        pairs.append((found, grads(model)))
    return pairs


def scaler(rank: int) -> list[tuple[Tensor, Tensor]]:
    """A gradient that is nan in one process makes all of them skip the step."""
    model = network(CASES["transformer"], sharded=True, dtype=torch.float32)
    optimizer, scaler, seen = ENGM(model.parameters(), alpha=0.5), torch.amp.GradScaler("cpu", init_scale=4.0), []
    for number in range(3):
        optimizer.zero_grad()
        losses = losses_of(model, *batch(number, part_of(rank), torch.float32))
        optimizer.backward(losses + (0 * losses).sqrt() if (number, rank) == (1, 0) else losses, scaler=scaler)
        scaler.step(optimizer)
        scaler.update()
        seen.append((scaler.get_scale(), whole(model.parameters()).norm()))
    scales, norms = zip(*seen, strict=True)
    assert norms[1] == norms[0] != norms[2]
    return [(torch.tensor(scales), torch.tensor([4.0, 2.0, 2.0]))]


PAIRS = {f.__name__: f for f in (different_batches, batch_norm, half_precision, scaler)}


FOUR = {
    "freed to smaller shards": Case(Transformer, nn.Module.parameters, mesh=(4,), options={"reshard_after_forward": 2}),
    "replicated shards": Case(ConvNet, nn.Module.parameters, mesh=(2, 2)),
}


def torch_trains(case: Case) -> bool:
    """Old versions of torch average no gradients of replicated shards on the CPU, and recompute checkpoints once."""
    if "checkpointed" in case.needs and not hasattr(torch.utils.checkpoint, "GraphExecGroup"):
        return False
    try:
        losses_of(network(case, sharded=True), *batch(0, slice(None))).mean().backward()
    except AssertionError:
        return False
    return True


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    with process_group(folder, rank, WORLD):
        cases = {
            name: run(case, part_of(rank), sharded=True) if torch_trains(case) else None for name, case in CASES.items()
        }
        scenarios = {name: f(part_of(rank), sharded=True) for name, f in SCENARIOS.items()}
        pairs = {name: f(rank) for name, f in PAIRS.items()}
        torch.save((cases, scenarios, pairs), f"{folder}/{rank}.pt")


def work_of_four(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    with process_group(folder, rank, 4):
        cases = {
            name: run(case, part_of(rank, 4), sharded=True) if torch_trains(case) else None
            for name, case in FOUR.items()
        }
        torch.save(cases, f"{folder}/{rank}.pt")


@contextlib.contextmanager
def process_group(folder, rank=0, world=1):
    options = {"rank": rank, "world_size": world, "timeout": timedelta(seconds=60)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", **options)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp2")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


def close(found: Tensor, expected: Tensor, what: str) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12, msg=lambda text: f"{what}: {text}")


def compare(case: Case, ranks: list[dict[str, Tensor] | None]) -> None:
    """What every process found, with one process that has the whole batch."""
    if ranks[0] is None:
        pytest.skip("this torch does not train such a model")
    expected = run(case, slice(None), sharded=False)
    for key, value in expected.items():
        found = [each[key] for each in ranks]
        if "norms" in key:
            close(torch.cat(found), value, key)
        elif "inputs" in key:
            close(torch.cat(found) / len(ranks), value, key)
        else:
            assert all(each.equal(found[0]) for each in found)
            close(found[0], value, key)
    clipped = expected["norms"] > alpha_of(case)
    assert clipped.any()
    assert not clipped.all()


class TestTwoProcesses:
    @pytest.mark.parametrize("name", CASES)
    def test_models(self, name, ranks):
        compare(CASES[name], [cases[name] for cases, _, _ in ranks])

    @pytest.mark.parametrize("name", SCENARIOS)
    def test_training(self, name, ranks):
        first, second = (scenarios[name] for _, scenarios, _ in ranks)
        assert first.equal(second)
        close(first, SCENARIOS[name](slice(None), sharded=False), name)

    @pytest.mark.parametrize("name", PAIRS)
    def test_pairs(self, name, ranks):
        for _, _, pairs in ranks:
            for found, expected in pairs[name]:
                close(found, expected, name)


@pytest.mark.slow
def test_four_processes(tmp_path):
    torch.multiprocessing.spawn(work_of_four, (str(tmp_path),), nprocs=4)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(4)]
    for name, case in FOUR.items():
        compare(case, [cases[name] for cases in ranks])


def test_names_of_torch():
    groups = importlib.import_module("torch.distributed.fsdp._fully_shard._fsdp_param_group")
    assert groups.RegisterPostBackwardFunction.__name__ + "Backward" in PASSED


@pytest.fixture
def alone(tmp_path):
    """A group of one process, and a mesh of it."""
    with process_group(tmp_path):
        yield dist.device_mesh.init_device_mesh("cpu", (1,))


class TestOneProcess:
    def test_is_as_without_sharding(self, alone):
        x, y = batch(0, slice(None))
        model, plain = network(CASES["conv"], sharded=False), network(CASES["conv"], sharded=False)
        fully_shard(model, mesh=alone)
        for each in (model, plain):
            clipped_backward(losses_of(each, x, y), each.parameters(), 0.4)
        close(grads(model), grads(plain), "gradient")

    def test_norms_leave_modules_as_they_were(self, alone):
        model, (x, y) = network(CASES["conv"], sharded=False), batch(0, slice(None))
        fully_shard(model.blocks[0], mesh=alone)
        fully_shard(model, mesh=alone)
        losses = losses_of(model, x, y)
        before = [id(p) for p in model.parameters()]
        per_example_grad_norms(losses, model)
        assert [id(p) for p in model.parameters()] == before
        assert all(p.grad is None for p in model.parameters())
        losses.mean().backward()
        assert all(is_sharded(p) and p.grad is not None for p in model.parameters())

    def test_sharded_parameter_in_the_graph(self, alone):
        model, (x, y) = fully_shard(network(CASES["conv"], sharded=False), mesh=alone), batch(0, slice(None))
        penalty = full_tensor(model.head.weight.square().sum())
        for call in (per_example_grad_norms, exact_norms, lambda *given: clipped_backward(*given, 1.0)):
            with pytest.raises(UnsupportedOperationError, match=r"depend on a sharded parameter.*weight_decay"):
                call(losses_of(model, x, y) + penalty, list(model.parameters()))

    def test_frozen_when_gathered(self, alone):
        model, (x, y) = fully_shard(network(CASES["conv"], sharded=False), mesh=alone), batch(0, slice(None))
        params = list(model.parameters())
        for p in params[1:]:
            p.requires_grad_(False)
        losses = losses_of(model, x, y)
        for p in params:
            p.requires_grad_(True)
        with pytest.raises(ValueError, match=r"stem.*was frozen when fully_shard gathered it"):
            clipped_backward(losses, model, 1.0)
        clipped_backward(losses_of(model, x, y), model, 1.0)  # it is freed after an error
        assert all(p.grad is not None for p in params)

    @pytest.mark.filterwarnings("ignore:FSDP2-wrapped module", "ignore:at every call")
    def test_pass_that_no_hook_sees(self, alone):
        """torch drops the hooks of a view that is changed in place."""
        model = fully_shard(nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3))).double(), mesh=alone)
        output = model(torch.rand(5, 4, dtype=torch.float64))
        output += 1
        with pytest.raises(RuntimeError, match=r"gradient of parameter 0\.weight was not reduced.*clone"):
            clipped_backward(output.square().sum((1, 2)), model, 1.0)

    def test_tensor_parallel(self, alone):
        distribute_tensor = importlib.import_module("torch.distributed.tensor").distribute_tensor
        model = nn.Linear(4, 3)
        model.weight = nn.Parameter(distribute_tensor(model.weight.detach(), alone))
        with pytest.raises(UnsupportedOperationError, match="parameter weight is a DTensor that fully_shard did not"):
            clipped_backward(torch.ones(3, requires_grad=True) * 2, model, 1.0)
        for kind in OPTIMIZERS.values():
            with pytest.raises(ConfigError, match="DTensor that fully_shard did not"):
                kind(model.parameters())

    @pytest.mark.filterwarnings("ignore:FSDP is switching")
    @pytest.mark.parametrize("own", [True, False])
    def test_fsdp1(self, own, alone):
        wrap = importlib.import_module("torch.distributed.fsdp").FullyShardedDataParallel
        model = wrap(nn.Linear(4, 3), use_orig_params=own, device_id=torch.device("cpu"))
        losses = model(torch.rand(5, 4)).square().sum(1)
        for call in (per_example_grad_norms, exact_norms, lambda *given: clipped_backward(*given, 1.0)):
            with pytest.raises(UnsupportedOperationError, match=r"FullyShardedDataParallel.*use fully_shard"):
                call(losses, model)
        with pytest.raises(ConfigError, match="FullyShardedDataParallel"):
            ENGM(model.parameters())

    def test_norm_errors(self, alone):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).double()
        sharded = fully_shard(copy.deepcopy(model), mesh=alone)
        x, y = batch(0, slice(None))
        found, expected = (
            norm_errors(losses_of(each, x, y), each.parameters(), {"corrected": NormEstimator("corrected")})[
                "corrected"
            ]
            for each in (sharded, model)
        )
        assert found.update == pytest.approx(expected.update, rel=1e-9)
        assert found.median == pytest.approx(expected.median, rel=1e-9)
        assert all(p.grad is None for p in sharded.parameters())

    def test_weight_perturbation(self, alone):
        model = fully_shard(network(CASES["conv"], sharded=False), mesh=alone)
        x, y = batch(0, slice(None))
        for kind in (AWP, SAM):
            with pytest.raises(ConfigError, match=f"{kind.__name__} moves whole weights, and these are sharded"):
                kind(PGDAT(eps=0.1), 0.01).outcome(model, x, x, y)

    @pytest.mark.parametrize("gathered", [False, True], ids=["sharded", "gathered"])
    def test_muon_takes_whole_matrices(self, alone, gathered):
        """An error where it is built: neither shards of a matrix nor those that a forward pass has gathered."""
        model = fully_shard(network(CASES["conv"], sharded=False), mesh=alone)
        if gathered:
            model.unshard()
        with pytest.raises(ConfigError, match="Muon takes whole matrices, and these are sharded; use Distributed"):
            Muon(model.parameters())

    def test_closure_optimisers(self, alone):
        model = fully_shard(network(CASES["conv"], sharded=False), mesh=alone)
        for kind in CLOSURE_OPTIMIZERS.values():
            with pytest.raises(ConfigError, match="sharded over processes; use DistributedDataParallel"):
                kind(model.parameters())
