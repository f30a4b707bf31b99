"""Parts of the user in a run: models, data and weights by name."""

import sys

import pytest
import torch

from pyengm import cli
from pyengm.data import ImageDataset, load, load_from_user
from pyengm.errors import DataError
from pyengm.models import CheckpointInfo, read_info, save_checkpoint
from pyengm.training import TrainConfig, build_components

FILES = {
    "own_model": """
from torch import nn

def make_model(num_classes, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(image_size**2, num_classes))
""",
    "own_data": """
import torch
from torch.utils.data import TensorDataset
from pyengm.data import ImageDataset

calls = []

def images(count):
    y = torch.arange(count) % 3
    x = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(count)) / 2 + y.view(-1, 1, 1, 1) / 6
    return (255 * x).round() / 255, y

def make_datasets(root):
    calls.append(root)
    return images(60), images(20)

def as_torch(): return TensorDataset(*images(60)), TensorDataset(*images(20))
def as_ours(): return [ImageDataset.from_arrays(*images(n), classes=["a", "b", "c"]) for n in (60, 20)]
def one_thing(): return images(60)[0]
def texts(): return "train", "test"
""",
}
SHORT = ["--epochs", "1", "--batch-size", "20", "--attack-steps", "1", "--autoattack-examples", "2"]
SHORT += ["--no-eval-both-threats", "--quiet"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["make_datasets", "as_torch", "as_ours"])
def test_data(here, name):
    train, test = load_from_user(f"own_data:{name}", here)
    assert (len(train), len(test), train.num_classes, train.shape) == (60, 20, 3, (1, 8, 8))
    assert train.labels.tolist() == [i % 3 for i in range(60)]
    again = load(f"own_data:{name}", "test")
    assert torch.equal(torch.as_tensor(again.images[:]), torch.as_tensor(test.images[:]))
    assert isinstance(again, ImageDataset)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("one_thing", "returned Tensor; expected two of ImageDataset"),
        ("texts", "returned str as the train images; expected two"),
    ],
)
def test_data_of_other_kinds(here, name, message):
    with pytest.raises(DataError, match=message):
        load_from_user(f"own_data:{name}", here)


def test_a_function_is_called_once(here, monkeypatch):
    import own_data

    config = TrainConfig.from_flat(data="own_data:make_datasets", data_dir=here, model="cnn4", width=2).resolve()
    components = build_components(config)
    assert own_data.calls == [here]
    assert (len(components.batches.data), len(components.test)) == (54, 20)


def test_a_run_and_one_from_its_files(here, capsys):
    words = ["--model", "own_model:make_model", "--data", "own_data:make_datasets", *SHORT]
    assert cli.main(["train", *words, "--out", "run"]) == 0
    assert read_info(here / "run/last.safetensors").model["name"] == "own_model:make_model"
    again = ["train", "--config", "run/config.yaml", "--out", "again", "--quiet"]
    assert cli.main(again) == 1
    error = capsys.readouterr().err
    assert "model: own_model:make_model, data: own_data:make_datasets" in error
    assert "give --trust-config" in error
    assert not (here / "again").exists()
    assert cli.main([*again, "--trust-config"]) == 0
    assert (here / "again/last.safetensors").read_bytes() == (here / "run/last.safetensors").read_bytes()
    assert cli.main(["train", "--resume", "--out", "run"]) == 1
    assert "give --trust-config" in capsys.readouterr().err
    assert cli.main(["train", "--resume", "--out", "run", "--trust-config"]) == 0


@pytest.mark.parametrize("name", ["weights.pt", "run/last.safetensors"])
def test_weights_to_start_from(tiny, here, name):
    first = build_components(tiny.resolve())
    torch.nn.init.constant_(next(first.model.parameters()), 0.125)
    if name == "weights.pt":
        torch.save({"state_dict": {f"module.{key}": value for key, value in first.model.state_dict().items()}}, name)
    else:
        (here / "run").mkdir()
        info = CheckpointInfo(first.model_options, "digits", first.test.classes, "linf", 0.2, 1)
        save_checkpoint(here / name, first.model, info)
    started = build_components(tiny.override(init=name).resolve())
    for ours, theirs in zip(started.model.state_dict().values(), first.model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
