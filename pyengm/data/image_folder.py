"""Folders of images: ImageFolder's layout (ImageNet's too), and Tiny-ImageNet's list of validation labels."""

import os
from pathlib import Path
from types import ModuleType

import torch

from pyengm.data.image_cache import decode_cached, shorter_side
from pyengm.data.image_dataset import ImageDataset
from pyengm.errors import DataError


def load_folder(folder: Path, split: str, image_size: int | None, cache: Path, margin: int = 0) -> ImageDataset:
    """Loads the images of a folder, which are decoded once into a cache; the classes are the sorted names in train/.

    Args:
        folder: with train/<class>/ and test/<class>/, or val/<class>/, or Tiny-ImageNet's val/val_annotations.txt.
        split: "train" or "test".
        image_size: as for `decode_cached`.
        cache: the folder of decoded images.
        margin: as for `decode_cached`, for a given image_size; 0 is taken if the first image is too small for it.

    Raises:
        DataError: the layout is another one, a class has no image, or an image cannot be read.
    """
    train = folder / "train"
    classes = tuple(_class_folders(train)) if train.is_dir() else ()
    if len(classes) < 2:
        raise DataError(
            f"expected images of two classes or more in {train}/<class>/, found {len(classes)} folders there"
        )
    unprintable = [name for name in classes if not _is_utf8(name)]
    if unprintable:
        raise DataError(
            f"{train}: the class folder {os.fsencode(unprintable[0])!r} has a name that is not UTF-8: rename it"
        )
    if split == "train":
        samples = _by_class(train, classes)
        missing = sorted(set(range(len(classes))) - {label for _, label in samples})
        if missing:
            raise DataError(f"{train / classes[missing[0]]} {_no_image()}: add some or remove it")
    else:
        samples = _test_samples(folder, classes)
    paths, labels = zip(*samples, strict=True)
    if margin and image_size is not None and shorter_side(paths[0]) < image_size + 2 * margin:
        margin = 0  # enlarged, they would differ from the test images
    images = decode_cached(folder, paths, image_size, cache, margin)
    return ImageDataset(images, torch.tensor(labels), classes, str(folder), split)


def _test_samples(folder: Path, classes: tuple[str, ...]) -> list[tuple[str, int]]:
    for where in (folder / "test", folder / "val"):  # ImageNet and Tiny-ImageNet: test/ has no labels, val/ has
        if where.is_dir() and not set(classes).isdisjoint(_class_folders(where)):
            return _by_class(where, classes)
        if (where / "val_annotations.txt").is_file():
            return _by_annotation(where, classes)
    raise DataError(f"expected test images in {folder}/test/<class>/ or {folder}/val/<class>/, classes as in train/")


def _by_class(where: Path, classes: tuple[str, ...]) -> list[tuple[str, int]]:
    """Paths and labels, sorted by class and then by path."""
    folders = _class_folders(where)
    to_label = {name: label for label, name in enumerate(classes)}
    samples = []
    to_position = {name: position for position, name in enumerate(folders)}
    for path, position in _torchvision().make_dataset(where, to_position, is_valid_file=_is_image, allow_empty=True):
        name = folders[position]
        if name not in to_label:
            raise DataError(f"{where / name}: the class {name!r} is not in train/: add it there or remove it here")
        samples.append((path, to_label[name]))
    if not samples:
        raise DataError(f"{where} {_no_image()}")
    return sorted(samples, key=lambda sample: sample[::-1])


def _by_annotation(where: Path, classes: tuple[str, ...]) -> list[tuple[str, int]]:
    """Lines of "file <tab> class <tab> box"; the files are in images/."""
    annotations = where / "val_annotations.txt"
    to_label = {name: label for label, name in enumerate(classes)}
    samples = []
    for line in annotations.read_text().splitlines():
        file, name, *_ = [*line.split("\t"), ""]
        path = where / "images" / file
        if name not in to_label:
            raise DataError(f"{annotations}: {file} has class {name!r}, which is not in train/")
        if not path.is_file():
            raise DataError(f"{annotations} names {file}, but there is no {path}")
        samples.append((str(path), to_label[name]))
    if not samples:
        raise DataError(f"{annotations} is empty")
    return sorted(samples)


def _class_folders(where: Path) -> list[str]:
    try:
        return [name for name in _torchvision().find_classes(where)[0] if not name.startswith(".")]
    except FileNotFoundError:  # no class folder
        return []


def _is_image(path: str) -> bool:
    folder = _torchvision()
    return folder.has_file_allowed_extension(path, folder.IMG_EXTENSIONS) and not Path(path).name.startswith(".")


def _no_image() -> str:
    return f"has no image ({', '.join(sorted(_torchvision().IMG_EXTENSIONS))})"


def _is_utf8(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)  # how Python has bytes that are not UTF-8


def _torchvision() -> ModuleType:
    from torchvision.datasets import folder  # here: it takes a second

    return folder
