"""Files of weights that other libraries wrote: prefixes, entries, averages, and what is refused."""

import argparse
import sys
import warnings

import numpy as np
import pytest
import timm
import torch
import torchvision
from helpers.evaluation import OPTIONS, info, network
from safetensors.torch import load_file, save_file
from torch import nn

from pyengm.errors import CheckpointError, ConfigError
from pyengm.models import build, load_checkpoint, load_weights, read_info, save_checkpoint


def state(seed=0):
    return {name: t.contiguous() for name, t in network(seed).state_dict().items()}


def renamed(prefix, seed=0):
    return {prefix + name: t for name, t in state(seed).items()}


def same(model, seed=0):
    expected = state(seed)
    return all(t.equal(expected[name]) for name, t in model.state_dict().items())


OTHER = {"optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}, "epoch": 3}
WITH_SCALARS = {
    "args": argparse.Namespace(lr=0.1),
    "best_acc": np.float64(0.5),
    "step": np.int64(3),
    "rng": torch.get_rng_state(),
}
CONTENTS = {
    "plain": lambda: state(),
    "module.": lambda: {"state_dict": renamed("module."), **OTHER},
    "_orig_mod.": lambda: renamed("_orig_mod."),
    "compiled and parallel": lambda: {"model": renamed("module._orig_mod."), **OTHER},
    "compiled blocks": lambda: {name.replace("block1.", "block1._orig_mod."): t for name, t in state().items()},
    "lightning": lambda: {"state_dict": renamed("model.") | {"metric.total": torch.ones(1)}, "hyper_parameters": {}},
    "net": lambda: {"net": state(), "acc": 93.1},
    "deep": lambda: {"model": {"state_dict": state()}, "epoch": 3},
    "averaged alone": lambda: {"model_ema": state(), **OTHER},
    "averaged model of torch": lambda: {"n_averaged": torch.tensor(3), **renamed("module.")},
    "values of numpy": lambda: {"state_dict": state(), **WITH_SCALARS},
    "without counters": lambda: {name: t for name, t in state().items() if "num_batches" not in name},
    "half precision": lambda: {name: t.half().to(t.dtype) for name, t in state().items()},
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_files_of_torch(content, tmp_path):
    path, other = tmp_path / "weights.pt", network(seed=1)
    torch.save(content(), path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_weights(other, path) is other
    if content is CONTENTS["half precision"]:
        assert all(torch.allclose(t, state()[name], rtol=1e-3, atol=1e-7) for name, t in other.state_dict().items())
    elif content is CONTENTS["without counters"]:
        assert all(t.equal(state()[name]) for name, t in other.named_parameters())
    else:
        assert same(other)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "student.net."])
def test_prefixes_in_safetensors(prefix, tmp_path):
    path, other = tmp_path / "weights.safetensors", network(seed=1)
    save_file(renamed(prefix), path)
    assert same(load_weights(other, path))


def test_legacy_files_of_torch(tmp_path):
    torch.save(state(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same(load_weights(network(seed=1), tmp_path / "old.pth"))


@pytest.mark.parametrize(
    ("plain", "averaged"), [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("net", "swa_net"), ("a", "ema")]
)
def test_an_average_beside_the_weights(plain, averaged, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({averaged: renamed("module.", seed=2), plain: state()}, path)
    with pytest.warns(UserWarning, match=rf"{averaged}.module.*; {plain} is used \(--weights-entry, in Python entry=,"):
        assert same(load_weights(network(seed=1), path))
    assert same(load_weights(network(seed=1), path, entry=f"{averaged}.module"), seed=2)
    assert same(load_weights(network(seed=1), path, entry=plain))
    with pytest.raises(CheckpointError, match=rf"no weights of this model as 'x'; as these it has: .*{plain}"):
        load_weights(network(), path, entry="x")


def test_several_models_in_one_file(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": renamed("student.") | renamed("teacher.", seed=2)}, path)
    with pytest.raises(CheckpointError, match=r"several copies.*state_dict.student, state_dict.teacher; choose one"):
        load_weights(network(), path)
    assert same(load_weights(network(seed=1), path, entry="state_dict.teacher"), seed=2)


def test_weights_of_a_bare_network_in_a_model_that_normalizes(tmp_path):
    torch.save(state(), tmp_path / "weights.pt")
    torch.save(renamed("network.") | {"normalize.mean": torch.zeros(1, 1, 1)}, tmp_path / "half.pt")
    model = build(**OPTIONS, mean=(0.5,), std=(0.25,))
    load_weights(model, tmp_path / "weights.pt")
    assert same(model.network)
    assert model.normalize.mean.item() == 0.5
    wrapped = nn.DataParallel(network(seed=1))
    assert same(load_weights(wrapped, tmp_path / "weights.pt").module)


class Net(nn.Module):
    """A model whose pickle names its class."""


def test_whole_models_are_refused(tmp_path):
    torch.save(Net(), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"test_weights_file.Net, whose loading could run code; save its weights"):
        load_weights(network(), tmp_path / "model.pt")
    torch.jit.trace(network(), torch.zeros(1, 1, 8, 8)).save(tmp_path / "script.pt")
    with pytest.raises(CheckpointError, match=r"TorchScript archive.*torch.jit.load\(FILE\)"):
        load_weights(network(), tmp_path / "script.pt")


class Evil:
    def __reduce__(self):
        return print, ("code of a file was run",)


def test_no_code_of_a_file_is_run(tmp_path, capsys):
    torch.save({"state_dict": state(), "extra": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match=r"print, whose loading could run code") as error:
        load_weights(network(), tmp_path / "evil.pt")
    assert capsys.readouterr().out == ""
    assert "weights_only" not in str(error.value)  # torch's advice to switch it off


DAMAGED = {
    "a page": b"<html><body>Not found</body></html>",
    "nothing": b"",
    "half an archive": None,
    "a pickle": b"\x80\x02garbage that is no pickle",
    "text in an archive": b"PK\x03\x04 and no more",
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_damaged_files(text, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(state(), path)
    path.write_bytes(path.read_bytes()[:5000] if text is None else text)
    model = network(seed=1)
    with pytest.raises(CheckpointError, match=r"weights.pt is damaged"):
        load_weights(model, path)
    assert same(model, seed=1)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([1, 2], "holds a list, no weights by name"),
        ({"epoch": 3}, "holds no tensors"),
        ({"fc.weight": torch.ones(2)}, "another architecture: .* is missing"),
    ],
)
def test_files_without_the_weights(content, says, tmp_path):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=says):
        load_weights(network(), tmp_path / "weights.pt")


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load_weights(network(), tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match=r"cannot read .*: Is a directory"):
        load_weights(network(), tmp_path)


def test_a_shape_that_differs_is_named(tmp_path):
    torch.save({"state_dict": renamed("module.")}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"head.weight has shape \(10, .*\), the model's has \(7, "):
        load_weights(build(**OPTIONS | {"num_classes": 7}), tmp_path / "weights.pt")


def test_files_without_a_description_say_how_to_evaluate_them(tmp_path):
    torch.save(state(), tmp_path / "weights.pt")
    save_file(state(), tmp_path / "weights.safetensors")
    for name in ("weights.pt", "weights.safetensors"):
        with pytest.raises(CheckpointError, match=rf"no description of its model: .*--weights .*{name}"):
            read_info(tmp_path / name)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_our_weights_load_into_plain_torch(library, tmp_path):
    ours = build(f"{library}:resnet18", num_classes=7)
    save_checkpoint(tmp_path / "best.safetensors", ours, info())
    make = torchvision.models.resnet18 if library == "torchvision" else lambda **k: timm.create_model("resnet18", **k)
    theirs = make(num_classes=7)
    theirs.load_state_dict(load_file(tmp_path / "best.safetensors"))
    x = torch.rand(2, 3, 32, 32)
    assert theirs.eval()(x).equal(ours.eval()(x))
    # And back, from a file of torch.save.
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "theirs.pth")
    again = load_weights(build(f"{library}:resnet18", num_classes=7), tmp_path / "theirs.pth")
    assert again.eval()(x).equal(ours(x))


def test_a_checkpoint_that_names_code_needs_trust(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "module_of_a_checkpoint.py").write_text(
        "from helpers.evaluation import network\nprint('run')\ndef make():\n    return network(seed=5)\n"
    )
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, network(), info(name="module_of_a_checkpoint:make"))
    with pytest.raises(ConfigError, match=r"names code .*module_of_a_checkpoint:make.*--trust-config"):
        load_checkpoint(path)
    assert "module_of_a_checkpoint" not in sys.modules
    with pytest.raises(CheckpointError, match="width is 4, and module_of_a_checkpoint:make has no such argument"):
        load_checkpoint(path, trust_config=True)
    save_checkpoint(path, network(), info(name="module_of_a_checkpoint:make", width=None))
    model, _ = load_checkpoint(path, trust_config=True)
    assert same(model)
