"""Tiles that were timed on this GPU, stored on disk; for other shapes `conv_cost_model` chooses.

`pyengm.kernels.tune` times tiles, on request only: never implicitly, and so never while a CUDA graph is captured.
"""

import itertools
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pyengm.kernels.conv_cost_model import GRAM_TILES, DirectTile, GramTile, direct_tile, gram_tile
from pyengm.kernels.conv_shape import ConvShape

FORMAT = 1  # of the file; changes with the fields of the tiles
Timed = dict[str, dict[str, Any]]  # shape -> form -> {"tile": [...], "us": median}


@cache
def best_direct_tile(shape: ConvShape) -> DirectTile:
    """The fastest of the timed tiles, or the one that the cost model chooses."""
    found = _timed().get(str(shape), {}).get("direct")
    return DirectTile(*found["tile"]) if found else direct_tile(shape)


@cache
def best_gram_tile(shape: ConvShape) -> GramTile:
    """The fastest of the timed tiles, or the one that the cost model chooses."""
    found = _timed().get(str(shape), {}).get("gram")
    return GramTile(*found["tile"]) if found else gram_tile(shape)


@cache
def gram_is_cheaper(shape: ConvShape) -> bool:
    """Whether the Gram form is faster than the direct form, by times or by the cost model."""
    found = _timed().get(str(shape))
    if found:
        return found["gram"]["us"] < found["direct"]["us"]
    return gram_tile(shape).cost(shape) < direct_tile(shape).cost(shape)


def store(shape: ConvShape, times: dict[str, dict[tuple, float]]) -> None:
    """Writes the fastest tile of each form to disk.

    Args:
        shape: of the convolution.
        times: form -> tile -> microseconds.

    Raises:
        RuntimeError: there is no GPU.
    """
    best = {form: min(tiles, key=tiles.__getitem__) for form, tiles in times.items()}
    timed, path = _timed(), _path()
    if path is None:
        raise RuntimeError("expected a GPU, on which tiles are timed; torch finds none")
    timed[str(shape)] = {form: {"tile": list(tile), "us": times[form][tile]} for form, tile in best.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps(timed, indent=1))
    unfinished.replace(path)
    clear_cache()


def clear_cache() -> None:
    """Clears the tiles in memory: the next call reads the file again."""
    for cached in (_timed, best_direct_tile, best_gram_tile, gram_is_cheaper):
        cached.cache_clear()


def candidates(shape: ConvShape) -> dict[str, list[tuple]]:
    """Tiles to time, by form; the first one is the choice of the cost model."""
    direct, gram = direct_tile(shape), gram_tile(shape)
    tiles: dict[str, list[tuple]] = {"direct": [direct], "gram": [gram]}
    for outputs, offsets, warps in itertools.product((64, 128), {1, direct.offsets}, (4, 8)):
        for positions, stages in ((32, 4), (64, 3)):
            tile = direct._replace(outputs=outputs, offsets=offsets, positions=positions, warps=warps, stages=stages)
            if outputs <= max(direct.outputs, 64) and positions <= max(direct.positions, 32):
                tiles["direct"].append(tile)
    for (pixels, channels, _), warps, stages in itertools.product(GRAM_TILES, (2, 4), (3, 5)):
        if pixels <= max(16, gram.positions(shape)):
            tiles["gram"].append(
                gram._replace(pixels=pixels, channels=min(channels, gram.channels), warps=warps, stages=stages)
            )
    return {form: list(dict.fromkeys(found)) for form, found in tiles.items()}


@cache
def _timed() -> Timed:
    path = _path()
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _path() -> Path | None:
    """The file of this kind of GPU; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache_home, "pyengm", f"conv_tiles_{FORMAT}_{torch.cuda.get_device_name().replace(' ', '_')}.json")
