"""Every optimiser in the training loop: it runs from the options, and resumes bitwise after a stop at any batch."""

import pytest
from safetensors.torch import load_file

from pyengm.errors import ConfigError
from pyengm.optim import OPTIMIZERS
from pyengm.training import Interrupted, RunFolder, TrainConfig, build_components, fit
from pyengm.training.signals import StopRequest


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> TrainConfig:
    path = tmp_path_factory.mktemp("indices") / "first.txt"
    path.write_text("\n".join(map(str, range(120))))
    return TrainConfig.from_flat(
        train_indices=path, model="cnn4", width=2, epochs=2, attack_steps=2, batch_size=30, lr=0.05
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("method", ["natural", "pgd_at"])
def test_runs_and_resumes_after_every_batch(name, method, tiny, tmp_path, monkeypatch):
    own = {"tau": 3} if name == "aengm" else {}
    tiny = tiny.override(optimizer=name, method=method, attack_steps=None if method == "natural" else 2, **own)
    runs = []
    for folder, stops in (("whole", False), ("stopped", True)):
        config = tiny.override(out=tmp_path / folder).resolve()
        run = RunFolder.create(config)
        with monkeypatch.context() as patch:
            if stops:
                asked = property(lambda self: True, lambda self, value: None)
                patch.setattr(StopRequest, "requested", asked, raising=False)
            for _ in range(9):
                try:
                    fit(config, build_components(config), run)
                    break
                except Interrupted:
                    pass
        runs.append(run)
    weights, expected = (load_file(run.last) for run in runs)
    assert all(expected[key].equal(value) for key, value in weights.items())
    assert runs[0].read_metrics() == runs[1].read_metrics()


def test_options_reach_the_optimizer(tiny):
    assert build_components(tiny.override(optimizer="nengm").resolve()).optimizer.alpha == 0.5
    assert build_components(tiny.override(optimizer="nengm", alpha=0.25).resolve()).optimizer.alpha == 0.25
    parts = build_components(tiny.override(optimizer="aengm", tau=3).resolve())
    assert (parts.optimizer.alpha, parts.optimizer.tau) == (5.0, 3)
    assert parts.method.needs_input_grad
    assert build_components(tiny.override(optimizer="mgnc", max_norm=2.0).resolve()).optimizer.max_norm == 2.0
    assert not build_components(tiny.resolve()).method.needs_input_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "aengm", "tau": 0}, "tau is 0; expected at least 1"),
        ({"optimizer": "mgnc", "max_norm": -1.0}, "max_norm is -1.0; expected a finite number > 0"),
        ({"optimizer": "fengm", "alpha": float("inf")}, "alpha is inf; expected a finite number"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_flat(**options)


def test_kind_of_gradient_norms(tiny, tmp_path):
    for name, kind in (("engm", "corrected"), ("aengm", "exact")):
        config = tiny.override(optimizer=name, norms=kind, out=tmp_path).resolve()
        optimizer = build_components(config).optimizer
        assert optimizer.norms.mode == kind
