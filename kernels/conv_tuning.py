"""Tiles that were timed on the GPU at hand, kept on disk; where none was, the model of `conv_cost_model` picks.

`pyengm.kernels.tune` does the timing, on request only: never behind the user's back, never in a CUDA graph's capture.
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

FORMAT = 1  # of the file; another number for other tiles
Timed = dict[str, dict[str, Any]]  # shape -> form -> {"tile": [...], "us": median}


@cache
def best_direct_tile(shape: ConvShape) -> DirectTile:
    found = _timed().get(str(shape), {}).get("direct")
    return DirectTile(*found["tile"]) if found else direct_tile(shape)


@cache
def best_gram_tile(shape: ConvShape) -> GramTile:
    found = _timed().get(str(shape), {}).get("gram")
    return GramTile(*found["tile"]) if found else gram_tile(shape)


@cache
def gram_is_cheaper(shape: ConvShape) -> bool:
    found = _timed().get(str(shape))
    if found:
        return found["gram"]["us"] < found["direct"]["us"]
    return gram_tile(shape).cost(shape) < direct_tile(shape).cost(shape)


def remember(shape: ConvShape, times: dict[str, dict[tuple, float]]) -> None:
    """times: form -> tile -> microseconds; the best of each form is kept."""
    best = {form: min(tiles, key=tiles.__getitem__) for form, tiles in times.items()}
    timed, path = _timed(), _path()
    if path is None:
        raise RuntimeError("tiles are timed on a GPU; torch finds none")
    timed[str(shape)] = {form: {"tile": list(tile), "us": times[form][tile]} for form, tile in best.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps(timed, indent=1))
    unfinished.replace(path)
    forget()


def forget() -> None:
    """Of what was read from disk and picked; the next call reads and picks anew."""
    for remembered in (_timed, best_direct_tile, best_gram_tile, gram_is_cheaper):
        remembered.cache_clear()


def candidates(shape: ConvShape) -> dict[str, list[tuple]]:
    """Tiles worth timing, the model's choice first."""
    direct, gram = direct_tile(shape), gram_tile(shape)
    tiles: dict[str, list[tuple]] = {"direct": [direct], "gram": [gram]}
    for outputs, offsets, warps in itertools.product((64, 128), {1, direct.offsets}, (4, 8)):
        for positions, stages in ((32, 4), (64, 3)):
            tile = direct._replace(outputs=outputs, offsets=offsets, positions=positions, warps=warps, stages=stages)
            if outputs <= max(direct.outputs, 64) and positions <= max(direct.positions, 32):
                tiles["direct"].append(tile)
    for (pixels, channels, _), warps, stages in itertools.product(GRAM_TILES, (2, 4), (3, 5)):
        if pixels <= max(16, gram.places(shape)):
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
    """One file for each kind of GPU; None without one."""
    if not torch.cuda.is_available():
        return None
    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache_home, "pyengm", f"conv_tiles_{FORMAT}_{torch.cuda.get_device_name().replace(' ', '_')}.json")
