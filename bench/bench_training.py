"""Training as a whole, in images per second, in some 15 minutes on a quiet machine:

    OMP_NUM_THREADS=1 pytest bench/bench_training.py --baseline-dir DIR --tables bench/results/training_cpu_amd_epyc.txt

ResNet-18 with batch norm on random images of 32 x 32, momentum SGD, PGD-10; on a CPU float32 and one thread, on a GPU
bf16 and larger. Everything that is compared runs in one process with the same weights, in turn. DIR is that of
author_baselines.py.

test_epoch: an epoch of `pyengm train` against the loop of the AT-AWP authors' script without AWP.
    Theirs: their crops and flips, attack_pgd, the step, their forward pass on the clean batch and sums for the log;
    without their test and checkpoint after an epoch. 2 processes: these crop ahead, on other cores.
    Ours: `fit`. "batches": crops and flips, attack, step, sums for the log, progress bar. "all": also the end of an
    epoch, PGD-5 on 128 training images, metrics, weights and state; it occurs once, and the epoch here is short.
    Their attack has batch norm in training mode. Ours has the same in "same attack", and evaluation mode, its default,
    in "ours by default".
test_loop: the time of `fit` beyond the attack and the outer step, by its parts. Each step in the loop is followed by
    the same step on a batch that is ready.
test_step: a step of each method against its authors', see paired_steps.py; peak memory of each in a process of its own,
    in brackets the part of the steps without imports, weights and data.
test_growth: PGD-10 training with MSGD and ENGM by batch and width. Steps in which ENGM fits its norms again, one in 100
    later in training, have a column of their own.
test_processes: `pyengm train --nproc N` on the same batches, one thread each, from its timing.jsonl.
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
from tools.epoch_profile import EpochProfile, EpochRunner, ProfiledEpoch
from tools.interleaved_timing import format_quantiles, quantiles, time_call, time_interleaved
from tools.memory import run_and_read
from tools.paired_steps import PAIRED_STEPS, PGD, SGD, Setting, Trainer, check_losses

from pyengm.methods import PGDAT
from pyengm.optim import ENGM
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
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:size_average"),
    pytest.mark.filterwarnings("ignore:.*pin_memory"),  # the authors' loader sets it
]
every_setting = pytest.mark.parametrize(
    "setting", [pytest.param(CPU, id="cpu"), pytest.param(GPU, id="cuda", marks=pytest.mark.gpu)]
)


@pytest.fixture
def terminal(monkeypatch):
    """Makes rich draw its bars although the output is captured."""
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
def test_epoch(benchmark, tabulate, author_repository, request, tmp_path, setting, bn, workers):
    root, title = author_repository("AWP")
    check_epochs(root, setting, tmp_path / "uncropped")
    batches = BATCHES[setting]
    ours = EpochRunner(setting, batches, tmp_path, attack_bn=bn)
    theirs = their_epoch(root, setting, batches, workers=workers)
    times = time_interleaved(benchmark, ours, theirs, rounds=5)
    if not times:
        return
    images, batches = setting.n * batches, ours.batch_seconds[-len(times) :]
    whole = [theirs / ours for ours, theirs in times]
    ratios = [theirs / ours for ours, (_, theirs) in zip(batches, times, strict=True)]
    benchmark.extra_info.update({f"ratio to {title}": quantiles(ratios), f"ratio to {title}, all": quantiles(whole)})
    row = {
        "epoch": request.node.callspec.id.removesuffix(f"-{setting.device}"),
        "theirs": format_rate(images, [theirs for _, theirs in times]),
        "ours": format_rate(images, batches),
        "batches": format_quantiles(ratios),
        "all": format_quantiles(whole),
    }
    tabulate(f"images/s of an epoch, {title} without AWP, {describe(setting)}; theirs / ours in time", row)


def check_epochs(root: Path, setting: Setting, folder: Path) -> None:
    """Checks that both train alike, without crops: theirs pads by reflection, ours with zeros, 2 % of the loss."""
    ours = EpochRunner(setting, 2, folder, attack_bn="train", augment="none")
    assert ours() == pytest.approx(their_epoch(root, setting, 2, padding=0)(), rel=0.01)  # 0.2 %: random starts differ


def their_epoch(
    root: Path, setting: Setting, batches: int, *, workers: int = 0, padding: int = 4
) -> author_baselines.Step:
    model = in_precision(setting.network(), setting.precision)
    pixels, labels = setting.pixels(batches)
    images = pixels.permute(0, 2, 3, 1).numpy()
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    options = {"batch_size": setting.n, "workers": workers, "padding": padding}
    return author_baselines.at_epoch(root, model, optimizer, images, labels.tolist(), **options, **PGD)


@pytest.mark.usefixtures("terminal")
def test_loop(benchmark, tabulate, tmp_path):
    profiled_epoch = ProfiledEpoch(EpochRunner(CPU, BATCHES[CPU], tmp_path))
    profiled_epoch()
    profiles: list[EpochProfile] = []
    benchmark.pedantic(lambda: profiles.append(profiled_epoch()), rounds=4)
    step = median(seconds for profile in profiles for seconds in profile.alone)
    title = f"the loop beyond the attack and the outer step, which take {1e3 * step:.0f} ms alone"

    def row(part: str, times: Sequence[float]) -> None:
        low, middle, high = (f"{100 * share:.2f}" for share in quantiles(value / step for value in times))
        tabulate(title, {"part": part, "ms a step": f"{1e3 * median(times):.2f}", "%": f"{middle} ({low} to {high})"})

    for part in profiles[0].overhead:
        row(part, [profile.overhead[part] for profile in profiles])
    overhead = [sum(profile.overhead.values()) for profile in profiles]
    row("all of these", overhead)
    differences = [a - b for profile in profiles for a, b in zip(profile.in_loop, profile.alone, strict=True)]
    row("steps in the loop beyond steps alone", differences)
    row(f"the end of an epoch, over {CIFAR_BATCHES} steps", [profile.epoch_end / CIFAR_BATCHES for profile in profiles])
    benchmark.extra_info["% of a step"] = 100 * median(overhead) / step


@every_setting
@pytest.mark.parametrize("name", PAIRED_STEPS)
def test_step(benchmark, tabulate, author_repository, name, setting):
    pair = PAIRED_STEPS[name]
    root, title = author_repository(pair.folder)
    ours, theirs = pair.ours(setting), pair.theirs(setting, root)
    check_losses(ours, theirs)
    times = time_interleaved(benchmark, ours.step, theirs, rounds=15 if name in ("ATAS", "ATTA") else 5)
    if not times:
        return
    ratios = [theirs / ours for ours, theirs in times]
    own, other = (run_and_read("tools.paired_steps", name, str(setting), *folder) for folder in ((), (str(root),)))
    benchmark.extra_info.update(
        {f"ratio to {title}": quantiles(ratios), "MiB": own["peak"], "their MiB": other["peak"]}
    )
    our_times, their_times = zip(*times, strict=True)
    row = {
        "method": name,
        "authors": title,
        "theirs": format_rate(setting.n, their_times),
        "ours": format_rate(setting.n, our_times),
        "theirs / ours in time": format_quantiles(ratios),
        "their MiB": format_memory(other),
        "our MiB": format_memory(own),
    }
    tabulate(f"images/s of a step, and peak memory; {describe(setting)}", row)


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
    msgd, engm = (Trainer(PGDAT(**PGD), setting, optimizer) for optimizer in ("msgd", "engm"))
    assert isinstance(engm.optimizer, ENGM)
    norms = engm.optimizer.norms
    engm.step()
    norms.refit_interval = norms.max_refit_interval  # as after many steps: no round fits
    slow = setting.width == 64 and setting.device == "cpu"
    times = time_interleaved(benchmark, engm.step, msgd.step, rounds=3 if slow else 9)
    if not times:
        return

    def fit() -> None:
        norms.steps_since_fit = norms.refit_interval
        engm.step()

    fits = [time_call(fit) / time_call(msgd.step) for _ in range(2 if slow else 5)]
    ratios = [engm / msgd for engm, msgd in times]
    engm_times, msgd_times = zip(*times, strict=True)
    p20, p50, p80 = quantiles(ratios)
    benchmark.extra_info.update({"p20": p20, "ratio": p50, "p80": p80, "images/s": setting.n / median(engm_times)})
    row = {
        {"n": "batch"}.get(by, by): str(getattr(setting, by)),
        "MSGD": format_rate(setting.n, msgd_times),
        "ENGM": format_rate(setting.n, engm_times),
        "ENGM / MSGD in time": format_quantiles(ratios),
        "with a fit": format_quantiles(fits),
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
    title = f"images/s of pyengm train --nproc, {describe(setting)} in all processes together"
    tabulate(title, row)
    tabulate(title, {"processes": "2", "images/s": f"{median(rates[2]):.0f}", "against 1": format_quantiles(ratios)})


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
        "eps": 0.5,  # every attack succeeds, so the evaluation is short
        "autoattack-examples": 1,
    }
    arguments = [argument for name, value in options.items() for argument in (f"--{name}", str(value))]
    done = subprocess.run(
        [sys.executable, "-c", RUN, "train", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (folder / name / "timing.jsonl").read_text().splitlines()
    return median(json.loads(line)["images_per_second"] for line in lines[1:])


def write_images(setting: Setting, folder: Path) -> None:
    """Writes the random images as a folder for --data, with one more test image of each class."""
    images, labels = setting.pixels(BATCHES[setting])
    for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        for split in ("train", "test") if i < 10 else ("train",):
            path = folder / split / str(label) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)


def format_rate(images: int, times: Sequence[float]) -> str:
    return f"{images / median(times):.0f}"


def format_memory(memory: dict[str, float]) -> str:
    return f"{memory['peak']:.0f} ({memory['peak'] - memory['before']:.0f})"


def describe(setting: Setting) -> str:
    return f"{setting.device}, {setting.precision}, width {setting.width}, batches of {setting.n}"
