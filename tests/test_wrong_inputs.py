"""What users get wrong, on the command line and in Python: one line of advice, and nothing written or lost."""

import hashlib
import os
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pyengm
from pyengm import cli
from pyengm.attacks import ThreatModel
from pyengm.data import ImageDataset, load
from pyengm.errors import PyengmError
from pyengm.training import RunFolder, TrainConfig, plan, train, train_seeds

TINY = ["--model", "cnn4", "--width", "2", "--epochs", "1", "--attack-steps", "1", "--batch-size", "8"]
TINY += ["--select-on", "none"]
DIGITS = [*TINY, "--optimizer", "msgd"]

YAML = {
    "no_yaml": "a: [\n",
    "list": "- 3\n",
    "empty": "",
    "flags": "--epochs 3\n",
    "true": "schedule: {epochs: true}\n",
    "many": "schedule: {epochs: many}\n",
    "group": "schedul: {epochs: 3}\n",
    "flat": "epochs: 3\n",
    "option": "schedule: {epoch: 3}\n",
    "null": "schedule:\n",
    "twice": "schedule: {epochs: 1}\nschedule: {epochs: 2}\n",
    "nan": "optimizer: {lr: .nan}\n",
    "nested": "schedule: {epochs: [3]}\n",
    "date": "schedule: {epochs: 2020-01-01}\n",
    "bad_date": "schedule: {epochs: 2020-13-41}\n",
    "tag": "!!python/object/apply:os.system ['echo']\n",
    "text": "evaluation: {attacks: fgsm}\n",
    "idle": "schedule: {name: cyclic, milestones: [3]}\n",
    "model": "model: {name: 'my_model:make'}\n",
    "data": "data: {name: 'my_data:make'}\n",
    "logger": "run: {loggers: ['os:system']}\n",
}

MODULES = {
    "raises": "raise RuntimeError('boom')\n",
    "leaves": "import sys; sys.exit(3)\n",
    "no_python": "def (:\n",
    "mine": "from pyengm.training import Logger\n"
    "NUMBER = 3\n"
    "def make(**options): return None\n"
    "class Other: pass\n"
    "class Path(Logger):\n    def __init__(self, path): ...\n",
}

# What is changed in a folder of 12 + 4 images of 16x16 in each of the classes a and b.
FOLDERS = {
    "one_class": lambda root: [path.rename(root / f"no-{path.parent.name}") for path in [*root.glob("*/b")]],
    "test_size": lambda root: [save(path, (48, 48)) for path in [*root.glob("test/*/*.png")]],
    "oblong": lambda root: [save(path, (16, 24)) for path in root.rglob("*.png")],
    "small": lambda root: [save(path, (4, 4)) for path in root.rglob("*.png")],
    "dangling": lambda root: (root / "train/a/x.png").symlink_to("nowhere.png"),
    "no_image": lambda root: (root / "train/a/x.png").write_bytes(b"no image"),
    "sixteen_bits": lambda root: Image.fromarray(np.ones((16, 16), np.uint16)).save(root / "train/a/x.png"),
    "empty_class": lambda root: (root / "train/c").mkdir(),
    "no_test": lambda root: (root / "test").rename(root / "tset"),
    "more_classes": lambda root: (root / "test/a").rename(root / "test/c"),
    "latin_class": lambda root: [
        os.rename(path, os.fsencode(path.parent) + b"/caf\xe9") for path in [*root.glob("*/a")]
    ],
    "few": lambda root: [path.unlink() for path in [*root.glob("train/*/*.png")] if int(path.stem) > 3],
}


def save(path: Path, shape: tuple[int, int]) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with wrong files of every kind, which the tests must leave as it is."""
    here = tmp_path_factory.mktemp("wrong")
    for name, change in {"good": lambda root: None, **FOLDERS}.items():
        for split, label in product(("train", "test"), "ab"):
            folder = here / name / split / label
            folder.mkdir(parents=True)
            for i in range(12 if split == "train" else 4):
                save(folder / f"{i}.png", (16, 16))
        change(here / name)
    for name, text in YAML.items():
        (here / f"{name}.yaml").write_text(text)
    for name, text in MODULES.items():
        (here / f"wrong_{name}.py").write_text(text)
    (here / "bytes.yaml").write_bytes(b"\xff\xfe\0\1")
    (here / "file").write_text("x")
    for name, text in {"minus": "-1", "twice": "1\n1", "half": "1.5", "none": "", "big": "99999"}.items():
        (here / f"{name}.txt").write_text(text)
    np.save(here / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(here / "table.npy", np.zeros((2, 2), int))
    torch.save({"a": torch.zeros(2)}, here / "other.pt")
    make_runs(here)
    return here


def make_runs(here: Path) -> None:
    """A started run, and the same with damaged files."""
    for name in ("run", "run_no_yaml", "run_unknown", "run_code"):
        RunFolder.create(TrainConfig.from_flat(optimizer="msgd", out=here / name).resolve())
    (here / "run_no_yaml/config.yaml").write_text("a: [")
    (here / "run_unknown/config.yaml").write_text("schedule: {epoch: 3}")
    (here / "run_code/config.yaml").write_text("model: {name: 'my_model:make'}")
    (here / "seeds").mkdir()
    (here / "seeds/seed-0").mkdir()


@pytest.fixture
def here(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("PYENGM_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.path", ["", *os.sys.path])
    before = content(place)
    yield place
    assert content(place) == before


def content(folder: Path) -> dict[bytes, str]:
    """A digest of every file, and the target of every link."""
    found = {}
    for root, folders, files in os.walk(os.fsencode(folder)):
        folders[:] = [name for name in folders if name != b"__pycache__"]
        for name in (*folders, *files):
            path = os.path.join(root, name)
            is_file = os.path.isfile(path) and not os.path.islink(path)
            found[path] = hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest() if is_file else ""
    return found


# Words and the message. Words that do not parse end with status 2; values and what they name with 1.
USAGE = [
    (["tarin"], "unknown command 'tarin' (did you mean train?)"),
    (["--verison"], "(did you mean --version?)"),
    (["train", "train"], "unexpected word 'train'"),
    (["train", "--epoch", "3"], "unknown option --epoch (did you mean --epochs?)"),
    (["train", "--Loggers"], "unknown option --Loggers (did you mean --loggers?)"),
    (["train", "-x"], "unexpected word '-x'"),
    (["train", "--epochs"], "--epochs has no value; expected an integer"),
    (["train", "--epochs", "--lr", "1"], "--epochs has no value"),
    (["train", "--epochs", "3", "4"], "unexpected word '4'"),
    (["train", "--config"], "--config has no value; expected a path"),
    (["train", "--epochs", "many"], "--epochs is 'many'; expected an integer"),
    (["train", "--epochs", "1.5"], "--epochs is '1.5'; expected an integer"),
    (["train", "--eps", "8/0"], "--eps is '8/0'; expected a number"),
    (["train", "--eps", "abc"], "--eps is 'abc'; expected a number"),
    (["train", "--eps", ""], "--eps is ''; expected a number"),
    (["train", "--eps", "8/255/3"], "--eps is '8/255/3'; expected a number"),
    (["train", "--seeds", "x"], "--seeds is 'x'; expected an integer"),
    (["train", "--schedule", "linear"], "unknown schedule 'linear'; known: piecewise, cyclic"),
    (["train", "--precision", "fp32"], "unknown precision 'fp32'; known: float32, bf16, fp16"),
    (["train", "--mean", "x", "--std", "1"], "--mean is 'x'; expected a number"),
    (["train", "--norm-layer", "ln"], "unknown norm_layer 'ln'; known: bn, gn"),
    (["train", "--method", "pdg_at"], "(did you mean pgd_at?)"),
    (["train", "--optimizer", "adam"], "unknown optimizer 'adam'; known: "),
    (["train", "--threat", "l1"], "unknown threat 'l1'; known: linf, l2"),
    (["train", "--attacks", "fgms"], "unknown attack 'fgms'; known: fgsm"),
    (["train", "--out", ""], "--out is ''; expected a path"),
    (["train", "--out", "a" * 300], "expected a path"),
    (["train", "--data", "a" * 300], "expected a word"),
    (["train", "--resume"], "--resume needs --out RUN_FOLDER"),
    (["evaluate"], "target is missing"),
    (["evaluate", "run", "b"], "unexpected word 'b'"),
    (["evaluate", "run", "--seed", "x"], "--seed is 'x'; expected an integer"),
    (["report"], "runs is missing"),
    (["report", "run", "--images", "x"], "--images is 'x'; expected an integer"),
    (["reproduce", "--scale", "huge"], "unknown scale 'huge'; known: smoke, short, full"),
    (["completion"], "shell is missing"),
    (["completion", "csh"], "unknown shell 'csh'"),
]

VALUES = [
    (["train", "--epochs", "0"], "epochs is 0; expected at least 1"),
    (["train", "--epochs", "9" * 30], "expected at least 1, and less than 2**31"),
    (["train", "--eps", "8"], "eps is 8, more than all of a pixel in [0, 1]; expected at most 1; 8/255?"),
    (["train", "--eps", "255"], "255/255?"),
    (["train", "--eps", "nan"], "eps is nan; expected a finite number >= 0"),
    (["train", "--eps=-1"], "eps is -1.0; expected a finite number >= 0"),
    (["train", "--step-size", "0"], "step_size is 0.0; expected a number above 0 and at most 1"),
    (["train", "--step-size", "2"], "such as 2/255"),
    (["train", "--attack-steps", "0"], "attack_steps is 0; expected at least 1"),
    (["train", "--lr", "0"], "lr is 0.0; expected a finite number > 0"),
    (["train", "--lr", "inf"], "lr is inf"),
    (["train", "--momentum", "2"], "momentum is 2.0; expected a share from 0 to less than 1"),
    (["train", "--weight-decay=-1"], "weight_decay is -1.0"),
    (["train", "--batch-size", "0"], "batch_size is 0"),
    (["train", "--width", "0"], "width is 0; expected at least 1"),
    (["train", "--width", "9" * 12], "width is 999999999999; expected at least 1, and less than 2**31"),
    (["train", "--cpu-threads", "100000"], "cpu_threads is 100000; expected 1 to 1024"),
    (["train", "--nproc", "0"], "nproc is 0"),
    (["train", "--seed=-1"], "seed is -1; expected 0 to 2**63 - 1"),
    (["train", "--seed", "1", "--seeds", "1", "2"], "seed has no effect: seeds are 1 2; leave seed out"),
    (["train", "--seeds", "1", "1"], "seeds are (1, 1); expected each of them once"),
    (["train", "--milestones", "3"], "milestones has no effect: it is for schedule piecewise, not cyclic"),
    (["train", "--schedule", "piecewise", "--milestones", "99"], "milestones 99 are never reached in 14 epochs"),
    (["train", "--lr-decay", "0.5"], "lr_decay has no effect"),
    (["train", "--schedule", "piecewise", "--pct-start", "0.3"], "pct_start has no effect"),
    (["train", "--warmup-epochs", "99"], "warmup_epochs is 99 of 14 epochs"),
    (["train", "--optimizer", "msgd", "--norms", "exact"], "norms has no effect: it is for optimizer"),
    (["train", "--optimizer", "msgd", "--alpha", "3"], "alpha has no effect"),
    (["train", "--tau", "3"], "tau has no effect: it is for optimizer aengm, not engm"),
    (["train", "--max-norm", "3"], "max_norm has no effect: it is for optimizer mgnc, not engm"),
    (["train", "--alpha", "0"], "alpha is 0.0"),
    (["train", "--ema-decay", "0.5"], "ema_decay has no effect: it is for average ema, not none"),
    (["train", "--swa-start", "3"], "swa_start has no effect"),
    (["train", "--patience", "3", "--select-on", "none"], "give --select-on val"),
    (["train", "--mean", "0.5"], "expected both or neither"),
    (["train", "--method", "natural", "--attack-steps", "3"], "method natural takes no attack_steps"),
    (["train", "--method", "natural", "--on-catastrophic-overfitting", "stop"], "has no effect"),
    (["train", "--method-options", "beta=3"], "expected NAME=VALUE with a name of PGDAT"),
    (["train", "--method", "trades", "--method-options", "beta=x"], "expected a number (default: 6)"),
    (["train", "--method", "trades", "--method-options", "beta=1", "beta=2"], "has beta twice"),
    (["train", "--method", "trades", "--method-options", "beta=-5"], "beta is -5.0; expected a finite number >= 0"),
    (["train", "--method", "mart", "--label-smoothing", "0.1"], "which MART cannot take"),
    (["train", "--label-smoothing", "1"], "label_smoothing is 1.0"),
    (["train", "--loggers", "tensorbord"], "unknown logger 'tensorbord'; known: tensorboard, wandb, mlflow"),
    (["reproduce", "engm-2", "--seeds"], "expected at least one"),
]

INPUT = [
    *(
        (["train", "--config", f"{name}.yaml"], message)
        for name, message in {
            "missing": "cannot read the configuration missing.yaml",
            "bytes": "cannot read the configuration bytes.yaml",
            "no_yaml": "cannot read the configuration no_yaml.yaml",
            "list": "list.yaml holds no options; expected groups of them",
            "empty": "empty.yaml holds no options",
            "flags": "flags.yaml holds no options",
            "true": "true.yaml: epochs is True; expected an integer",
            "many": "many.yaml: epochs is 'many'; expected an integer",
            "group": "group.yaml: unknown group 'schedul' (did you mean schedule?)",
            "flat": "flat.yaml: unknown group 'epochs' (it belongs to schedule)",
            "option": "option.yaml: unknown option 'epoch' in schedule (did you mean epochs?)",
            "null": "null.yaml: schedule is None; expected options and values",
            "twice": "schedule comes twice",
            "nan": "nan.yaml: lr is nan; expected a finite number > 0",
            "nested": "nested.yaml: epochs is [3]; expected an integer",
            "date": "date.yaml: epochs is datetime.date(2020, 1, 1); expected an integer",
            "bad_date": "cannot read the configuration bad_date.yaml",
            "tag": "could not determine a constructor for the tag",
            "text": "text.yaml: attacks is 'fgsm'; expected a list, each a word",
            "idle": "idle.yaml: milestones has no effect",
            "model": "(model: my_model:make): read that code, and give --trust-config",
            "data": "(data: my_data:make): read that code, and give --trust-config",
            "logger": "(logger 1: os:system): read that code, and give --trust-config",
        }.items()
    ),
    (["train", "--config", "good"], "cannot read the configuration good"),
    *(
        (["train", *TINY, "--data", name], message)
        for name, message in {
            "nowhere": "unknown data set 'nowhere'",
            "cifar11": "unknown data set 'cifar11' (did you mean cifar10?)",
            "CIFAR10": "cifar10: no intact copy in ",
            "svhn": "download it (--download), or name the folder that holds it",
            "file": "unknown data set 'file'",
            "good/train": "expected images of two classes or more in ",
            "one_class": "expected images of two classes or more in ",
            "test_size": "shape 3x48x48, and the model is trained on 3x16x16: give --image-size 16",
            "oblong": "the models take square images, ",
            "small": "image_size must be an integer of at least 8, got 4",
            "dangling": "train/a/x.png: cannot read this image (No such file or directory): repair or remove it",
            "no_image": "train/a/x.png: cannot read this image",
            "sixteen_bits": "expected 8 bits per channel",
            "empty_class": "train/c has no image",
            "no_test": "expected test images in ",
            "more_classes": "the class 'c' is not in train/",
            "latin_class": r"the class folder b'caf\xe9' has a name that is not UTF-8: rename it",
        }.items()
    ),
    (["train", *TINY[:-2], "--data", "few", "--select-on", "val"], "train without one (--select-on none)"),
    (["train", *TINY, "--data", "good", "--image-size", "100000"], "are needed for decoded images in "),
    (["train", *TINY, "--data", "good", "--threat", "l2", "--eps", "128"], "eps is 128 in L2, and no two images"),
    (["train", *DIGITS, "--image-size", "16"], "image_size resizes folders only"),
    *(
        (["train", *DIGITS, "--train-indices", name], message)
        for name, message in {
            "minus.txt": "expected positions from 0 to 1436, got -1 to -1",
            "twice.txt": "position 1 comes more than once",
            "half.txt": "cannot read whole numbers from half.txt",
            "none.txt": "expected a non-empty list of positions",
            "big.txt": "expected positions from 0 to 1436",
            "missing.txt": "cannot read whole numbers from missing.txt",
            "objects.npy": "cannot read whole numbers from objects.npy",
            "table.npy": "expected a non-empty list of positions, got shape (2, 2)",
            "good": "cannot read whole numbers from good",
        }.items()
    ),
    *(
        (["train", *DIGITS, "--loggers", name], message)
        for name, message in {
            "os:system": "os:system has missing a required argument: 'command'",
            "nowhere_at_all:make": "there is no module 'nowhere_at_all'",
            "wrong_raises:make": "cannot import wrong_raises: RuntimeError: boom",
            "wrong_leaves:make": "cannot import wrong_leaves: SystemExit: 3",
            "wrong_no_python:make": "cannot import wrong_no_python: SyntaxError",
            "wrong_mine:mkae": "has no function or class 'mkae' (did you mean make?)",
            "wrong_mine:NUMBER": "expected a function or class, got NUMBER of type int",
            "wrong_mine:Other": "wrong_mine:Other is a class of another kind; expected a pyengm.training.Logger",
            "wrong_mine:Path": "missing a required argument: 'path'; the arguments that it can have: folder, config",
        }.items()
    ),
    (["train", *TINY, "--data", "wrong_mine:make"], "returned NoneType; expected two of ImageDataset"),
    (["train", *DIGITS[2:], "--model", "wrong_mine:make"], "expected a torch.nn.Module from wrong_mine:make"),
    (["train", *DIGITS[4:], "--model", "resnet81"], "unknown model 'resnet81'"),
    (["train", *DIGITS[4:], "--model", "timm:nope"], "unknown model 'timm:nope'"),
    (["train", *DIGITS[4:], "--model", "cnn4", "--width", "1000000"], "the memory is not enough"),
    (["train", *DIGITS, "--init", "missing.pt"], "missing.pt"),
    (["train", *DIGITS, "--init", "file"], "file"),
    (["train", *DIGITS, "--init", "other.pt"], "other.pt"),
    (["train", *DIGITS, "--nproc", "100000"], "nproc is 100000; expected at most "),
    (["train", *DIGITS, "--autoattack-examples", "9999"], "autoattack_examples is 9999; expected at most 360"),
    (["train", *DIGITS, "--sync-bn"], "sync_bn needs GPUs"),
    (["train", *DIGITS, "--device", "abacus"], "device 'abacus' is unknown; expected auto, cpu, cuda"),
    (["train", *DIGITS, "--device", "meta"], "device 'meta' is unknown"),
    (["train", *DIGITS, "--device", "cuda:99"], "device 'cuda:99' cannot be used here"),
    (["train", *DIGITS, "--out", "file"], "the run folder file exists and is not overwritten"),
    (["train", *DIGITS, "--out", "good"], "the run folder good exists and is not overwritten"),
    (["train", *DIGITS, "--out", "file/below"], "Not a directory; choose another --out"),
    (["train", *DIGITS, "--out", "run"], "resume the run in it: pyengm train --out run --resume"),
    (["train", "--resume", "--out", "good"], "good is no run folder of pyengm"),
    (["train", "--resume", "--out", "missing"], "missing is no run folder of pyengm"),
    (["train", "--resume", "--out", "seeds"], "give --seeds too"),
    (["train", "--resume", "--out", "run_no_yaml"], "cannot read the configuration run_no_yaml/config.yaml"),
    (["train", "--resume", "--out", "run_unknown"], "unknown option 'epoch' in schedule"),
    (["train", "--resume", "--out", "run_code"], "give --trust-config"),
    (["train", "--resume", "--out", "run", "--lr", "3"], "a resumed run keeps its options; lr differ"),
    (["train", "--dry-run", *DIGITS, "--out", "run"], "the run folder run exists and is not overwritten"),
    (["report", "missing"], "there is no run folder and no file missing"),
    (["report", "good"], "good is no run folder of pyengm"),
    (["report", "run"], "the run run is not finished: it has no results.json; pyengm train --out run --resume"),
    (["report", "run_no_yaml"], "is not finished"),
    (["report", "file"], "cannot read the results file"),
    (["report", "other.pt"], "cannot read the results other.pt"),
    (["report", "run", "--images", "0"], "images is 0; expected at least 1"),
    (["report", "run", "--out", "file"], "file exists and is not overwritten; choose another --out"),
    (["report", "run", "--out", "good"], "good exists and is not overwritten"),
    (["reproduce", "engm-9"], "unknown table 'engm-9'; known: "),
    (["reproduce", "ENGM-2", "--rows", "zz"], "unknown row 'zz'; known: "),
    (["reproduce", "engm-2", "--out", "file"], "file exists"),
]


@pytest.mark.parametrize(
    ("status", "words", "message"),
    [(2, *case) for case in USAGE] + [(1, *case) for case in VALUES + INPUT],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else None,
)
def test_command_line(here, capsys, status, words, message):
    assert cli.main(words) == status
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "<class '" not in error
    assert "download=True" not in error


def train_tiny(**options):
    return train(TrainConfig.from_flat(model="cnn4", width=2, epochs=1, attack_steps=1, optimizer="msgd", **options))


PYTHON = [
    (lambda: TrainConfig.from_flat(epochs="many"), "epochs is 'many'; expected an integer"),
    (lambda: TrainConfig.from_flat(epochs=True), "epochs is True; expected an integer"),
    (lambda: TrainConfig.from_flat(epochs=2.5), "epochs is 2.5; expected an integer"),
    (lambda: TrainConfig.from_flat(lr=[0.1]), r"lr is \[0.1\]; expected a number"),
    (lambda: TrainConfig.from_flat(lr=1j), "lr is 1j; expected a number"),
    (lambda: TrainConfig.from_flat(download=1), "download is 1; expected true or false"),
    (lambda: TrainConfig.from_flat(tau=None), "tau is None; expected an integer"),
    (lambda: TrainConfig.from_flat(attacks="fgsm"), "attacks is 'fgsm'; expected a list"),
    (lambda: TrainConfig.from_flat(attacks={"fgsm"}), "expected a list, each a word"),
    (lambda: TrainConfig.from_flat(milestones=3), "milestones is 3; expected a list, each a number"),
    (lambda: TrainConfig.from_flat(eps="8/0"), "eps is '8/0'; expected a number"),
    (lambda: TrainConfig.from_flat(eps=8), "eps is 8, more than all of a pixel"),
    (lambda: TrainConfig.from_flat(data=3), "data is 3; expected a word"),
    (lambda: TrainConfig.from_flat(data=""), "data is ''; expected a word"),
    (lambda: TrainConfig.from_flat(out=3), "out is 3; expected a path"),
    (lambda: TrainConfig.from_flat(out=""), "out is ''; expected a path"),
    (lambda: TrainConfig.from_flat(epoch=3), r"unknown option 'epoch' \(did you mean epochs\?\)"),
    (lambda: TrainConfig.from_flat(milestones=(3,)).resolve(), "milestones has no effect"),
    (lambda: TrainConfig.load("missing.yaml"), "cannot read the configuration missing.yaml"),
    (lambda: train_tiny(seeds=(1, 2)), "use train_seeds"),
    (lambda: train_tiny(dry_run=True), "in Python print pyengm.training.plan"),
    (lambda: train_tiny(nproc=2), "nproc is 2 in a single process"),
    (lambda: train_tiny(out="file"), "exists and is not overwritten"),
    (lambda: train_tiny(out="missing", resume=True), "missing is no run folder of pyengm"),
    (lambda: train_tiny(resume=True), "out is None; expected the folder of the run"),
    (lambda: train_tiny(data="nowhere"), "unknown data set 'nowhere'"),
    (lambda: train_tiny(lr=0.1, milestones=(3,)), "milestones has no effect"),
    (lambda: train_seeds(TrainConfig.from_flat(seeds=(1, 2), out="good")), "exists and is not overwritten"),
    (lambda: train_seeds(TrainConfig()), "seeds are empty"),
    (lambda: plan(TrainConfig.from_flat(data="nowhere")), "unknown data set 'nowhere'"),
    (lambda: RunFolder.open(Path("good")), "good is no run folder of pyengm"),
    (lambda: ThreatModel("linf", 8), "8/255?"),
    (lambda: ThreatModel("linf", "8/255"), "eps is '8/255'; expected a finite number"),
    (lambda: ThreatModel("l3", 0.1), "known norms: linf, l2"),
    (lambda: load("nowhere", "train"), "unknown data set 'nowhere'"),
    (lambda: load("digits", "val"), 'expected split "train" or "test"'),
    (lambda: load("latin_class", "train"), "not UTF-8"),
    (lambda: load("digits", "train", indices=[0, 0]), "comes more than once"),
    (lambda: load("digits", "train", indices="ab"), "expected whole numbers"),
    (lambda: ImageDataset.from_arrays(torch.full((2, 1, 8, 8), 200.0), [0, 1]), "divide by 255"),
    (lambda: ImageDataset.from_arrays(torch.rand(2, 8, 8, 3), [0, 1]), "permute it"),
]


@pytest.mark.parametrize(("call", "message"), PYTHON)
def test_python(here, call, message):
    with pytest.raises(PyengmError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_there_are_many():
    assert len(USAGE) + len(VALUES) + len(INPUT) + len(PYTHON) >= 200


def test_values_of_python_are_converted(tmp_path):
    config = TrainConfig.from_flat(
        eps="8/255",
        lr=1,
        epochs=np.int64(3),
        data=Path("cifar10"),
        out=str(tmp_path),
        method="PGD-AT",
        optimizer="EnGM",
        threat="L2",
        attacks=["FGSM", "apgd-ce"],
        schedule="Piecewise",
        milestones=[1, np.float32(2)],
    )
    assert (config.attack.eps, config.optimizer.lr, config.schedule.epochs) == (8 / 255, 1.0, 3)
    assert (config.data.name, config.run.out) == ("cifar10", tmp_path)
    assert (config.method.name, config.optimizer.name, config.attack.threat) == ("pgd_at", "engm", "l2")
    assert config.evaluation.attacks == ("fgsm", "apgd_ce")
    assert (config.schedule.name, config.schedule.milestones) == ("piecewise", (1.0, 2.0))
    assert TrainConfig.from_flat(data="Digits", model="CNN8").model.name == "cnn8"


def test_an_unknown_attribute_of_the_package():
    with pytest.raises(AttributeError, match="no attribute 'ENMG'"):
        partial(getattr, pyengm)("ENMG")
