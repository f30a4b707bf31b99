"""Methods in a loop of one's own: keys without hooks, keys that do not fit, a caller's autocast."""

import copy

import pytest
import torch

import pyengm
from pyengm import ENGM, MSGD, EntropySGD
from pyengm.errors import ConfigError, DataError
from pyengm.methods import ATAS, ATTA, FGSMPGI, MART, PGDAT, PGDATAWP, TRADES, TRADESAWP, YOPO, FreeAT, NuAT
from pyengm.models import build
from pyengm.ops import Key
from pyengm.pergrad import NormEstimator
from pyengm.training.steps.train_step import train_step


def network():
    torch.manual_seed(0)
    return build("cnn4", width=4, image_size=8, in_channels=1).train()


def batch(n=6):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 1, 8, 8, generator=generator), torch.arange(n) % 10


def key(epoch, n=6):
    return Key(3, epoch, torch.arange(n))


def test_epochs_come_from_the_key():
    model, (x, y) = network(), batch()
    weights = TRADESAWP(0.1, steps=2, warmup=10)
    assert weights(model, x, y, key(9)).undo is None
    moved = weights(model, x, y, key(10))
    assert moved.undo is not None
    moved.undo()
    nuat = NuAT(0.1, epochs=30)
    nuat(model, x, y, key(0))
    assert nuat.weight == 0
    nuat(model, x, y, key(5))
    assert nuat.weight > 0


@pytest.mark.parametrize("method", [TRADES(0.1, steps=1), MART(0.1, steps=1), YOPO(0.1), NuAT(0.1, epochs=9)])
@pytest.mark.parametrize("n", [1, 4])
def test_keys_of_another_length(method, n):
    with pytest.raises(DataError, match=f"a key for 6 images, got one for {n}"):
        list(method.passes(network(), *batch(), key(0, n)))


@pytest.mark.parametrize("method", [ATTA(0.1), ATAS(0.1, epochs=9), FGSMPGI(0.1)])
def test_state_before_the_images_are_known(method):
    with pytest.raises(ConfigError, match=r"call prepare\(DatasetSpec"):
        method.load_state_dict({"store": {}, "v": None})


def losses(method, narrow):
    """Of the batches of five steps in one autocast block, whose casts of weights may be kept."""
    model, (x, y) = network(), batch()
    optimizer = MSGD(model.parameters(), lr=0.3)
    found = []
    with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        for epoch in range(5):
            found += [o.losses.mean().item() for o, _ in train_step(method, model, optimizer, x, y, key(epoch))]
    return torch.tensor(found)


@pytest.mark.parametrize("make", [lambda: PGDATAWP(0.1, steps=1, gamma=0.05), lambda: FreeAT(0.02, replays=4)])
def test_a_callers_autocast_sees_every_change_of_the_weights(make):
    wide, narrow = losses(make(), False), losses(make(), True)
    assert (narrow - wide)[:5].abs().max() < 0.1  # later ones differ by what chaos makes of rounding
    assert (wide[0] - wide[4]).abs() > 0.2


OTHERS = [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad]


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("alpha", [None, 0.3])
@pytest.mark.parametrize("scaled", [False, True])
def test_optimisers_of_torch(kind, alpha, scaled):
    model, (x, y) = network(), batch()
    twin, method = copy.deepcopy(model), PGDAT(0.1, steps=2)
    optimizer, other = kind(model.parameters(), lr=0.01), kind(twin.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8) if scaled else None
    norms = NormEstimator()  # the model has batch norm, and the fits go on from step to step
    for epoch in range(3):
        ((output, stats),) = train_step(method, model, optimizer, x, y, key(epoch), alpha=alpha, scaler=scaler)
        losses = method(twin, x, y, key(epoch)).losses
        other.zero_grad()
        if alpha is None:
            losses.mean().backward()
        else:
            expected = pyengm.clipped_backward(losses, twin, alpha, norms=norms)
            torch.testing.assert_close(stats.norms, expected.norms)
            assert (stats.weights < 1).any()
        other.step()
        assert (stats is None) == (alpha is None)
        assert output.logits is not None
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", [FreeAT(0.1, replays=2), PGDATAWP(0.1, steps=1), YOPO(0.1), TRADES(0.1, steps=1)])
def test_any_method_with_any_optimiser(method):
    model, (x, y) = network(), batch()
    before = copy.deepcopy(model.state_dict())
    stats = train_step(method, model, torch.optim.AdamW(model.parameters(), lr=1e-3), x, y, key(12), alpha=0.5)
    assert all(used is not None and used.norms is not None for _, used in stats)
    assert any(not before[name].equal(value) for name, value in model.state_dict().items())


def test_alpha_is_for_other_optimisers():
    model, (x, y) = network(), batch()
    for optimizer in (ENGM(model.parameters()), MSGD(model.parameters())):
        with pytest.raises(ConfigError, match="alpha=1 is for other optimisers"):
            train_step(PGDAT(0.1, steps=1), model, optimizer, x, y, alpha=1)
    with pytest.raises(ValueError, match="alpha > 0"):
        train_step(PGDAT(0.1, steps=1), model, torch.optim.AdamW(model.parameters()), x, y, alpha=-1)
    with pytest.raises(RuntimeError, match=r"step\(closure\)"):
        train_step(PGDAT(0.1, steps=1), model, EntropySGD(model.parameters()), x, y)
