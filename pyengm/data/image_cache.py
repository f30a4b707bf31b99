"""Images decoded once into a memory-mapped file, which later runs read directly."""

import hashlib
import os
import shutil
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from pyengm.data.resized_crop import margin_for
from pyengm.errors import DataError
from pyengm.utils.io import format_size
from pyengm.utils.locks import file_lock
from pyengm.utils.terminal import is_quiet, log

BLOCK = 64  # images per task of the thread pool
DEFAULT_SIZE = 224


class _SizeMismatch(Exception):
    pass


def decode_cached(
    folder: Path, paths: Sequence[str], image_size: int | None, cache: Path, margin: int = 0
) -> np.memmap:
    """Decodes images into a file on first use, and maps that file into memory.

    Args:
        folder: the images' common folder.
        paths: the images, below `folder`.
        image_size: H = W in pixels, of the middle of an image; None keeps the images' own size if they share one, else
            224.
        cache: the folder of decoded images.
        margin: with an image_size, additional pixels on each side: H = W = image_size + 2 margin, the shorter side.

    Returns:
        A read-only memmap (N, 3, H, W) uint8.

    Raises:
        DataError: an image cannot be read, or the disk is full; no partial file stays.
        StorageError: the cache cannot be written to.
    """
    path = cache / _fingerprint(folder, paths, image_size, margin) / "images.npy"
    if not path.exists():
        with file_lock(cache):
            if not path.exists():  # another process may have made it meanwhile
                _decode_into(path, paths, image_size, margin)
    return np.load(path, mmap_mode="r")


def _decode_into(path: Path, paths: Sequence[str], image_size: int | None, margin: int) -> None:
    if image_size is not None:
        side = image_size + 2 * margin
        _decode(paths, (side, side), path, shorter=side if margin else _shorter_for(side))
        return
    try:
        width, height = _open(paths[0]).size
        _decode(paths, (height, width), path, shorter=None)
    except _SizeMismatch:
        _decode(paths, (DEFAULT_SIZE, DEFAULT_SIZE), path, shorter=_shorter_for(DEFAULT_SIZE))


def _fingerprint(folder: Path, paths: Sequence[str], image_size: int | None, margin: int) -> str:
    digest = hashlib.sha256(f"pyengm 2 {image_size}{f' + {margin}' if margin else ''}\n".encode())
    for path in paths:
        try:
            status = os.stat(path)
        except OSError as error:
            raise DataError(f"{path}: cannot read this image ({error.strerror}): repair or remove it") from error
        name = os.fsencode(os.path.relpath(path, folder))  # file names need not be UTF-8
        digest.update(name + f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def _shorter_for(side: int) -> int:
    """The shorter side to resize an image to before its middle square of `side` pixels is cropped."""
    return side + 2 * margin_for(side)


def shorter_side(path: str) -> int:
    """The shorter side of an image in pixels."""
    return min(_open(path).size)


def _decode(paths: Sequence[str], size: tuple[int, int], path: Path, *, shorter: int | None) -> None:
    """Writes all images under a temporary name, then moves the file to `path`."""
    shape = (len(paths), 3, *size)
    path.parent.mkdir(parents=True, exist_ok=True)
    needed, free = int(np.prod(shape, dtype=np.int64)), shutil.disk_usage(path.parent).free
    temporary = path.with_name(f"{uuid.uuid4().hex}.tmp")
    pool = ThreadPoolExecutor()
    try:
        if needed > free:  # a memmap on a full disk ends the process
            raise DataError(
                f"{format_size(needed)} are needed for decoded images in {path.parent}, {format_size(free)} are free:"
                " make room, name another folder (PYENGM_DATA), or use a smaller image_size"
            )
        images = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)

        def decode_block(start: int) -> None:
            for position in range(start, min(start + BLOCK, len(paths))):
                images[position] = _pixels(paths[position], size, shorter)

        starts = range(0, len(paths), BLOCK)
        log(f"decoding {len(paths):,} images once into {path} ({format_size(needed)}), from which later runs read them")
        title, console = "decoding", Console(stderr=True)
        hidden = is_quiet() or not console.is_terminal
        for _ in track(
            pool.map(decode_block, starts), title, len(starts), console=console, transient=True, disable=hidden
        ):
            pass
        images.flush()
        os.replace(temporary, path)
    finally:
        pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C, only the running blocks finish
        temporary.unlink(missing_ok=True)
        if not any(path.parent.iterdir()):
            path.parent.rmdir()


def _pixels(path: str, size: tuple[int, int], shorter: int | None) -> np.ndarray:
    """One image as (3, H, W) uint8: as it is if it has that `size`, else resized and centre-cropped.

    shorter: the shorter side in pixels after resizing; None raises _SizeMismatch instead.
    """
    image = _open(path)
    if image.size != size[::-1]:
        if shorter is None:
            raise _SizeMismatch
        from torchvision.transforms import InterpolationMode  # here: it takes a second
        from torchvision.transforms import functional as transforms

        resized = transforms.resize(image, shorter, InterpolationMode.BICUBIC)  # pyright: ignore[reportArgumentType]
        image = transforms.center_crop(resized, size)  # pyright: ignore[reportArgumentType]
    return np.asarray(image).transpose(2, 0, 1)


def _open(path: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):  # more than 8 bits, which convert() would cut off
                raise DataError(f"{path}: expected 8 bits per channel, got mode {image.mode}: convert the image")
            return image.convert("RGB")
    except DataError:
        raise
    except Exception as error:  # decoders raise many kinds of error on damaged files
        raise DataError(f"{path}: cannot read this image ({error}): repair or remove it") from error
