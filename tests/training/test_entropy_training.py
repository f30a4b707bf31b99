"""Entropy-SGD in the training loop: the batches of an epoch in groups, each seen once, and exact after a stop."""

import pytest
from helpers.runs import always_stop
from safetensors.torch import load_file

from pyengm.data import Batch
from pyengm.errors import ConfigError
from pyengm.training import Interrupted, RunFolder, TrainComponents, TrainConfig, build_components, fit
from pyengm.training.loop import grouped


@pytest.fixture
def tiny(tiny, tmp_path) -> TrainConfig:
    return tiny.override(
        epochs=2,
        attack_steps=1,
        batch_size=20,
        optimizer="entropy_sgd",
        optimizer_options=("inner_steps=4", "inner_lr=0.05"),
        lr=0.3,
        out=tmp_path / "run",
    )


ALL, SPAN = ("inner_steps=4", "inner_lr=0.05"), ("inner_steps=4", "inner_lr=0.05", "from_epoch=1", "until_epoch=2")


@pytest.mark.parametrize("name", ["entropy_sgd", "entropy_sgd2"])
@pytest.mark.parametrize(
    ("method", "epochs", "options"),
    [*((method, 2, ALL) for method in ("pgd_at", "trades", "pgd_at_awp")), ("pgd_at", 3, SPAN)],
)
def test_goes_on_after_every_group(name, method, epochs, options, tiny, tmp_path, monkeypatch):
    tiny = tiny.override(optimizer=name, method=method, epochs=epochs, optimizer_options=options)
    groups_of_a_run = 6 + 2 + 6 if options == SPAN else 2 + 2  # 6 batches: one by one, or 4 and 2 of them
    runs = []
    for folder, stops in (("whole", False), ("stopped", True)):
        config = tiny.override(out=tmp_path / folder).resolve()
        run = RunFolder.create(config)
        with monkeypatch.context() as patch:
            if stops:
                always_stop(patch)
            interruptions = 0
            while interruptions <= groups_of_a_run:
                try:
                    fit(config, build_components(config), run)
                    break
                except Interrupted:
                    interruptions += 1
        assert interruptions == (groups_of_a_run + 1 if stops else 0)  # once more when all epochs are done
        runs.append(run)
    expected = load_file(runs[0].last)
    assert all(expected[key].equal(value) for key, value in load_file(runs[1].last).items())
    assert runs[0].read_metrics() == runs[1].read_metrics()


def groups(components: TrainComponents) -> list[list[Batch]]:
    return list(grouped(components.batches.epoch(0), components.step.batches_per_update))


def test_groups_hold_every_batch_once(tiny):
    components = build_components(tiny.resolve())
    found = groups(components)
    assert [len(group) for group in found] == [4, 2]
    index = [batch.index.tolist() for group in found for batch in group]
    assert index == [batch.index.tolist() for batch in components.batches.epoch(0)]
    components.optimizer.switch_to_sgd()
    assert [len(group) for group in groups(components)] == [1] * 6
    msgd = build_components(tiny.override(optimizer="msgd", optimizer_options=()).resolve())
    assert [len(group) for group in groups(msgd)] == [1] * 6


def test_a_short_group_leaves_the_number_of_inner_steps_as_it_was(tiny):
    config = tiny.resolve()
    components = build_components(config)
    fit(config, components, RunFolder.create(config))
    assert components.optimizer.inner_steps == 4
    assert components.optimizer.t == 4


def test_steps_that_open_with_a_batch_of_their_own(tiny):
    config = tiny.override(optimizer_options=("inner_steps=4", "as_published=true")).resolve()
    components = build_components(config)
    assert [len(group) for group in groups(components)] == [5, 1]
    fit(config, components, RunFolder.create(config))
    assert (components.optimizer.inner_steps, components.optimizer.t) == (4, 4)


def test_the_first_epochs_are_those_of_sgd(tiny):
    """Entropy-SGD without inner steps is SGD (test_entropy_sgd); the epochs after the first two are its own."""
    runs = []
    for options in (("inner_steps=0",), ("inner_steps=4", "from_epoch=2")):
        config = tiny.override(epochs=3, optimizer_options=options, out=tiny.run.out / options[0]).resolve()
        run = RunFolder.create(config)
        components = build_components(config)
        fit(config, components, run)
        runs.append(run.read_metrics())
    assert runs[0][:2] == runs[1][:2]
    assert runs[0][2]["loss"] != runs[1][2]["loss"]
    assert (components.optimizer.inner_steps, components.optimizer.t) == (4, 2)


def test_a_beginning_after_the_end_is_refused(tiny):
    with pytest.raises(ConfigError, match="from_epoch is 2 of 2 epochs, counted from 0, so entropy_sgd would never"):
        build_components(tiny.override(optimizer_options=("from_epoch=2",)).resolve())


def test_learns(tiny):
    config = tiny.override(train_indices=None, batch_size=32, width=4, eps=0.05, epochs=4).resolve()
    run = RunFolder.create(config)
    fit(config, build_components(config), run)
    assert run.read_metrics()[-1]["natural"] > 0.5


@pytest.mark.parametrize("method", ["free_at", "yopo", "sub_at"])
def test_methods_with_their_own_updates_are_refused(method, tiny):
    with pytest.raises(ConfigError, match="several batches per update"):
        build_components(tiny.override(method=method, attack_steps=None).resolve())
