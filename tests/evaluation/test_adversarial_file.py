"""Adversarial images are kept in a file, and tried on other models."""

import json

import pytest
import torch
from helpers.evaluation import CPU, LINF, data_for, info, network

from pyengm import cli
from pyengm.data import ImageDataset
from pyengm.errors import DataError
from pyengm.evaluation import AdversarialImages, as_source, evaluate_checkpoints, load_adversarial, save_adversarial
from pyengm.evaluation.accuracy import predict
from pyengm.evaluation.further import further_results, further_tables
from pyengm.models import save_checkpoint


@pytest.fixture
def model():
    return network()


@pytest.fixture
def checkpoint(model, tmp_path):
    save_checkpoint(tmp_path / "model.safetensors", model, info())
    return tmp_path / "model.safetensors"


def found_on(checkpoint, data, attacks=("fgsm", "pgd:steps=3,step_size=0.05", "autoattack")):
    kept: list[AdversarialImages] = []
    results = evaluate_checkpoints({"model": checkpoint}, data, [LINF], attacks, device=CPU, kept=kept)
    return kept, results["model"]


def test_images_and_verdicts_are_those_of_the_evaluation(model, checkpoint, tmp_path):
    data = data_for(model)
    kept, results = found_on(checkpoint, data)
    assert [one.attack for one in kept] == ["fgsm", "pgd:steps=3,step_size=0.05", "autoattack"]
    for one in kept:
        assert (one.images - data.images / 255).abs().max() <= LINF.eps + 1e-6
        assert 0 <= one.images.min() <= one.images.max() <= 1
        with torch.no_grad():
            assert (model(one.images).argmax(1) == data.labels).equal(one.correct)
        assert one.correct.double().mean().item() == results[one.attack]
    plain = evaluate_checkpoints({"model": checkpoint}, data, [LINF], ["fgsm", "autoattack"], device=CPU)["model"]
    assert {name: results[name] for name in ("natural", "fgsm", "autoattack")} == {
        name: plain[name] for name in ("natural", "fgsm", "autoattack")
    }
    path = tmp_path / "found.safetensors"
    save_adversarial(path, kept, data, {"model": "a name"})
    again, sets, about = load_adversarial(path)
    assert about["model"] == "a name"
    for one, other, images in zip(kept, again, sets, strict=True):
        assert (one.attack, one.norm, one.eps) == (other.attack, other.norm, other.eps)
        assert one.images.equal(other.images)
        assert one.correct.equal(other.correct)
        assert images.index.equal(data.index)
        assert predict(model, images, None, seed=0, device=CPU).correct.equal(one.correct)


def test_a_resumed_evaluation_keeps_the_same_images(model, checkpoint, tmp_path):
    data, once = data_for(model), []
    for kept in (once, again := []):
        evaluate_checkpoints(
            {"model": checkpoint}, data, [LINF], ["pgd20"], device=CPU, kept=kept, state=tmp_path / "state"
        )
    assert once[0].images.equal(again[0].images)


def test_another_model_is_tried(model, checkpoint, tmp_path):
    data, other = data_for(model), tmp_path / "other.safetensors"
    save_checkpoint(other, network(seed=1), info())
    kept, _ = found_on(checkpoint, data, ["pgd20"])
    save_adversarial(tmp_path / "found.safetensors", kept, data)
    sources = {"model": as_source(checkpoint), "other": as_source(other)}
    results = further_results(sources, data, device=CPU, adversarial=tmp_path / "found.safetensors")
    (attack,) = results["from_adversarial"]["attacks"]
    assert attack["accuracy"]["model"] == attack["attacked"] == kept[0].correct.double().mean().item()
    with torch.no_grad():
        expected = (network(seed=1)(kept[0].images).argmax(1) == data.labels).double().mean().item()
    assert attack["accuracy"]["other"] == expected
    assert len(further_tables(results)) == 1
    assert not further_tables({})


def test_other_files_are_refused(tmp_path, model):
    (tmp_path / "text").write_text("no tensors")
    save_checkpoint(tmp_path / "weights.safetensors", model, info())
    for name in ("text", "weights.safetensors", "missing"):
        with pytest.raises(DataError, match="is no file of adversarial images"):
            load_adversarial(tmp_path / name)


def test_images_of_another_size_are_refused(model, checkpoint, tmp_path):
    images = ImageDataset(torch.rand(4, 1, 6, 6), [0, 1, 2, 3], tuple("0123456789"), "made", "test")
    one = AdversarialImages("fgsm", "linf", 0.1, torch.rand(4, 1, 6, 6), torch.ones(4, dtype=torch.bool))
    save_adversarial(tmp_path / "small.safetensors", [one], images)
    with pytest.raises(DataError, match="1x6x6"):
        further_results(
            {"m": as_source(checkpoint)}, data_for(model), device=CPU, adversarial=tmp_path / "small.safetensors"
        )


class TestCommand:
    def run(self, *words):
        return cli.main(["evaluate", *map(str, words)])

    def test_save_and_try(self, checkpoint, tmp_path, capsys):
        positions = tmp_path / "positions.txt"
        positions.write_text("\n".join(map(str, range(0, 60, 3))))
        options = (checkpoint, "--data", "digits", "--threat", "linf", "--eps", "0.1", "--indices", positions)
        out, file = tmp_path / "out.json", tmp_path / "found.safetensors"
        assert self.run(*options, "--no-autoattack", "--attacks", "fgsm", "--save-adversarial", file, "--out", out) == 0
        results = json.loads(out.read_text())
        assert results["images"]["all"] == 20
        assert "autoattack" not in results["model"]
        found, sets, _ = load_adversarial(file)
        assert [one.attack for one in found] == ["fgsm", "pgd20"]
        assert sets[0].index.tolist() == list(range(0, 60, 3))
        assert found[1].correct.double().mean().item() == results["model"]["pgd20"]
        assert self.run(*options, "--no-autoattack", "--from-adversarial", file, "--out", tmp_path / "second.json") == 0
        again = json.loads((tmp_path / "second.json").read_text())["from_adversarial"]["attacks"]
        assert [one["accuracy"]["model"] for one in again] == [one["attacked"] for one in again]
        assert "Adversarial images of found.safetensors" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ((), "give --threat"),
            (("--threat", "linf", "--autoattack-examples", "5"), "keeps the same images for every attack"),
        ],
    )
    def test_what_cannot_be_kept(self, words, message, checkpoint, tmp_path, capsys):
        file = tmp_path / "f.safetensors"
        assert self.run(checkpoint, "--data", "digits", "--save-adversarial", file, *words) == 1
        assert message in " ".join(capsys.readouterr().err.split())

    def test_the_split(self, checkpoint, tmp_path):
        out = tmp_path / "out.json"
        options = ("--data", "digits", "--split", "train", "--threat", "linf", "--no-autoattack", "--out", out)
        assert self.run(checkpoint, *options) == 0
        results = json.loads(out.read_text())
        assert results["images"]["all"] == 1437
        assert results["evaluation"]["split"] == "train"

    def test_protocols(self, checkpoint, tmp_path):
        out = tmp_path / "out.json"
        options = ("--data", "digits", "--protocol", "dynamic", "--threat", "linf", "--out", out)
        assert self.run(checkpoint, *options) == 0
        found = json.loads(out.read_text())["model"]
        assert found.keys() == {
            "natural",
            "fgsm",
            "pgd:steps=10,step_size=eps/4,loss=ce",
            "pgd:steps=20,step_size=eps/4,loss=ce",
            "cw",
        }
