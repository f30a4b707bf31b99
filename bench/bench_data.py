"""Loader of ImageNet's size against torchvision's DataLoader: cd bench && python bench_data.py [--images 1000]

The images are noise that is not easy for JPEG, 500 x 375 pixels, the average of ImageNet. They are stored as JPEGs, as
PIL images in memory whose shorter side is 256, and decoded in a memory-mapped file as by `pyengm train`. All candidates
make batches of 128 float images of 224 x 224 in [0, 1], in one process, in turn, round by round. The DataLoader works
in this process too (`num_workers=0`): with k workers it is up to k times as fast, as are our operations with k threads.
"""

import argparse
import io
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from tools.machine import describe_machine
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from pyengm.data import ImageDataset, Loader
from pyengm.data import loader as loader_module
from pyengm.data.memmap import MemmapImages

BATCH = 128
ROUNDS = 7
TRANSFORM = transforms.Compose(
    [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
)
DIFFERENT = 16  # images; the others repeat these


class Images(Dataset):
    """The usual data set with torchvision: open, transform."""

    def __init__(self, sources: list, opened: Callable):
        self.sources, self.opened = sources, opened

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        return TRANSFORM(self.opened(self.sources[position])), 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    images = parser.parse_args().images
    with TemporaryDirectory() as folder:
        candidates = make_candidates(images, Path(folder))
        speeds = {name: [] for name in candidates}
        for round_ in range(ROUNDS + 1):
            for name, epochs in candidates.items():
                speed = images_per_second(epochs(round_))
                if round_:  # the first one warms up
                    speeds[name].append(speed)
    print(describe_machine())
    ours = next(iter(speeds))
    print(f"{'images per second, median (lowest to highest)':60}  {ours} is faster by")
    for name, values in speeds.items():
        ratios = sorted(a / b for a, b in zip(speeds[ours], values, strict=True))
        print(f"{name:38} {median(values):9.0f} ({min(values):.0f} to {max(values):.0f})".ljust(62), end="")
        print(f"{median(ratios):6.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


def make_candidates(n: int, folder: Path) -> dict[str, Callable[[int], Iterable]]:
    """Functions by name that return the batches of an epoch."""
    pixels = [noise(seed) for seed in range(DIFFERENT)]
    jpegs = [jpeg(image) for image in pixels]
    smaller = [image.resize((341, 256), Image.Resampling.BICUBIC) for image in pixels]
    middle = [np.asarray(image.crop((42, 0, 298, 256))).transpose(2, 0, 1) for image in smaller]
    decoded = np.lib.format.open_memmap(folder / "x.npy", mode="w+", dtype=np.uint8, shape=(n, 3, 256, 256))
    for position in range(n):
        decoded[position] = middle[position % DIFFERENT]
    decoded.flush()
    del decoded
    mapped = MemmapImages(np.load(folder / "x.npy", mmap_mode="r"))
    in_memory = torch.from_numpy(np.load(folder / "x.npy"))

    def ours(readers: int, images: MemmapImages | Tensor = mapped, **options) -> Callable[[int], Iterable]:
        data = ImageDataset(images, torch.zeros(n, dtype=torch.int64), ("0",), "/folder", "train")
        loader = Loader(data, BATCH, device="cpu", seed=0, shuffle=True, **options)

        def epoch(number: int) -> Iterator:
            loader_module.READERS = readers
            return loader.epoch(number)

        return epoch

    def theirs(sources: list, opened: Callable) -> Callable[[int], Iterable]:
        loader = DataLoader(Images([sources[i % DIFFERENT] for i in range(n)], opened), BATCH, shuffle=True)
        return lambda number: loader

    crop = {"augment": "resized", "crop": (224, 224)}
    return {
        "resized crops of a memmap": ours(loader_module.READERS, **crop),
        "the same, one reading thread": ours(1, **crop),
        "the same, in memory": ours(1, in_memory, **crop),
        "shifts of 256 x 256 from a memmap": ours(loader_module.READERS, augment="shift"),
        "DataLoader, decoded PIL images": theirs(smaller, lambda image: image),
        "DataLoader, JPEGs": theirs(jpegs, lambda data: Image.open(io.BytesIO(data)).convert("RGB")),
    }


def noise(seed: int) -> Image.Image:
    """500 x 375 pixels of noise at two scales, about 95 kB as a JPEG."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((500, 375))
    return Image.fromarray((np.asarray(coarse) + random.normal(0, 15, (375, 500, 3))).clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def images_per_second(epoch: Iterable) -> float:
    start, seen = time.perf_counter(), 0
    for batch in epoch:
        seen += len(batch.x if hasattr(batch, "x") else batch[0])
    return seen / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
