"""What every kernel may read and write: the memory behind each of its pointers, as csrc/cuda/ops.h promises it.

A kernel's arguments in their order: `name` is a number; `name:access:size:type` is a pointer to so many elements, the
product of numbers and arguments; access is `in`, `out` (all of it is written, none is read) or `inout`. Type T is the
type of the data and R that of values per example, by the suffix of the kernel's name. `workspace` ends the arguments of
kernels whose blocks share rows.
"""

import math
from typing import Any, NamedTuple

ROWS = "x_adv:inout:n*d:T grad:in:n*d:T x:in:n*d:T"
SIGNATURES = {
    "pgd_linf_step": f"{ROWS} n d step eps lo hi steps:in:n:R mask:in:n:u8",
    "pgd_l2_step": f"{ROWS} n d step eps lo hi steps:in:n:R mask:in:n:u8 workspace",
    "row_norms": "out:out:n:R t:in:n*d:T n d workspace",
    "fosc": f"out:out:n:R {ROWS.replace('inout', 'in')} n d eps l2 workspace",
    "fosc_step": f"out:out:n:R {ROWS} active:inout:n:u8 n d step eps threshold lo hi workspace",
    "atas_step": f"sizes:out:n:R {ROWS} v:inout:n:R n d eps step_scale c min_step max_step beta lo hi workspace",
    "clip_weights": "out:out:n:T norms:in:n:T n alpha",
    "regression_statistics": "out:out:5:f64 x:in:n:T y:in:n:T n",
    "regression_weights": "weights:out:n:T line:out:2:f64 x:in:n:T y:in:n:T old:in:2:f64 n alpha keep",
    "row_sums": "sums:out:rows:T dots:out:rows:T g:in:rows*columns:T x:in:rows*columns:T rows columns",
    "crop_flip": "out:out:n*channels*height*width:f32 images:in:total*channels*height*width:u8 positions:in:n:i64 "
    "rows:in:n:i64 cols:in:n:i64 flip:in:n:u8 n total channels height width padding channels_last",
    "philox_uniform": "out:out:n*count:f32 index:in:n:i64 n count seed epoch purpose",
    "philox_normal": "out:out:n*count:f32 index:in:n:i64 n count seed epoch purpose",
}
BYTES = {"u8": 1, "i64": 8, "f64": 8, "f32": 4, "bf16": 2, "f16": 2}


class Memory(NamedTuple):
    """The memory behind one argument of a call."""

    name: str
    address: int
    size: int  # bytes
    writable: bool
    has_values: bool


class Call(NamedTuple):
    """Arguments of a call, understood."""

    memory: list[Memory]
    numbers: dict[str, Any]  # by the names of the signature
    has_workspace: bool


def kernel_names() -> list[str]:
    """All kernels as the module names them, with the suffix of their type."""
    names = []
    for family, signature in SIGNATURES.items():
        if ":T" not in signature:
            names.append(family)
        else:
            every_storage = "x_adv:" in signature or family == "row_norms"
            names += [f"{family}_{suffix}" for suffix in ("f32", "f64", *(("bf16", "f16") if every_storage else ()))]
    return names


def read_call(kernel: str, args: tuple) -> Call:
    """The memory and the numbers of a call with these arguments, without device, stream and workspace."""
    family, _, suffix = kernel.rpartition("_")
    if kernel in SIGNATURES:
        family, suffix = kernel, "f32"
    types = BYTES | {"T": BYTES[suffix], "R": max(4, BYTES[suffix])}
    parts = [part.split(":") for part in SIGNATURES[family].split()]
    has_workspace = parts[-1] == ["workspace"]
    given = list(zip(parts[: len(parts) - has_workspace], args, strict=True))
    numbers = {name: value for (name, *pointer), value in given if not pointer}
    memory = []
    for (name, *pointer), address in given:
        if pointer and address:
            access, size, kind = pointer
            elements = math.prod(int(numbers.get(factor, factor)) for factor in size.split("*"))
            memory.append(Memory(name, address, elements * types[kind], access != "in", access != "out"))
    return Call(memory, numbers, has_workspace)
