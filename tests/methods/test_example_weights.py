"""Weights of examples against the authors' formulas, with several methods and optimisers, and in runs."""

import math

import pytest
import torch
from helpers.method_runs import options_for
from helpers.reference_attacks import EPS, batch, gradient_at, mode, network, noise, project, step
from safetensors.torch import load_file
from torch.nn import functional as F

from pyengm import ENGM, MSGD, Muon
from pyengm.attacks import PGD
from pyengm.errors import ConfigError
from pyengm.methods import (
    AAER,
    ATAS,
    AWP,
    GAIRAT,
    MAIL,
    MART,
    MLCATWP,
    NFGSM,
    PGDAT,
    TRADES,
    YOPO,
    DatasetSpec,
    FreeAT,
    Natural,
    Reweighted,
)
from pyengm.training import Interrupted, RunFolder, TrainConfig, build_components, fit
from pyengm.training.signals import StopRequest
from pyengm.training.steps.train_step import train_step


def kappa_and_images(model, x, y, key, norm, steps):
    """PGD with a random start, and at how many of its points each example is classified right."""
    point, kappa = project(x + noise(x, key, norm), x, norm), [0] * len(x)
    for _ in range(steps):
        right = model(point).argmax(1) == y
        kappa = [k + int(r) for k, r in zip(kappa, right.tolist(), strict=True)]
        point = step(point, gradient_at(model, point, y), x, norm, EPS[norm] / 4)
    return kappa, point


def trained():
    model, (x, y, _) = network(), batch(24)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("lam", [-1.0, 0.5, math.inf])
def test_gairat_is_its_formula(norm, lam):
    model, twin, (x, y, key) = trained(), trained(), batch(24)
    method = Reweighted(PGDAT(EPS[norm], steps=6, norm=norm), GAIRAT(epochs=10, lam=lam, begin=0))
    ((outcome, _),) = train_step(method, model, MSGD(model.parameters(), lr=0.0), x, y, key)
    with mode(twin, "eval"):
        kappa, x_adv = kappa_and_images(twin, x, y, key, norm, 6)
    assert len(set(kappa)) > 2
    weights = [(1 + math.tanh(lam + 5 * (1 - 2 * k / 6))) / 2 for k in kappa]
    weights = torch.tensor(weights, dtype=x.dtype) * len(x) / sum(weights)
    torch.testing.assert_close(outcome.losses, weights * F.cross_entropy(twin(x_adv), y, reduction="none"))


def margins(logits, y):
    p = logits.softmax(1)
    return torch.stack(
        [max(one[k] for k in range(10) if k != c) - one[c] for one, c in zip(p, y.tolist(), strict=True)]
    )


@pytest.mark.parametrize(
    "method", [PGDAT(0.1, steps=2), NFGSM(0.1), AWP(PGDAT(0.1, steps=1), 0.01), AAER(0.1), Natural()]
)
def test_mail_weighs_all_of_most_losses(method):
    model, twin, (x, y, key) = network(), network(), batch(12)
    plain = next(method.passes(twin, x, y, key))
    weighed = next(Reweighted(method, MAIL(epochs=1, begin=0)).passes(model, x, y, key))
    weights = 3 * torch.sigmoid(10 * (margins(plain.logits.detach(), y) - 0.5))
    torch.testing.assert_close(weighed.losses, weights * plain.losses)
    ours, theirs = (
        torch.autograd.grad(losses.sum(), list(net.parameters()))
        for losses, net in ((weighed.losses, model), ((weights * plain.losses), twin))
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_mail_weighs_a_part_of_trades_and_mart():
    for kind in (TRADES, MART):
        model, twin, (x, y, key) = network(), network(), batch(12)
        outcome = next(
            Reweighted(kind(0.1, steps=2), MAIL(epochs=1, slope=2, bias=0, begin=0)).passes(model, x, y, key)
        )
        clean, logits = twin(x), twin(outcome.x_adv)
        w = 3 * torch.sigmoid(2 * margins(logits.detach(), y))
        kl = (clean.softmax(1) * (clean.log_softmax(1) - logits.log_softmax(1))).sum(1)
        own, p = F.one_hot(y, 10).bool(), logits.softmax(1)
        if kind is TRADES:
            expected = F.cross_entropy(clean, y, reduction="none") + 6 * w * kl
        else:
            boosted = F.cross_entropy(logits, y, reduction="none") - (1.0001 - p.masked_fill(own, -1).amax(1)).log()
            expected = w * boosted + 6 * kl * (1.0000001 - clean.softmax(1)[own])
        torch.testing.assert_close(outcome.losses, expected, rtol=1e-6, atol=1e-9)


def test_weights_begin_late():
    assert (GAIRAT(epochs=120).begin, MAIL(epochs=120).begin) == (59, 75)
    model, (x, y, key) = network(), batch(12)  # epoch 2
    plain = next(PGDAT(0.1, steps=1).passes(network(), x, y, key)).losses
    for begin, same in ((3, True), (2, False)):
        method = Reweighted(PGDAT(0.1, steps=1), MAIL(epochs=1, begin=begin))
        assert next(method.passes(model, x, y, key)).losses.allclose(plain) == same
    method.start_epoch(model, 1)
    assert next(method.passes(network(), x, y, key)).losses.allclose(plain)


def test_counts_of_pgd():
    model, (x, y, key) = trained(), batch(24)
    attack = PGD(0.1, 0.02, 3)
    attack(model, x, y, key=key)
    assert attack.correct is None
    attack.counts_correct = True
    attack(model, x, y, key=key)
    counts = attack.correct
    attack(model, x, F.one_hot(y, 10).double(), key=key)
    assert counts.equal(attack.correct)
    assert 0 < counts.sum() < 72
    for options in ({"restarts": 2}, {"early_stop": True}):
        attack = PGD(0.1, 0.02, 3, **options)
        attack.counts_correct = True
        with pytest.raises(ConfigError, match="counts_correct is for attacks without"):
            attack(model, x, y)


@pytest.mark.parametrize("method", [AAER(0.1), ATAS(0.1, epochs=2), FreeAT(0.1), PGDAT(0.1, targets="random")])
def test_gairat_needs_pgd(method):
    with pytest.raises(ConfigError, match="count the steps of PGD"):
        Reweighted(method, GAIRAT(epochs=1))


def run_all(method, model, x, y, key):
    for output in method.passes(model, x, y, key):
        output.losses.sum().backward()


def test_passes_without_logits():
    model, (x, y, key) = network(), batch()
    method = Reweighted(YOPO(0.1), MAIL(epochs=1, begin=0))
    with pytest.raises(ConfigError, match="MAIL needs logits, and YOPO has passes without"):
        run_all(method, model, x, y, key)


@pytest.mark.parametrize("optimizer", [MSGD, ENGM, Muon])
@pytest.mark.parametrize("kind", ["free_at", "atas", "mlcat_wp", "trades"])
def test_train_step(optimizer, kind):
    base = {
        "free_at": FreeAT(0.1, replays=2),
        "atas": ATAS(0.1, epochs=2),
        "mlcat_wp": MLCATWP(0.1, steps=1),
        "trades": TRADES(0.1, steps=1),
    }[kind]
    method, model = Reweighted(base, MAIL(epochs=1, begin=0)), network("gn", torch.float32)
    method.needs_input_grad |= kind == "free_at"
    x, y, key = batch(dtype=torch.float32)
    method.prepare(DatasetSpec(key.index, (1, 8, 8)))
    method.start_epoch(model, 0)
    before = [p.detach().clone() for p in model.parameters()]
    train_step(method, model, optimizer(model.parameters(), lr=0.1), x, y, key)
    assert all((p != b).any() and p.isfinite().all() for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(("method", "weights"), [("pgd_at", "gairat"), ("atas", "mail")])
def test_runs_resume_bitwise(method, weights, tmp_path, monkeypatch):
    indices = tmp_path / "first.txt"
    indices.write_text("\n".join(map(str, range(60))))
    config = options_for(
        method, "engm", train_indices=indices, example_weights=weights, weight_options=("begin=1",), epochs=2
    )

    def run(name, stops):
        resolved = config.override(out=tmp_path / name).resolve()
        folder = RunFolder.create(resolved)
        with monkeypatch.context() as patch:
            if stops:
                requested = property(lambda self: True, lambda self, value: None)
                patch.setattr(StopRequest, "requested", requested, raising=False)
            for _ in range(20):
                try:
                    fit(resolved, build_components(resolved), folder)
                    break
                except Interrupted:
                    assert stops
        return load_file(folder.last)

    whole, stopped = run("whole", False), run("stopped", True)
    assert all(value.equal(stopped[name]) for name, value in whole.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"example_weights": "gairat", "method": "atas"}, "count the steps of PGD"),
        ({"weight_options": ("lam=1",)}, "example_weights is none"),
        ({"example_weights": "mail", "weight_options": ("lam=1",)}, "weight_options has 'lam=1'"),
        ({"example_weights": "mail", "weight_options": ("slope=-1",)}, "slope is -1"),
        ({"example_weights": "mail", "weight_options": ("begin=-1",)}, "begin is -1"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ConfigError, match=message):
        build_components(TrainConfig.from_flat(**options).resolve())
