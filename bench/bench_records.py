"""What an epoch costs more with the probe, a snapshot and the log of the images: python bench/bench_records.py.

resnet18 of width 16 with PGD-10 on random images of 3 x 32 x 32. The log of the images belongs to methods of few steps, so ATTA
takes the ten steps. An epoch of 50,000 images is long; its parts are timed one by one and put together: a step with and without
the log, interleaved, the probe of 1,000 images for each of its images, and the files.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from time import perf_counter

import torch

from pyengm.data import ImageDataset, Loader
from pyengm.ops import Key
from pyengm.training import RunFolder, TrainConfig, build_components
from pyengm.training.instance_files import save_instances
from pyengm.training.loop import save_weights, update
from pyengm.training.probe import EXACT_EVERY, measure_probe
from pyengm.utils.io import write_arrays

IMAGES, PROBE = 50_000, 1_000  # of an epoch, and of its probe


def random_images() -> tuple[ImageDataset, ImageDataset]:
    """Training and test images of the shape of CIFAR-10's."""
    torch.manual_seed(0)
    images, labels = torch.randint(0, 256, (2_000, 3, 32, 32), dtype=torch.uint8), torch.arange(2_000) % 10
    names = [str(digit) for digit in range(10)]
    return tuple(
        ImageDataset(images[rows], labels[rows], names, "random", split)
        for split, rows in (("train", slice(0, 1_900)), ("test", slice(1_900, None)))
    )  # pyright: ignore[reportReturnType]


def seconds(function) -> float:
    """Seconds that a call takes."""
    begin = perf_counter()
    function()
    return perf_counter() - begin
