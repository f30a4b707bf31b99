"""Checkpoints on disk: what is read is what was written, and damaged files are errors."""

import pytest
import torch
from helpers.evaluation import info, network
from safetensors.torch import load_file, save_file
from torch import nn

from pyengm.errors import CheckpointError
from pyengm.models import load_checkpoint, load_weights, read_info, save_checkpoint
from pyengm.utils.io import atomic_write


def test_checkpoint_round_trip(tmp_path):
    path, model = tmp_path / "a.safetensors", network().to(memory_format=torch.channels_last)
    save_checkpoint(path, model, info())
    loaded, found = load_checkpoint(path)
    assert found == read_info(path) == info()
    assert not loaded.training
    state = loaded.state_dict()
    assert all(t.equal(state[name]) for name, t in model.state_dict().items())
    save_checkpoint(path, network(seed=1), info(epoch=4))  # replaces it
    assert read_info(path).epoch == 4
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_failed_save_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, network(), info())
    before = path.read_bytes()

    def die_half_way(temporary):
        temporary.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        atomic_write(path, die_half_way)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("size", [0, 4, 100, -100])
def test_truncated_checkpoint(size, tmp_path):
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, network(), info())
    path.write_bytes(path.read_bytes()[:size])
    for load in (load_checkpoint, read_info, lambda path: load_weights(network(), path)):
        with pytest.raises(CheckpointError, match=r"best.safetensors is damaged"):
            load(path)


def test_missing_and_foreign_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_checkpoint(tmp_path / "none.safetensors")
    path, model = tmp_path / "foreign.safetensors", network()
    save_file(model.state_dict(), path)
    with pytest.raises(CheckpointError, match="load_weights"):
        load_checkpoint(path)
    other = network(seed=1)
    assert load_weights(other, path) is other
    assert all(t.equal(other.state_dict()[name]) for name, t in model.state_dict().items())
    for metadata in ("{", "[]", '{"model": 1}'):
        save_file(model.state_dict(), path, {"pyengm": metadata})
        with pytest.raises(CheckpointError):
            load_checkpoint(path)


def test_checkpoint_of_another_architecture(tmp_path):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, network(), info(width=8))
    with pytest.raises(CheckpointError, match=r"another architecture.*shape.* and \d+ more"):
        load_checkpoint(path)
    save_checkpoint(path, network(), info(name="cnn5"))
    with pytest.raises(CheckpointError, match="cnn5"):
        load_checkpoint(path)
    model = nn.Sequential(nn.Linear(2, 2))
    before = model[0].weight.clone()
    with pytest.raises(CheckpointError, match=r"0\.weight is missing.*is not in the model"):
        load_weights(model, path)
    assert model[0].weight.equal(before)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3)
        self.second.weight = self.first.weight


def test_tied_weights(tmp_path):
    path, model = tmp_path / "tied.safetensors", Tied()
    save_checkpoint(path, model, info())
    assert len(load_file(path)) == 2
    loaded = load_weights(Tied(), path)
    assert loaded.first.weight is loaded.second.weight
    assert loaded.first.weight.equal(model.first.weight)
    assert loaded.second.bias.equal(model.second.bias)
    untied = Tied()
    untied.second.weight = nn.Parameter(torch.zeros(3, 3))
    with pytest.raises(CheckpointError, match="weight is missing"):
        load_weights(untied, path)
