"""Data sets by name: the embedded one, torchvision's, and folders of images."""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from pyengm.data.digits import load_digits
from pyengm.data.from_user import load_from_user
from pyengm.data.image_dataset import ImageDataset, Indices
from pyengm.data.image_folder import load_folder
from pyengm.data.torchvision_sets import SETS, load_torchvision
from pyengm.errors import DataError, PyengmError
from pyengm.utils.did_you_mean import did_you_mean
from pyengm.utils.import_object import is_object_spec
from pyengm.utils.locks import file_lock

DATASETS = ("digits", *SETS)


def data_name(name: str | os.PathLike) -> str:
    """The name of a data set as `DATASETS` has it, in upper or lower case; a folder of that name comes first."""
    text = os.fspath(name)
    return text.lower() if text.lower() in DATASETS and not Path(text).is_dir() else text


def user_data(name: str | os.PathLike) -> str | None:
    """The name if it is that of a function, MODULE:FUNCTION, which loading runs; a folder of that name comes first."""
    return str(name) if is_object_spec(name) and not Path(name).exists() else None


def data_root(root: str | os.PathLike | None) -> Path:
    """The folder of data sets: that folder, else PYENGM_DATA, else ~/.cache/pyengm."""
    return Path(root or os.environ.get("PYENGM_DATA") or "~/.cache/pyengm").expanduser()


def load(
    name: str | os.PathLike,
    split: str,
    *,
    root: str | os.PathLike | None = None,
    download: bool = False,
    image_size: int | None = None,
    margin: int = 0,
    indices: Indices | None = None,
) -> ImageDataset:
    """Loads a split of a data set.

    Args:
        name: one of `DATASETS`, in upper or lower case; or a folder with train/<class>/ and test/<class>/ (or val/,
            also Tiny-ImageNet's); or MODULE:FUNCTION, as for `load_from_user`.
        split: "train" or "test".
        root: the folder of torchvision's files and of decoded images; None for PYENGM_DATA, or ~/.cache/pyengm where
            that is not set.
        download: download a torchvision set that is missing.
        image_size: for folders, height and width in pixels after resizing; None keeps the images' own size if they
            share one, else 224. Of a resized image this is the middle, 7/8 of the shorter side.
        margin: with an image_size, additional pixels on each side, up to the whole of the shorter side: H = W =
            image_size + 2 margin.
        indices: (n,) positions of the split to keep, in this order; None for all.

    Returns:
        The images and labels; the images of a folder stay on disk.

    Raises:
        DataError: the name or split is unknown, files are missing or damaged, or indices are out of range.

    Example:
        >>> test = pyengm.data.load("digits", "test")
        >>> len(test), test.shape
        (360, (1, 8, 8))
    """
    _check_request(split, image_size, margin)
    root, name = data_root(root), data_name(name)
    if name == "digits":
        data = load_digits(split)
    elif isinstance(name, str) and name in SETS:
        with file_lock(root) if download else nullcontext():
            data = load_torchvision(name, split, root, download)
    elif user_data(name):
        data = load_from_user(str(name), root, download=download, image_size=image_size)[split == "test"]
    elif Path(name).expanduser().is_dir():
        data = _load_folder(Path(name).expanduser().resolve(), split, image_size, root / "folders", margin)
    else:
        raise DataError(
            f"unknown data set {str(name)!r}{did_you_mean(name, DATASETS)}: expected one of {', '.join(DATASETS)}, "
            f"MODULE:FUNCTION, or a folder with train/<class>/ and test/<class>/; there is no folder "
            f"{Path(name).expanduser().absolute()}"
        )
    sides = () if image_size is None else (image_size, image_size + 2 * margin)  # small images have no margin
    if sides and data.shape[1:] not in [(side, side) for side in sides]:
        raise DataError(f"image_size resizes folders only: {name} has {data.shape[1]}x{data.shape[2]} images")
    return data if indices is None else data.subset(indices)


def _check_request(split: str, image_size: int | None, margin: int) -> None:
    if split not in ("train", "test"):
        raise DataError(f'expected split "train" or "test", got {split!r}; split_validation makes a validation set')
    if image_size is not None and image_size < 1:
        raise DataError(f"expected an image_size of 1 pixel or more, got {image_size}")
    if margin < 0 or (margin and image_size is None):
        raise DataError(f"expected a margin of 0 pixels or more around an image_size, got {margin} around {image_size}")


def _load_folder(folder: Path, *arguments: Any) -> ImageDataset:
    """`load_folder`, with files that the system does not let us read as DataError."""
    try:
        return load_folder(folder, *arguments)
    except PyengmError:
        raise
    except OSError as error:
        raise DataError(f"{folder}: cannot read {error.filename or 'it'} ({error.strerror})") from error
