"""Small sets of random images, in memory and on disk."""

import numpy as np
import torch
from PIL import Image

from pyengm.data import (
    ImageDataset,
)


def random_pixels(seed, height, width, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.squeeze()).save(path)


def make_folder(root, size=(8, 8), test="test", count=3):
    """Classes cat and dog, `count` training images and one test image of each."""
    for label, name in enumerate(("dog", "cat")):
        for number in range(count):
            save(root / "train" / name / f"{number}.png", random_pixels(10 * label + number, *size))
        save(root / test / name / "0.png", random_pixels(100 + label, *size))
    return root


def arrays(n=50, shape=(3, 8, 8), classes=5):
    generator = torch.Generator().manual_seed(n)
    images = torch.randint(0, 256, (n, *shape), generator=generator, dtype=torch.uint8)
    return ImageDataset.from_arrays(images, torch.arange(n) % classes, name="cifar10")


def on_disk(data, path):
    np.save(path, data.images.numpy())
    return ImageDataset(np.load(path, mmap_mode="r"), data.labels, data.classes, data.name, data.split)
