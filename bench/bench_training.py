"""Training as a whole, in images per second, in some 15 minutes on a quiet machine:

    OMP_NUM_THREADS=1 pytest bench/bench_training.py --baseline-dir DIR --tables bench/results/training_cpu_amd_epyc.txt

ResNet-18 with batch norm on random images of 32 x 32, momentum SGD, PGD-10; on a CPU float32 and one thread, on a GPU
bf16 and larger. Everything that is compared runs in one process with the same weights, in turn. DIR as in author_baselines.py.

test_epoch: an epoch of `pyengm train` against the loop of the AT-AWP authors' script without AWP.
    Theirs: their crops and flips, attack_pgd, the step, their forward pass on the clean batch and sums for the log;
    not their test and checkpoint after an epoch. 2 processes: they crop ahead, on other cores.
    Ours: `fit`. "batches": crops and flips, attack, step, sums for the log, progress bar. "all": also the end of an
    epoch, PGD-5 on 128 training images, metrics, weights and state; it comes once, and the epoch here is short.
    Theirs attacks with batch norm in training mode; ours does too in "same attack", and in evaluation mode as it is
    set by default.
test_loop: what `fit` takes beyond the attack and the outer step, by its parts. Each step in the loop is followed by one
    of a twin on a batch that lies ready.
test_step: a step of each method against its authors', see paired_steps.py; peak memory each in a process of its own, in
    brackets what the steps add to imports, weights and data.
test_growth: PGD-10 training with MSGD and ENGM by batch and width. Steps in which ENGM fits its norms anew, after a
    while one in 100, have a column of their own.
test_processes: `pyengm train --nproc N` on the same batches, one thread each; as its timing.jsonl says.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
import torch
from baselines import author_baselines
from PIL import Image
from tools import paired_steps
from tools.epoch_profile import Dissected, Training
from tools.interleaved_timing import in_turn, in_words, quantiles, seconds
from tools.memory import read_report
from tools.paired_steps import PAIRS, PGD, SGD, Ours, Setting, check_losses

from pyengm.methods import PGDAT
from pyengm.training.precision import in_precision

CPU, GPU = Setting(), Setting("cuda", "bf16", width=64, n=128)
BATCHES = {CPU: 8, GPU: 64}  # of an epoch
CIFAR_BATCHES = 782  # an epoch of 50,000 images, 64 at a time
GROWTH = {
    CPU: {"n": (16, 32, 64, 128), "width": (8, 16, 32, 64)},
    GPU: {"n": (64, 128, 256, 512), "width": (16, 32, 64, 128)},
}
RUN = """import sys
from pyengm.cli import main
sys.exit(main())"""

pytestmark = [
    pytest.mark.filterwarnings("ignore:size_average"),
    pytest.mark.filterwarnings("ignore:.*pin_memory"),  # theirs asks for it
]
every_setting = pytest.mark.parametrize(
    "setting", [pytest.param(CPU, id="cpu"), pytest.param(GPU, id="cuda", marks=pytest.mark.gpu)]
)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def terminal(monkeypatch):
    """rich draws its bars, though the output is captured."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")


@every_setting
@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize(
    ("bn", "workers"),
    [
        pytest.param("train", 0, id="same attack"),
        pytest.param("train", 2, id="same attack, theirs in 2 processes more"),
        pytest.param("eval", 0, id="ours by default"),
    ],
)
def test_epoch(benchmark, tabulate, authors_folder, request, tmp_path, setting, bn, workers):
    root, title = authors_folder("AWP")
    check_epochs(root, setting, tmp_path / "uncropped")
    batches = BATCHES[setting]
    ours = Training(setting, batches, tmp_path, attack_bn=bn)
    theirs = their_epoch(root, setting, batches, workers=workers)
    times = in_turn(benchmark, ours, theirs, rounds=5)
    if not times:
        return
    images, batches = setting.n * batches, ours.batch_seconds[-len(times) :]
    whole = [theirs / ours for ours, theirs in times]
    ratios = [theirs / ours for ours, (_, theirs) in zip(batches, times, strict=True)]
    benchmark.extra_info.update({f"ratio to {title}": quantiles(ratios), f"ratio to {title}, all": quantiles(whole)})
    row = {
        "epoch": request.node.callspec.id.removesuffix(f"-{setting.device}"),
        "theirs": rate(images, [theirs for _, theirs in times]),
        "ours": rate(images, batches),
        "batches": in_words(ratios),
        "all": in_words(whole),
    }
    tabulate(f"images/s of an epoch, {title} without AWP, {in_title(setting)}; theirs / ours in time", row)


def check_epochs(root: Path, setting: Setting, folder: Path) -> None:
    """Both train the same thing. No crops here: theirs pads by reflection, ours with zeros, 2 % of the loss."""
    ours = Training(setting, 2, folder, attack_bn="train", augment="none")
    assert ours() == pytest.approx(their_epoch(root, setting, 2, padding=0)(), rel=0.01)  # 0.2 %: random starts differ


def their_epoch(
    root: Path, setting: Setting, batches: int, *, workers: int = 0, padding: int = 4
) -> author_baselines.Step:
    data, model = setting.make_images(batches), in_precision(setting.network(), setting.precision)
    images, labels = data.images.permute(0, 2, 3, 1).numpy(), data.labels.tolist()
    optimizer, options = torch.optim.SGD(model.parameters(), **SGD), {"workers": workers, "padding": padding, **PGD}
    return author_baselines.at_epoch(root, model, optimizer, images, labels, batch_size=setting.n, **options)


@pytest.mark.usefixtures("terminal")
def test_loop(benchmark, tabulate, tmp_path):
    dissected = Dissected(Training(CPU, BATCHES[CPU], tmp_path))
    dissected()
    found = []
    benchmark.pedantic(lambda: found.append(dissected()), rounds=4)
    alone = [time for one in found for time in one.alone]
    step = median(alone)
    title = f"the loop beyond the attack and the outer step, which take {1e3 * step:.0f} ms alone"

    def row(part: str, times: list[float]) -> None:
        low, middle, high = (f"{100 * share:.2f}" for share in quantiles(value / step for value in times))
        tabulate(title, {"part": part, "ms a step": f"{1e3 * median(times):.2f}", "%": f"{middle} ({low} to {high})"})

    for part in found[0].between:
        row(part, [one.between[part] for one in found])
    outside = [sum(one.between.values()) for one in found]
    row("all of these", outside)
    row(
        "steps in the loop beyond steps alone",
        [a - b for one in found for a, b in zip(one.within, one.alone, strict=True)],
    )
    row(f"the end of an epoch, over {CIFAR_BATCHES} steps", [one.once / CIFAR_BATCHES for one in found])
    benchmark.extra_info["% of a step"] = 100 * median(outside) / step


@every_setting
@pytest.mark.parametrize("name", PAIRS)
def test_step(benchmark, tabulate, authors_folder, name, setting):
    pair = PAIRS[name]
    root, title = authors_folder(pair.folder)
    ours, theirs = pair.ours(setting), pair.theirs(setting, root)
    check_losses(ours, theirs)
    times = in_turn(benchmark, ours.step, theirs, rounds=15 if name in ("ATAS", "ATTA") else 5)
    if not times:
        return
    ratios = [theirs / ours for ours, theirs in times]
    own, other = (read_report(paired_steps.__file__, name, str(setting), *words) for words in ((), (str(root),)))
    benchmark.extra_info.update(
        {f"ratio to {title}": quantiles(ratios), "MiB": own["peak"], "their MiB": other["peak"]}
    )
    our_times, their_times = zip(*times, strict=True)
    row = {
        "method": name,
        "authors": title,
        "theirs": rate(setting.n, their_times),
        "ours": rate(setting.n, our_times),
        "theirs / ours in time": in_words(ratios),
        "their MiB": mebibytes(other),
        "our MiB": mebibytes(own),
    }
    tabulate(f"images/s of a step, and peak memory; {in_title(setting)}", row)


@pytest.mark.parametrize(
    ("setting", "by"),
    [
        pytest.param(replace(base, **{by: value}), by, id=f"{base.device}, {by} {value}", marks=marks)
        for base, marks in ((CPU, ()), (GPU, pytest.mark.gpu))
        for by, values in GROWTH[base].items()
        for value in values
    ],
)
def test_growth(benchmark, tabulate, setting, by):
    msgd, engm = (Ours(PGDAT(**PGD), setting, optimizer) for optimizer in ("msgd", "engm"))
    norms = engm.optimizer.norms
    engm.step()
    norms.gap = norms.interval  # as after many steps: none of the rounds fits
    slow = setting.width == 64 and setting.device == "cpu"
    times = in_turn(benchmark, engm.step, msgd.step, rounds=3 if slow else 9)
    if not times:
        return

    def fit() -> None:
        norms.age = norms.gap
        engm.step()

    fits = [seconds(fit) / seconds(msgd.step) for _ in range(2 if slow else 5)]
    ratios = [engm / msgd for engm, msgd in times]
    engm_times, msgd_times = zip(*times, strict=True)
    p20, p50, p80 = quantiles(ratios)
    benchmark.extra_info.update({"p20": p20, "ratio": p50, "p80": p80, "images/s": setting.n / median(engm_times)})
    row = {
        {"n": "batch"}.get(by, by): str(getattr(setting, by)),
        "MSGD": rate(setting.n, msgd_times),
        "ENGM": rate(setting.n, engm_times),
        "ENGM / MSGD in time": in_words(ratios),
        "with a fit": in_words(fits),
    }
    fixed = f"width {setting.width}" if by == "n" else f"batches of {setting.n}"
    tabulate(f"images/s of PGD-10 training on {setting.device}, {setting.precision}, {fixed}", row)


@every_setting
def test_processes(benchmark, tabulate, tmp_path, setting):
    if setting.device != "cpu" and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    write_images(setting, tmp_path / "images")
    rates = {1: [], 2: []}

    def one_round() -> None:
        for processes, found in rates.items():
            found.append(train(setting, tmp_path, f"{processes}-{len(found)}", processes))

    benchmark.pedantic(one_round, rounds=2)
    ratios = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
    benchmark.extra_info["ratio"] = median(ratios)
    row = {"processes": "1", "images/s": f"{median(rates[1]):.0f}", "against 1": "1"}
    title = f"images/s of pyengm train --nproc, {in_title(setting)} in all processes together"
    tabulate(title, row)
    tabulate(title, {"processes": "2", "images/s": f"{median(rates[2]):.0f}", "against 1": in_words(ratios)})


def train(setting: Setting, folder: Path, name: str, processes: int) -> float:
    """Images per second of a run: the median of its epochs but the first."""
    options = {
        "data": folder / "images",
        "data-dir": folder,
        "out": folder / name,
        "nproc": processes,
        "cpu-threads": 1,
        "epochs": 3,
        "model": "resnet18",
        "width": setting.width,
        "batch-size": setting.n,
        "precision": setting.precision,
        "device": setting.device,
        "optimizer": "msgd",
        "select-on": "none",
        "eps": 0.5,  # any image falls to that: the evaluation is over soon
        "autoattack-examples": 1,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(
        [sys.executable, "-c", RUN, "train", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (folder / name / "timing.jsonl").read_text().splitlines()
    return median(json.loads(line)["images_per_second"] for line in lines[1:])


def write_images(setting: Setting, folder: Path) -> None:
    """The random images as a folder that --data takes, with one more of each class to test."""
    data = setting.make_images(BATCHES[setting])
    for i, (image, label) in enumerate(zip(data.images, data.labels.tolist(), strict=True)):
        for split in ("train", "test")[: 1 + (i < data.num_classes)]:
            path = folder / split / str(label) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)


def rate(images: int, times: Sequence[float]) -> str:
    return f"{images / median(times):.0f}"


def mebibytes(memory: dict[str, float]) -> str:
    return f"{memory['peak']:.0f} ({memory['peak'] - memory['before']:.0f})"


def in_title(setting: Setting) -> str:
    return f"{setting.device}, {setting.precision}, width {setting.width}, batches of {setting.n}"
