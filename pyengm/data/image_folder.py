"""Folders of images: ImageFolder's layout (ImageNet's too), and Tiny-ImageNet's list of validation labels."""

import os
from pathlib import Path

import torch

from pyengm.data.image_cache import decoded, smaller_side
from pyengm.data.image_dataset import ImageDataset
from pyengm.errors import DataError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def load_folder(folder: Path, split: str, image_size: int | None, cache: Path, margin: int = 0) -> ImageDataset:
    """The images of `folder`, decoded once into `cache`; the classes are the sorted folder names in train/.

    margin: as for `decoded`; images that are too small for it, going by the first, are left without.
    """
    train = folder / "train"
    classes = tuple(_class_folders(train)) if train.is_dir() else ()
    if not classes:
        raise DataError(f"expected images in {train}/<class>/, found no class folder there")
    if split == "train":
        images = _by_class(train, classes)
        missing = sorted(set(range(len(classes))) - {label for _, label in images})
        if missing:
            raise DataError(
                f"{train / classes[missing[0]]} has no image ({', '.join(SUFFIXES)}): add some or remove it"
            )
    else:
        images = _test_images(folder, classes)
    paths, labels = zip(*images, strict=True)
    if margin and smaller_side(paths[0]) < image_size + 2 * margin:
        margin = 0  # enlarged, they would not be what test images are
    images = decoded(folder, paths, image_size, cache, margin)
    return ImageDataset(images, torch.tensor(labels), classes, str(folder), split)


def _test_images(folder: Path, classes: tuple[str, ...]) -> list[tuple[str, int]]:
    for where in (folder / "test", folder / "val"):  # ImageNet and Tiny-ImageNet: test/ has no labels, val/ has
        if where.is_dir() and not set(classes).isdisjoint(_class_folders(where)):
            return _by_class(where, classes)
        if (where / "val_annotations.txt").is_file():
            return _by_annotation(where, classes)
    raise DataError(f"expected test images in {folder}/test/<class>/ or {folder}/val/<class>/, classes as in train/")


def _by_class(where: Path, classes: tuple[str, ...]) -> list[tuple[str, int]]:
    number = {name: label for label, name in enumerate(classes)}
    images = []
    for name in _class_folders(where):
        found = _images(where / name)
        if found and name not in number:
            raise DataError(f"{where / name}: the class {name!r} is not in train/: add it there or remove it here")
        images += [(path, number[name]) for path in found]
    if not images:
        raise DataError(f"{where} has no image ({', '.join(SUFFIXES)})")
    return images


def _by_annotation(where: Path, classes: tuple[str, ...]) -> list[tuple[str, int]]:
    """Lines of "file <tab> class <tab> box"; the files are in images/."""
    number = {name: label for label, name in enumerate(classes)}
    images = []
    for line in (where / "val_annotations.txt").read_text().splitlines():
        file, name, *_ = [*line.split("\t"), ""]
        path = where / "images" / file
        if name not in number:
            raise DataError(f"{where / 'val_annotations.txt'}: {file} has class {name!r}, which is not in train/")
        if not path.is_file():
            raise DataError(f"{where / 'val_annotations.txt'} names {file}, but there is no {path}")
        images.append((str(path), number[name]))
    if not images:
        raise DataError(f"{where / 'val_annotations.txt'} is empty")
    return sorted(images)


def _class_folders(where: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(where) if entry.is_dir() and not entry.name.startswith("."))


def _images(folder: Path) -> list[str]:
    return sorted(
        os.path.join(parent, file)
        for parent, _, files in os.walk(folder, followlinks=True)
        for file in files
        if file.lower().endswith(SUFFIXES) and not file.startswith(".")
    )
