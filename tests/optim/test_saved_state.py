"""States of other optimisers, optimisers built anew from groups, distributed checkpoints and ZeRO."""

import copy
import math
import warnings

import pytest
import torch
from helpers.small_problems import cnn4, images_and_labels, losses_of, same_bits, theta, through_a_file
from torch import distributed

from pyengm.errors import ConfigError
from pyengm.optim import AENGM, CLOSURE_OPTIMIZERS, ENGM, FENGM, MSGD, OPTIMIZERS
from pyengm.optim.saved_state import merge_state, split_state

ALL = OPTIMIZERS | CLOSURE_OPTIMIZERS
FOREIGN = [
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.Adagrad,
    torch.optim.RMSprop,
    torch.optim.Adadelta,
    torch.optim.Rprop,
    torch.optim.ASGD,
    torch.optim.LBFGS,
]


def network(norm="bn"):
    return cnn4(norm, torch.float32)


def step(model, optimizer, seed=1):
    x, y = images_and_labels(6, seed, torch.float32)
    x.requires_grad_()
    if optimizer.info.takes_closure:
        optimizer.step(lambda: losses_of(model, x, y))
        return
    optimizer.zero_grad()
    optimizer.backward(losses_of(model, x, y), inputs=x)
    optimizer.step()


def trained(name, seeds=3, **options):
    model = network()
    optimizer = ALL[name](model.parameters(), **options)
    for seed in range(seeds):
        step(model, optimizer, seed)
    return model, optimizer


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize("name", ALL)
def test_states_of_other_kinds(name, kind, steps):
    model = network()
    other = kind(model.parameters())
    for _ in range(steps):
        other.step(lambda: losses_of(model, *images_and_labels(6, 1, torch.float32)).sum())
        if kind is not torch.optim.LBFGS:  # which calls backward itself
            losses_of(model, *images_and_labels(6, 1, torch.float32)).sum().backward()
            other.step()
    optimizer = ALL[name](model.parameters())
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ConfigError, match="another kind of optimiser"):
        optimizer.load_state_dict(other.state_dict())
    assert optimizer.state_dict() == before


@pytest.mark.parametrize("target", ALL)
@pytest.mark.parametrize("source", ALL)
def test_states_among_the_family(source, target):
    _, optimizer = trained(source, 1)
    model = network()
    other = ALL[target](model.parameters())
    if target == source or source == "msgd":  # MSGD's is plain SGD's
        other.load_state_dict(through_a_file(optimizer.state_dict()))
        if target not in CLOSURE_OPTIMIZERS or source != "msgd":
            step(model, other)
    else:
        with pytest.raises(ConfigError, match=f"the state is that of {source}, and this is"):
            other.load_state_dict(optimizer.state_dict())


def test_torch_takes_ours():
    model, optimizer = trained("engm")
    plain = torch.optim.SGD(model.parameters(), lr=1.0)
    plain.load_state_dict(optimizer.state_dict())
    assert plain.param_groups[0]["momentum"] == 0.9


@pytest.mark.parametrize("name", ALL)
def test_built_anew_from_groups(name):
    model = network()
    parts = [[*model.block1.parameters(), *model.block2.parameters()], [*model.dense.parameters()]]
    groups = [{"params": p} for p in parts] + [{"params": list(model.head.parameters()), "lr": 0.5}]
    old = ALL[name](groups, 0.2, 0.8)
    for option in ("alpha", "max_norm", "inner_steps"):
        if hasattr(old, option):
            setattr(old, option, 2)
    new = type(old)(old.param_groups, **old.defaults)
    assert new.defaults == old.defaults
    assert new.param_groups == old.param_groups
    step(model, new)


def test_a_group_that_differs():
    model = network()
    old = ENGM(model.parameters(), alpha=0.3)
    with pytest.raises(ConfigError, match=r"one value for all parameter groups, 5\.0 here: give 0\.3 to ENGM"):
        ENGM(old.param_groups)
    with pytest.raises(ConfigError, match="alpha is one value"):
        old.add_param_group({"params": [torch.zeros(2, requires_grad=True)], "alpha": 0.4})
    old.add_param_group({"params": [torch.zeros(2, requires_grad=True)], "alpha": 0.3})


@pytest.fixture
def alone(tmp_path):
    """A process group of one."""
    if not distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield tmp_path
    distributed.destroy_process_group()


@pytest.mark.parametrize("options", [{}, {"full_state_dict": True}])
@pytest.mark.parametrize("name", ALL)
def test_distributed_checkpoints(alone, name, options):
    checkpoint = pytest.importorskip("torch.distributed.checkpoint")
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict
    from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict as set_state

    how = StateDictOptions(**options)
    few = {"inner_steps": 2, "noise": 0.1} if name in CLOSURE_OPTIMIZERS else {}
    few |= {"alpha": 5.0} if name == "muon" else {}  # it clips by alpha alone
    model, optimizer = trained(name, **few)
    saved = {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer, options=how)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about saving without several processes
        checkpoint.save(saved, checkpoint_id=alone / "step")
    twin = network()
    other = ALL[name](twin.parameters(), lr=0.7)
    loaded = {"model": twin.state_dict(), "optimizer": get_optimizer_state_dict(twin, other, options=how)}
    checkpoint.load(loaded, checkpoint_id=alone / "step")
    twin.load_state_dict(loaded["model"])
    set_state(twin, other, loaded["optimizer"], options=how)
    assert other.defaults["lr"] == 0.7
    assert other.param_groups[0]["lr"] == 0.1
    if "norms" in optimizer.stateful_attributes:
        first, second = optimizer.norms.state_dict(), other.norms.state_dict()
        assert first["steps_since_fit"] > 0
        assert str(first) == str(second)
    for seed in range(3, 6):
        step(model, optimizer, seed)
        step(twin, other, seed)
    assert same_bits(model, twin)


def test_the_state_of_a_distributed_checkpoint_is_checked(alone):
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    model = network()
    adam = torch.optim.Adam(model.parameters())
    state = get_optimizer_state_dict(model, adam)
    with pytest.raises(ConfigError, match="another kind of optimiser"):
        set_optimizer_state_dict(model, ENGM(model.parameters()), state)


WORLD, N = 2, 8


def zero(name, part, sharded):
    model = network("gn")
    kind = OPTIMIZERS[name]
    options = {"alpha": 0.3} if hasattr(kind, "alpha") else {}
    optimizer = own = kind(model.parameters(), lr=0.2, **options)
    wrapped = model
    if sharded:
        from torch.distributed.optim import ZeroRedundancyOptimizer

        optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=kind, lr=0.2, **options)
        own, wrapped = optimizer.optim, torch.nn.parallel.DistributedDataParallel(model)
    for seed in range(3):
        x, y = images_and_labels(N, seed, torch.float32)
        x, y = x[part].requires_grad_(), y[part]
        optimizer.zero_grad()
        own.backward(losses_of(wrapped, x, y), inputs=x, params=model)
        optimizer.step()
    return theta(model)


def work(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    part = slice(rank * N // WORLD, (rank + 1) * N // WORLD)
    torch.save({name: zero(name, part, True) for name in ("msgd", "engm", "fengm", "nengm")}, f"{folder}/{rank}.pt")
    model = network("gn")
    from torch.distributed.optim import ZeroRedundancyOptimizer

    optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=ENGM, lr=0.1)
    losses_of(model, *images_and_labels(N, 1, torch.float32)).mean().backward()
    with pytest.raises(RuntimeError, match=r"optimizer\.backward\(losses\)"):
        optimizer.step()
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason="this torch has no torch.distributed")
def test_zero(tmp_path):
    torch.multiprocessing.spawn(work, args=(str(tmp_path),), nprocs=WORLD)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD)]
    for name, got in ranks[0].items():
        assert got.equal(ranks[1][name]), name
        torch.testing.assert_close(got, zero(name, slice(None), False), rtol=0, atol=1e-6, msg=name)
    assert not math.isclose(ranks[0]["msgd"].norm(), ranks[0]["engm"].norm(), rel_tol=1e-4)


def test_names_of_unsaved_kinds():
    assert "optimizer" not in MSGD(network().parameters()).state_dict()["param_groups"][0]
    first, second = (kind(network().parameters()).state_dict()["param_groups"][0] for kind in (FENGM, AENGM))
    assert (first["optimizer"], second["optimizer"]) == ("fengm", "aengm")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_tensors_in_a_text(dtype, shape):
    values = torch.randn(6).to(dtype)[: math.prod(shape)].reshape(shape)
    values = values.T if len(shape) == 2 else values
    part = {"one": [values, (values, None)], "name": "x", "share": 0.1}
    model = network()
    plain = torch.optim.SGD(model.parameters()).state_dict()
    merged = merge_state(plain, "engm", {"norms": part})
    restored, found = split_state(merged, ["norms", "other"], list(model.parameters()))
    assert restored == plain
    got, (again, nothing) = found["norms"].pop("one")
    assert found == {"norms": {"name": "x", "share": 0.1}}
    assert nothing is None
    for tensor in (got, again):
        assert tensor.dtype == dtype
        assert tensor.shape == values.shape
        assert tensor.equal(values)


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.0, 5e-324])
def test_numbers_keep_their_bits(value):
    part = {"value": torch.tensor([value], dtype=torch.float64)}
    plain = torch.optim.SGD(network().parameters()).state_dict()
    _, found = split_state(merge_state(plain, "", {"norms": part}), ["norms"], [])
    assert found["norms"]["value"].view(torch.int64).equal(part["value"].view(torch.int64))


def test_the_size_of_a_saved_fit():
    _, optimizer = trained("engm")
    norms = optimizer.norms.state_dict()
    tensors = [
        t for t in [*norms["bases"].values(), *norms["fit"]["maps"].values(), *norms["fit"]["products"].values()]
    ]
    content = sum(t.numel() * t.element_size() for t in tensors)
    assert content > 0
    assert len(optimizer.state_dict()["param_groups"][0]["norms"]) < 1.4 * content + 5000
