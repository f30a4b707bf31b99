"""SAM: by its formula, beside AWP, with optimisers that clip each example, and in runs that stop and resume."""

import copy

import pytest
import torch
from helpers.failing_method import Failing
from helpers.runs import stopped_after_every_batch, train
from helpers.small_problems import cnn4, images_and_labels

from pyengm import ENGM, MSGD, train_step
from pyengm.errors import ConfigError, NonFiniteError
from pyengm.methods import AWP, PGDAT, SAM, TRADES, FreeAT, Reweighted
from pyengm.methods.example_weights import GAIRAT
from pyengm.ops import Key
from pyengm.training import TrainConfig, build_components

N, RHO = 6, 0.3


def batch():
    x, y = images_and_labels(N, 1)
    return x, y, Key(5, 1, torch.arange(N))


def network(norm_layer="gn"):
    return cnn4(norm_layer, torch.float64)


def moved(base, model, x, x_adv, y, rho=RHO):
    """A copy of the model at w + v, and v, by the formula: all parameters, one norm."""
    twin = copy.deepcopy(model).train()
    base.outcome(twin, x, x_adv, y).losses.mean().backward()
    size = sum(p.grad.square().sum() for p in twin.parameters()).sqrt()
    moves = [rho * p.grad / size for p in twin.parameters()]
    other = copy.deepcopy(model).train()
    with torch.no_grad():
        for p, v in zip(other.parameters(), moves, strict=True):
            p.add_(v)
    return other, moves


@pytest.mark.parametrize("base", [PGDAT(0.1, 0.03, 2), TRADES(0.1, 0.03, 2)], ids=["pgd_at", "trades"])
@pytest.mark.parametrize("kind", [MSGD, ENGM])
def test_gradients_at_the_moved_weights_and_a_step_at_the_weights(base, kind):
    """Of every example: ENGM clips the gradients at w + v by their norms there. Weight decay and step are at w."""
    model, (x, y, key) = network(), batch()
    before = copy.deepcopy(model)
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01} | ({"alpha": 0.5} if kind is ENGM else {})
    optimizer = kind(model.parameters(), **options)
    ((output, stats),) = train_step(SAM(base, RHO), model, optimizer, x, y, key)

    x_adv = base.perturb(copy.deepcopy(before), x, y, key)
    other, moves = moved(base, before, x, x_adv, y)
    torch.testing.assert_close(torch.cat([v.flatten() for v in moves]).norm(), torch.tensor(RHO, dtype=torch.float64))
    losses = base.outcome(other, x, x_adv, y).losses
    torch.testing.assert_close(output.losses, losses, rtol=1e-9, atol=1e-9)
    params = list(other.parameters())
    each = [torch.autograd.grad(loss, params, retain_graph=True) for loss in losses]
    norms = torch.stack([torch.cat([g.flatten() for g in grads]).norm() for grads in each])
    shares = torch.ones(N, dtype=torch.float64)
    if kind is ENGM:
        shares = (0.5 / norms).clamp(max=1)
        torch.testing.assert_close(stats.norms, norms, rtol=1e-6, atol=1e-6)
        assert (shares < 1).any()
    for k, (p, w) in enumerate(zip(model.parameters(), before.parameters(), strict=True)):
        mean = sum(share * grads[k] for share, grads in zip(shares, each, strict=True)) / N
        torch.testing.assert_close(p.detach(), w.detach() - 0.1 * (mean + 0.01 * w.detach()), rtol=0, atol=1e-8)


def test_weights_return_to_the_bit_and_statistics_are_of_one_pass():
    model, (x, y, key) = network("bn"), batch()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    output = SAM(PGDAT(0.1, 0.03, 2), RHO)(model, x, y, key)
    assert output.undo_before_step
    assert not next(model.parameters()).equal(before["block1.0.weight"])
    output.undo()
    for name, p in model.named_parameters():
        assert p.detach().equal(before[name]), name
    assert model.block1[1].num_batches_tracked == before["block1.1.num_batches_tracked"] + 1


def test_without_radius_it_is_the_base():
    model, twin, (x, y, key) = network(), network(), batch()
    ours, theirs = SAM(PGDAT(0.1, 0.03, 2), 0.0)(model, x, y, key), PGDAT(0.1, 0.03, 2)(twin, x, y, key)
    assert ours.losses.equal(theirs.losses)
    assert ours.undo is None


def test_takes_one_more_pass():
    assert SAM(PGDAT(0.1), RHO).info.passes.of(5) == (7, 7, 2)


@pytest.mark.parametrize(
    ("fails", "how", "error"), [(2, "error", RuntimeError), (1, "nan", NonFiniteError), (2, "nan", NonFiniteError)]
)
def test_weights_stay_after_an_error(fails, how, error):
    model, (x, y, key) = network(), batch()
    before = copy.deepcopy(model)
    with pytest.raises(error):
        train_step(SAM(Failing(fails, how), RHO), model, MSGD(model.parameters()), x, y, key)
    assert all(p.equal(w) for p, w in zip(model.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SAM(FreeAT(0.1), 0.05), "the base of SAM is FreeAT; expected a method with an attack"),
        (lambda: SAM(AWP(PGDAT(0.1), 0.01), 0.05), "the base of SAM is AWP; .* without AWP or SAM"),
        (lambda: AWP(SAM(PGDAT(0.1), 0.05), 0.01), "the base of AWP is SAM"),
        (lambda: SAM(PGDAT(0.1), -1.0), r"rho is -1\.0; expected a finite number >= 0"),
        (lambda: SAM(PGDAT(0.1), float("inf")), "rho is inf"),
        (lambda: TrainConfig.from_flat(sam_rho=-0.1), r"sam_rho is -0\.1; expected a finite number >= 0"),
    ],
)
def test_wrong_options(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_weights_of_examples_are_of_its_losses():
    model, (x, y, key) = network(), batch()
    weighted = Reweighted(SAM(PGDAT(0.1, 0.03, 2), RHO), GAIRAT(epochs=10, begin=0))
    (output,) = weighted.passes(model, x, y, key)
    assert output.undo_before_step
    output.undo()
    weighted.label_smoothing = 0.1
    weighted.needs_input_grad = True
    assert weighted.base.base.label_smoothing == 0.1
    assert weighted.base.base.needs_input_grad


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "engm", "attack_steps": 1, "example_weights": "mail", "weight_options": ("begin=0",)},
        {"optimizer": "aengm", "method": "atas"},
        {"optimizer": "entropy_sgd", "optimizer_options": ("inner_steps=2",), "attack_steps": 1},
    ],
)
def test_runs_resume_bitwise(options, tmp_path, monkeypatch):
    config = TrainConfig.from_flat(
        model="cnn4", width=2, epochs=2, batch_size=480, lr=0.05, sam_rho=0.1, **{"norm_layer": "gn", **options}
    )
    whole = train(tmp_path / "whole", config)
    run = stopped_after_every_batch(tmp_path / "stopped", config, monkeypatch, stops=2)
    assert run.last.read_bytes() == whole.last.read_bytes()
    assert run.read_metrics() == whole.read_metrics()


def test_methods_without_one_attack_are_named():
    config = TrainConfig.from_flat(method="free_at", sam_rho=0.05).resolve()
    with pytest.raises(ConfigError, match=r"sam_rho is for methods that are an attack .*pgd_at.*; free_at is none"):
        build_components(config)
