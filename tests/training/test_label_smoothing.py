"""Label smoothing: in the losses that weights are trained on, of every method that can have it; never in an attack."""

import pytest
import torch
from torch.nn import functional as F

from pyengm.errors import ConfigError
from pyengm.methods import AWP, LBGAT, MART, METHODS, PGDAT, TRADES, DatasetSpec, Method
from pyengm.models import build
from pyengm.ops import Key
from pyengm.training import RunFolder, TrainConfig, build_components, fit

OWN_LABELS = {
    "mart": "one right class",
    "mart_awp": "one right class",
    "fgsm_sdi": "its own option, smoothing",
    "fgsm_pgi": "its own option, confidence",
    "fgsm_rs_cs": "its own option, confidence",
    "fgsm_mep_cs": "its own option, confidence",
    "liet": "at random by its own option, smoothing",
    "self_adaptive": "its labels follow the model",
}
ON_CLEAN_IMAGES = ("trades", "trades_awp", "nuat", "gat", "backward_smoothing")
OPTIONS = {
    "natural": {},
    "pgd_at_awp": {"gamma": 0.0},  # whose move goes up the smoothed losses
    "trades_awp": {"gamma": 0.0},
    "mlcat_wp": {"gamma": 0.0},
    "ates": {"epochs": 4},
    "fat": {"epochs": 4},
    "gat": {"epochs": 4},
    "fgsm_rs_cs": {"epochs": 4},
    "fgsm_mep_cs": {"epochs": 4},
    "liet": {"epochs": 4},
    "self_adaptive": {"epochs": 4},
    "dynamic": {"epochs": 4},
    "atas": {"epochs": 4},
    "nuat": {"epochs": 4},
    "sub_at": {"epochs": 4},
    "curriculum": {"step_size": 0.03},
}


def network(norm="bn"):
    torch.manual_seed(0)
    return build("cnn4", width=4, image_size=8, in_channels=1, norm_layer=norm).train()


def batch(n=6):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(n, 1, 8, 8, generator=generator)
    return x, torch.randint(0, 10, (n,), generator=generator), Key(3, 1, torch.arange(n))


def method_of(name: str) -> Method:
    options = OPTIONS.get(name, {})
    method = METHODS[name](**options) if name == "natural" else METHODS[name](0.1, **options)
    if name == "curriculum":
        method.k = 2
    method.prepare(DatasetSpec(torch.arange(6), (1, 8, 8)))
    method.start_epoch(network(), 0)
    if name == "nuat":
        method.start_epoch(network(), 1)  # where lambda is not 0
    return method


def outcome_of(name: str, smoothing: float):
    """The first outcome of a batch."""
    method, (x, y, key) = method_of(name), batch()
    method.label_smoothing = smoothing
    return next(method.passes(network(), x, y, key))


@pytest.mark.parametrize("name", [name for name in METHODS if name not in (*OWN_LABELS, "lbgat")])
def test_losses(name):
    """The share s of CE(y) becomes the mean over all classes; images and all other parts of the losses stay."""
    s, (x, y, _) = 0.2, batch()
    plain, smooth = outcome_of(name, 0.0), outcome_of(name, s)
    assert smooth.x_adv.equal(plain.x_adv)
    logits = network()(x) if name in ON_CLEAN_IMAGES else plain.logits
    log_p = F.log_softmax(logits, dim=1)
    change = s * (log_p.gather(1, y[:, None]).squeeze(1) - log_p.mean(dim=1))
    assert change.abs().max() > 1e-3
    torch.testing.assert_close(smooth.losses - plain.losses, change, rtol=0, atol=1e-5)  # losses of 3 in float32


def test_the_teacher_of_lbgat_has_the_labels():
    plain, smooth = LBGAT(0.1, steps=1), LBGAT(0.1, steps=1)
    smooth.label_smoothing = 0.2
    outcomes = [method(network(), *batch()) for method in (plain, smooth)]
    assert outcomes[0].losses.equal(outcomes[1].losses)
    grads = [[p.grad for p in method.teacher.parameters()] for method in (plain, smooth)]
    assert any(not a.equal(b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize(("name", "reason"), OWN_LABELS.items())
def test_refused_where_labels_are_the_methods_own(name, reason):
    with pytest.raises(ConfigError, match=f"label_smoothing is 0.1, which .* cannot take: .*{reason}"):
        method_of(name).label_smoothing = 0.1
    with pytest.raises(ConfigError, match=r"label_smoothing is 0\.1, which"):
        build_components(TrainConfig.from_flat(method=name, label_smoothing=0.1).resolve())


def test_weight_perturbations_smooth_those_of_their_base():
    method = AWP(TRADES(0.1), 0.01)
    method.label_smoothing = 0.3
    assert method.base.label_smoothing == method.label_smoothing == 0.3
    assert PGDAT(0.1).label_smoothing == 0.0
    with pytest.raises(ConfigError, match="MART cannot take"):
        AWP(MART(0.1), 0.01).label_smoothing = 0.3


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_shares_out_of_range(share):
    with pytest.raises(ConfigError, match="expected a share from 0 to less than 1"):
        PGDAT(0.1).label_smoothing = share
    with pytest.raises(ConfigError, match=r"label_smoothing is .*; expected a share from 0"):
        TrainConfig.from_flat(label_smoothing=share)


def test_a_run_minimises_the_smoothed_loss(tmp_path):
    """It is the "loss" of the metrics: never below the entropy of smoothed labels, which the plain one falls below."""
    path = tmp_path / "first.txt"
    path.write_text("\n".join(map(str, range(60))))
    config = TrainConfig.from_flat(
        train_indices=path, model="cnn4", width=4, method="natural", optimizer="msgd", epochs=12, batch_size=20, lr=0.1
    )
    losses = []
    for share in (0.0, 0.3):
        config = config.override(label_smoothing=share, out=tmp_path / str(share)).resolve()
        run = RunFolder.create(config)
        fit(config, build_components(config), run)
        losses.append(run.read_metrics()[-1]["loss"])
    target = torch.full((10,), 0.03)
    target[0] += 0.7
    entropy = torch.special.entr(target).sum().item()
    assert losses[0] < entropy < losses[1]
