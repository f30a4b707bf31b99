"""ATTA, ATAS and FGSM-PGI against straight loops over images that are kept by their identity."""

import copy
import io

import pytest
import torch
from helpers.reference_crops import show
from helpers.small_problems import ce
from helpers.small_problems import cnn4 as network
from torch.nn import functional as F

from pyengm.data import CropFlip
from pyengm.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from pyengm.methods.atas import ATAS
from pyengm.methods.atta import ATTA
from pyengm.methods.base import DatasetSpec
from pyengm.methods.fgsm_pgi import FGSMPGI
from pyengm.ops import Key, Purpose, philox_normal, philox_uniform
from pyengm.optim import ENGM, MSGD, NENGM
from pyengm.training.steps.train_step import train_step

N, PADDING, SEED = 12, 2, 4
EPS = {"linf": 0.1, "l2": 0.5}
INDEX = torch.arange(N) * 7 % 12 + 50  # shuffled identities
both_norms = pytest.mark.parametrize("norm", EPS)


def data(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(N, 1, 8, 8, generator=generator, dtype=dtype)
    return x, torch.randint(0, 10, (N,), generator=generator)


def examples():
    return DatasetSpec(INDEX, (1, 8, 8), PADDING, seed=SEED)


def batches(epoch, size=5, dtype=torch.float64):
    """Positions, images, labels, key and transform of the batches of an epoch."""
    x, y = data(dtype)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(epoch))
    for at in order.split(size):
        transform = CropFlip.draw(INDEX[at], (1, 8, 8), PADDING, seed=SEED, epoch=epoch)
        yield at, show(transform, x[at]), y[at], Key(SEED, epoch, INDEX[at]), transform


def prepared(method):
    method.prepare(examples())
    return method


def made(kind, norm="linf", **options):
    """The method, prepared, with buffers in float64."""
    if kind is ATAS:
        options = {"epochs": 30} | options
    return prepared(kind(EPS[norm], norm=norm, dtype=torch.float64, **options))


# The plain forms. Stored canvases are lists by position in the data set; windows go in and out pixel by pixel.


def canvas_numbers(draw, epoch, shape=(1, 12, 12)):
    named = {"seed": SEED, "purpose": Purpose.STORE, "epoch": epoch}
    return list(draw(INDEX, shape, **named).double())


def window(canvas, transform, i):
    row, col = int(transform.rows[i]), int(transform.cols[i])
    cut = canvas[:, row : row + 8, col : col + 8]
    return cut.flip(2) if transform.flip[i] else cut


def put(canvas, transform, i, values):
    row, col = int(transform.rows[i]), int(transform.cols[i])
    canvas[:, row : row + 8, col : col + 8] = values.flip(2) if transform.flip[i] else values


def slow_step(x_adv, g, x, step, norm):
    """One image, one step."""
    eps = EPS[norm]
    if norm == "linf":
        return (x_adv + step * g.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    return slow_projection(x_adv + step * g / g.norm(), x)


def slow_projection(x_adv, x):
    """To the L2 ball."""
    delta = x_adv - x
    return (x + delta * min(1, EPS["l2"] / float(delta.norm()))).clamp(0, 1)


def slow_gradient(model, x, y, loss):
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(loss(model(leaf), y).sum(), leaf)
    return g


def divergence(natural, logits):
    p, q = natural.softmax(1), logits.softmax(1)
    return (p * (p / q).log()).sum(1)


def in_mode(model, bn, run, *args):
    model.train(bn == "train")
    out = run(model, *args)
    model.train()
    return out


def agree(outcome, x_adv, losses, model, twin):
    torch.testing.assert_close(outcome.x_adv.detach(), x_adv, rtol=0, atol=1e-9)
    torch.testing.assert_close(outcome.losses, losses, rtol=0, atol=1e-9)
    for ours, theirs in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    for module in model, twin:
        module.zero_grad()
    for total in outcome.losses.mean(), losses.mean():
        total.backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-9)


@both_norms
@pytest.mark.parametrize(
    ("steps", "loss", "as_published", "bn"),
    [(1, "ce", False, "eval"), (3, "ce", False, "train"), (2, "trades", False, "eval"), (2, "trades", True, "eval")],
)
def test_atta_is_its_formula_on_stored_images(norm, steps, loss, as_published, bn):
    method = made(ATTA, norm, steps=steps, reset=2, loss=loss, as_published=as_published, bn=bn)
    step, climbs_divergence = EPS[norm] / (2 if steps == 1 else 4), loss == "trades" and not as_published

    def attack(model, x_adv, x, y):
        target = model(x).detach() if climbs_divergence else y
        for _ in range(steps):
            g = slow_gradient(model, x_adv, target, (lambda z, p: divergence(p, z)) if climbs_divergence else ce)
            for i in range(len(x)):
                x_adv[i] = slow_step(x_adv[i], g[i], x[i], step, norm)

    model, twin, whole = network(), network(), F.pad(data()[0], [PADDING] * 4)
    kept = [x + 0.001 * noise for x, noise in zip(whole, canvas_numbers(philox_normal, 0), strict=True)]
    for epoch in range(4):
        method.start_epoch(model, epoch)
        if epoch in (1, 3):  # the second and the fourth
            kept = [x + 0.001 * noise for x, noise in zip(whole, canvas_numbers(philox_normal, epoch), strict=True)]
        for at, x, y, key, transform in batches(epoch):
            x_adv = torch.stack([window(kept[k], transform, i) for i, k in enumerate(at)])
            in_mode(twin, bn, attack, x_adv, x, y)
            outcome = method(model, x, y, key, transform)
            logits = (twin(x), twin(x_adv)) if loss == "trades" else (twin(x_adv),)
            losses = ce(logits[0], y) + (6 * divergence(*logits) if loss == "trades" else 0)
            agree(outcome, x_adv, losses, model, twin)
            for i, k in enumerate(at):
                put(kept[k], transform, i, x_adv[i])


@both_norms
@pytest.mark.parametrize("bn", ["eval", "train"])
@pytest.mark.parametrize("as_printed", [False, True])
def test_atas_is_its_formula(norm, bn, as_printed):
    largest = 1.5 * EPS[norm]
    low, high, c = 0.45 * largest, 0.55 * largest, {"eval": 0.2, "train": 0.9}[bn]  # c: about the median of sqrt(v)
    options = {"c": c, "step_scale": largest, "min_step": low, "max_step": high}
    options |= {"reset": 3, "epochs": 6, "warmup": 2, "beta": 0.3}
    method = made(ATAS, norm, bn=bn, as_printed=as_printed, **options)
    model, twin, kept, v, taken = network(), network(), first_of_atas(norm, 0), [0.0] * N, []
    for epoch in range(6):
        method.start_epoch(model, epoch)
        if epoch == 2:  # the third, not the sixth, which is the last
            kept = first_of_atas(norm, epoch)
        for at, x, y, key, transform in batches(epoch):
            delta = torch.stack([window(kept[k], transform, i) for i, k in enumerate(at)])
            start = (x + delta).clamp(0, 1)
            if norm == "l2":  # windows of several epochs are longer together
                start = torch.stack([slow_projection(a + d, a) for a, d in zip(x, delta, strict=True)])
            g = in_mode(twin, bn, slow_gradient, start, y, ce)
            x_adv = torch.empty_like(x)
            for i, k in enumerate(at):
                size = EPS[norm]
                if as_printed:
                    v[k] = 0.3 * v[k] + 0.7 * float(g[i].square().sum())
                    size = (largest * c) / (c + v[k] ** 0.5)  # gamma / (c + sqrt v)
                elif epoch >= 2:
                    v[k] = 0.3 * v[k] + 0.7 * float(g[i].square().sum())
                    size = min(max(largest / (1 + v[k] ** 0.5 / c), low), high)
                    taken.append(size)
                x_adv[i] = slow_step(start[i], g[i], x[i], size, norm)
                put(kept[k], transform, i, x_adv[i] - x[i])
            agree(method(model, x, y, key, transform), x_adv, ce(twin(x_adv), y), model, twin)
    torch.testing.assert_close(method.v.values.flatten(), torch.tensor(v, dtype=torch.float64), rtol=1e-9, atol=0)
    if not as_printed:
        assert {low, high} < set(taken)  # both bounds were met, and sizes between them


def first_of_atas(norm, epoch):
    if norm == "linf":
        return [(2 * u - 1) * EPS[norm] for u in canvas_numbers(philox_uniform, epoch)]
    draw = (Purpose.STORE - Purpose.START) * 2**12
    radii = philox_uniform(INDEX, (1,), seed=SEED, purpose=Purpose.RADIUS, epoch=epoch, draw=draw).double()
    directions = [z / z.norm() for z in canvas_numbers(philox_normal, epoch)]
    return [EPS[norm] * r ** (1 / 144) * d for r, d in zip(radii, directions, strict=True)]


@both_norms
@pytest.mark.parametrize("as_published", [False, True])
def test_fgsm_pgi_is_its_formula(norm, as_published):
    eps, size = EPS[norm], 8 if as_published else 12
    step = 0.8 * eps
    method = made(FGSMPGI, norm, step_size=step, reset=2, as_published=as_published)
    model, twin = network(), network()

    def first(epoch):
        if norm == "linf":
            u = philox_uniform(INDEX, (1, size, size), seed=SEED, purpose=Purpose.SIGN, epoch=epoch)
            return list(((u - 0.5).sign() + (u == 0.5)).double() * step)
        return [step * z / z.norm() for z in canvas_numbers(philox_normal, epoch, (1, size, size))]

    def smoothed(logits, y):
        target = torch.full_like(logits, 0.4 / 9)
        target[torch.arange(len(y)), y] = 0.6
        return -(target * logits.log_softmax(1)).sum(1)

    for epoch in range(4):
        method.start_epoch(model, epoch)
        if epoch % 2 == 0:
            delta, momentum = first(epoch), list(torch.zeros(N, 1, size, size, dtype=torch.float64))
        for at, x, y, key, transform in batches(epoch):
            if as_published:
                still = torch.zeros(len(at), dtype=torch.int64)
                position = CropFlip(still, still, still.bool(), 0)
            else:
                position = transform
            start = x + torch.stack([window(delta[k], position, i) for i, k in enumerate(at)])
            before = twin(start.requires_grad_())
            (g,) = torch.autograd.grad(smoothed(before, y).mean(), start, retain_graph=True)
            x_adv, start = torch.empty_like(x), start.detach()
            for i, k in enumerate(at):
                # 64 pixels: the mean in place of the sum, over the image where the authors take the batch
                m = 64 * g[i] / (g if as_published else g[i]).abs().sum() + 0.3 * window(momentum[k], position, i)
                put(momentum[k], position, i, m)
                x_adv[i] = slow_step(start[i], g[i], x[i], step, norm)
                put(delta[k], position, i, slow_step(start[i], m, x[i], step, norm) - x[i])
            logits = twin(x_adv)
            losses = smoothed(logits, y) + 10 * (logits - before).square().mean(1)
            agree(method(model, x, y, key, transform), x_adv, losses, model, twin)
    torch.testing.assert_close(method.momentum.values, torch.stack(momentum), rtol=0, atol=1e-9)
    assert model.block1[1].num_batches_tracked == 2 * 12


# What all of them promise


KINDS = [
    lambda **options: made(ATTA, reset=2, **options),
    lambda **options: made(ATTA, loss="trades", steps=2, **options),
    lambda **options: made(ATAS, warmup=1, reset=2, **options),
    lambda **options: made(ATAS, warmup=1, reset=2, resolution=5, **options),
    lambda **options: made(FGSMPGI, reset=2, **options),
    lambda **options: made(FGSMPGI, reset=2, resolution=5, **options),
    lambda **options: made(FGSMPGI, as_published=True, **options),
]
NAMES = ["atta", "atta-trades", "atas", "atas-coarse", "pgi", "pgi-coarse", "pgi-published"]
all_kinds = pytest.mark.parametrize("kind", KINDS, ids=NAMES)


@all_kinds
@both_norms
@pytest.mark.parametrize("factor", [1, 0])
def test_images_stay_within_the_threat_model(kind, norm, factor, monkeypatch):
    monkeypatch.setitem(EPS, norm, EPS[norm] * factor)
    method, model = kind(norm=norm), network()
    for epoch in range(3):
        method.start_epoch(model, epoch)
        for _, x, y, key, transform in batches(epoch):
            before = x.clone()
            outcome = method(model, x, y, key, transform)
            assert x.equal(before)
            assert not outcome.x_adv.requires_grad
            delta = (outcome.x_adv - x).flatten(1)
            order = {"linf": torch.inf, "l2": 2}[norm]
            # one rounding of x + delta
            assert torch.linalg.vector_norm(delta, ord=order, dim=1).max() <= EPS[norm] + 1e-15
            assert outcome.x_adv.min() >= 0
            assert outcome.x_adv.max() <= 1
            assert all(module.training for module in model.modules())
            assert all(p.requires_grad for p in model.parameters())
    assert factor == 0 or delta.abs().max() > 0


def run(method, model, optimizer, steps, start=0):
    """Steps `start` to `steps` of a training run, three to an epoch."""
    method.needs_input_grad = optimizer.info.needs_inputs
    for k in range(start, steps):
        epoch, position = divmod(k, 3)
        if position == 0:
            method.start_epoch(model, epoch)
        _, x, y, key, transform = list(batches(epoch))[position]
        used = train_step(method, model, optimizer, x, y, key, transform)
    return used


@all_kinds
@pytest.mark.parametrize("optimizer", [ENGM, MSGD, NENGM])
def test_an_interrupted_run_resumes_bitwise(kind, optimizer):
    model = network("gn")
    method, opt = kind(), optimizer(model.parameters(), lr=0.05)
    run(method, model, opt, 4)  # within the second epoch
    buffer = io.BytesIO()
    torch.save(method.state_dict(), buffer)
    other, twin = kind(), copy.deepcopy(model)
    opt2 = optimizer(twin.parameters(), lr=0.05)
    opt2.load_state_dict(copy.deepcopy(opt.state_dict()))
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    last = run(method, model, opt, 9, start=4)
    again = run(other, twin, opt2, 9, start=4)
    assert last[0][0].x_adv.equal(again[0][0].x_adv)
    assert all(a.equal(b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert not all(a.equal(b) for a, b in zip(model.parameters(), network("gn").parameters(), strict=True))


@pytest.mark.parametrize("resolution", [None, 5])
def test_atas_does_not_depend_on_how_the_data_are_cut(resolution):
    kept = []
    for size in (12, 5, 1):
        method, model = made(ATAS, warmup=1, c=0.05, reset=3, resolution=resolution), network("gn")
        for epoch in range(4):
            method.start_epoch(model, epoch)
            for _, x, y, key, transform in batches(epoch, size):
                method(model, x, y, key, transform)
        kept.append((method.delta.values, method.v.values))
    for values, v in kept[1:]:
        torch.testing.assert_close(values, kept[0][0], rtol=0, atol=1e-12)
        torch.testing.assert_close(v, kept[0][1], rtol=1e-9, atol=0)
    assert kept[0][1].min() > 0


def test_atas_without_examples_of_sizes_takes_those_of_the_authors():
    assert made(ATAS).rule == {
        "step_scale": 16 / 255,
        "c": 1.28,
        "min_step": 4 / 255,
        "max_step": 14 / 255,
        "beta": 0.5,
    }
    rule = made(ATAS, "l2").rule
    assert (rule["step_scale"], rule["min_step"], rule["max_step"]) == (1.0, 0.25, 0.875)


def test_a_coarse_atas_starts_where_it_ended():
    method, model = made(ATAS, resolution=6), network("gn")
    x, y = data()
    key = Key(SEED, 1, INDEX)
    random = method.delta.values.clone()
    x_adv = method(model, x, y, key).x_adv
    start = method.delta.read(method.delta.rows(INDEX), None, x)
    random = F.interpolate(random, (12, 12), mode="bilinear")[..., 2:-2, 2:-2]
    assert F.cosine_similarity((start - random).flatten(), (x_adv - x - random).flatten(), 0) > 0.4
    assert method.delta.values.abs().max() <= EPS["linf"]


@pytest.mark.parametrize("as_published", [False, True])
def test_pgi_at_the_resolution_of_the_canvas_is_pgi(as_published):
    """Each value is then for one pixel: bilinear reading and the mean change over it are the plain ones."""
    fine, model = made(FGSMPGI, reset=2, as_published=as_published), network("gn")
    same = made(FGSMPGI, reset=2, as_published=as_published, resolution=8 if as_published else 12)
    for epoch in range(4):
        for method in (fine, same):
            method.start_epoch(model, epoch)
        for _, x, y, key, transform in batches(epoch):
            expected, found = (method(model, x, y, key, transform) for method in (fine, same))
            torch.testing.assert_close(found.x_adv, expected.x_adv, rtol=0, atol=1e-9)
            torch.testing.assert_close(found.losses, expected.losses, rtol=0, atol=1e-9)
    torch.testing.assert_close(same.momentum.values, fine.momentum.values, rtol=0, atol=1e-9)
    torch.testing.assert_close(same.delta.values, fine.delta.values, rtol=0, atol=1e-9)


@both_norms
def test_a_coarse_pgi_keeps_both_memories_small_and_starts_within_the_ball(norm):
    model, starts = network("gn", torch.float32), []
    method = prepared(FGSMPGI(EPS[norm], norm=norm, reset=9, resolution=5, dtype=torch.float16))
    handle = model.register_forward_pre_hook(lambda module, inputs: starts.append(inputs[0].detach()))
    for epoch in range(3):
        method.start_epoch(model, epoch)
        for _, x, y, key, transform in batches(epoch, dtype=torch.float32):
            starts.clear()
            assert method(model, x, y, key, transform).x_adv.dtype == torch.float32
            sizes = torch.linalg.vector_norm((starts[0] - x).flatten(1), ord={"linf": torch.inf, "l2": 2}[norm], dim=1)
            assert sizes.min() > 0
            assert sizes.max() <= EPS[norm] * (1 + 2**-10)  # rounded to float16
    handle.remove()
    for buffer in method.buffers().values():
        assert buffer.values.shape == (N, 1, 5, 5)
        assert buffer.values.dtype == torch.float16
        assert buffer.values.abs().min(dim=0).values.max() > 0
    assert method.delta.values.abs().max() <= EPS[norm] * (1 + 2**-10)


def test_a_coarse_pgi_starts_where_it_ended():
    """Along the momentum, as far as 6 values a side allow."""
    method, model = made(FGSMPGI, resolution=6), network("gn")
    x, y = data()
    rows = method.delta.rows(INDEX)
    random = method.delta.read(rows, None, x)
    method(model, x, y, Key(SEED, 0, INDEX))
    start, momentum = method.delta.read(rows, None, x), method.momentum.read(rows, None, x)
    assert F.cosine_similarity((start - random).flatten(), momentum.flatten(), 0) > 0.3


def test_halves_are_enough():
    model, (x, y) = network("gn", torch.float32), data(torch.float32)
    for method in (ATTA(0.1, dtype=torch.float16), ATAS(0.1, epochs=3, dtype=torch.float16), FGSMPGI(0.1)):
        prepared(method)
        for epoch in range(2):
            outcome = method(model, x, y, Key(SEED, epoch, INDEX))
            assert outcome.x_adv.dtype == torch.float32
            assert (outcome.x_adv - x).abs().max() <= 0.1 + 1e-7


@pytest.mark.parametrize(
    ("method", "forwards"),
    [
        (lambda: ATTA(0.1, bn="train"), 2),
        (lambda: ATTA(0.1, steps=3, bn="train"), 4),
        (lambda: ATTA(0.1, bn="train", loss="trades"), 4),
        (lambda: ATTA(0.1, bn="train", loss="trades", as_published=True), 3),
        (lambda: ATTA(0.1, bn="batch_stats"), 1),
        (lambda: ATAS(0.1, epochs=3, bn="train"), 2),
        (lambda: ATAS(0.1, epochs=3), 1),
        (lambda: FGSMPGI(0.1), 2),
    ],
)
def test_forward_passes_that_batch_norm_sees(method, forwards):
    model, (x, y) = network(), data()
    prepared(method())(model, x, y, Key(SEED, 0, INDEX))
    assert model.block1[1].num_batches_tracked == forwards


@all_kinds
def test_errors_of_use(kind):
    model, (x, y) = network("gn"), data()
    method = kind()
    with pytest.raises(ConfigError, match=r"keeps something for every image"):
        method(model, x, y)
    with pytest.raises(DataError, match="identity 3"):
        method(model, x, y, Key(SEED, 0, torch.full((N,), 3)))
    smaller = kind()
    smaller.prepare(DatasetSpec(INDEX[:3], (1, 8, 8), PADDING))
    with pytest.raises(CheckpointError, match="other images"):
        method.load_state_dict(smaller.state_dict())
    with torch.no_grad():
        model.head.bias.fill_(torch.nan)
    with pytest.raises(NonFiniteError):
        method(model, x, y, Key(SEED, 0, INDEX))


@pytest.mark.parametrize("method", [ATTA(0.1), ATAS(0.1, epochs=3), FGSMPGI(0.1)])
def test_before_prepare(method):
    x, y = data()
    with pytest.raises(ConfigError, match=r"call prepare"):
        method(network(), x, y, Key(SEED, 0, INDEX))
    assert method.state_dict() == {}
    method.load_state_dict({})
    method.start_epoch(network(), 9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ATTA(-1), "eps is -1"),
        (lambda: ATTA(0.1, steps=0), "steps"),
        (lambda: ATTA(0.1, reset=0), "reset is 0"),
        (lambda: ATTA(0.1, loss="kl"), "known losses: ce, trades"),
        (lambda: ATTA(0.1, bn="on"), "known modes"),
        (lambda: ATAS(0.1, epochs=0), "epochs"),
        (lambda: ATAS(0.1, epochs=3, c=0), "c is 0"),
        (lambda: ATAS(0.1, epochs=3, step_scale=float("inf")), "step_scale is inf"),
        (lambda: ATAS(0.1, epochs=3, min_step=0.2, max_step=0.1), "min_step and max_step are 0.2 and 0.1"),
        (lambda: ATAS(0.1, epochs=3, beta=1.5), "beta is 1.5"),
        (lambda: ATAS(0.1, epochs=3, bn="on"), "known modes"),
        (lambda: FGSMPGI(0.1, float("nan")), "step_size is nan"),
        (lambda: FGSMPGI(0.1, confidence=0), "confidence is 0"),
        (lambda: FGSMPGI(0.1, decay=-1), "decay"),
        (lambda: FGSMPGI(0.1, norm="l1"), "known norms"),
    ],
)
def test_numbers_out_of_range(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
