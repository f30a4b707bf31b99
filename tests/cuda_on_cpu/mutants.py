"""The CUDA kernels, each broken in one place; the checks of the emulator must find every one.

Most places are a barrier, a fence, a bound or an early end whose absence a test of results alone would often not see.
"""

import shutil
from pathlib import Path
from typing import NamedTuple

from cuda_on_cpu.compile_kernels import CSRC


class Mutant(NamedTuple):
    """A change of one file of csrc/cuda.

    Args:
        name: what is broken.
        file: name of the file.
        old: text that occurs once in it.
        new: the text in its place.
        cases: names of fuzz cases that run the kernel.
    """

    name: str
    file: str
    old: str
    new: str
    cases: tuple[str, ...]


ROWS = ("row_norms", "pgd_l2_step_", "fosc", "fosc_step_", "atas_step_")
STEPS = ("pgd_linf_step_", "pgd_l2_step_")

# In small files, which compile in seconds; the message of the emulator for each.
QUICK = {
    Mutant(
        "regression: thread 0 adds while others read",
        "regression_weights.cu",
        "  __syncthreads();  // thread 0 has added the last part\n",
        "",
        ("regression",),
    ): "a race",
    Mutant(
        "row_sums: threads beyond the rows miss the shuffle",
        "row_sums.cu",
        "    for (int distance = team / 2; distance > 0; distance /= 2) {  // all lanes of a warp are here\n",
        "    if (row >= rows) return;\n    for (int distance = team / 2; distance > 0; distance /= 2) {\n",
        ("row_sums",),
    ): "lanes that have ended|its warp waits",
    Mutant(
        "crop_flip: a pixel left of the image",
        "crop_flip.cu",
        "inside && at >= 0 &&",
        "inside &&",
        ("crop_flip",),
    ): "outside all tensors",
    Mutant(
        "philox: values beyond the last",
        "philox.cu",
        "j < 4 && 4 * b + j < count",
        "j < 4",
        ("philox",),
    ): "outside all tensors|a race",
    Mutant(
        "clip_weights: reads its output",
        "clip_weights.cu",
        "out[i] = clip_weight(norms[i], alpha)",
        "out[i] = clip_weight(out[i], alpha)",
        ("clip_weights",),
    ): "nobody wrote",
}

SLOW = [
    Mutant(
        "block_sum: no barrier before",
        "rows.h",
        "  __syncthreads();  // the sums of the previous row have been read\n",
        "",
        ROWS,
    ),
    Mutant(
        "block_sum: no barrier between",
        "rows.h",
        "  __syncthreads();\n#pragma unroll\n  for (int k = 0; k < Count; ++k) sums[k] = team_sum<kWarps>",
        "#pragma unroll\n  for (int k = 0; k < Count; ++k) sums[k] = team_sum<kWarps>",
        ROWS,
    ),
    Mutant(
        "whole_rows: decided without a barrier",
        "rows.h",
        "      __syncthreads();\n      const MoveOf<Op> move = decided;",
        "      const MoveOf<Op> move = decided;",
        ROWS,
    ),
    Mutant("whole_rows: every thread decides", "rows.h", "if (threadIdx.x == 0) decided", "decided", ROWS),
    Mutant(
        "whole_rows: a skipped row ends the block",
        "rows.h",
        "if (op.skips(row)) continue;\n    A* a",
        "if (op.skips(row)) return;\n    A* a",
        ("pgd_l2_step_",),
    ),
    Mutant(
        "cut_rows: no barrier at the top",
        "rows.h",
        "    __syncthreads();  // all have read the shared values\n",
        "",
        ROWS,
    ),
    Mutant("cut_rows: ticket without a barrier", "rows.h", "1ull);\n    __syncthreads();\n", "1ull);\n", ROWS),
    Mutant(
        "cut_rows: no fence before arrival",
        "rows.h",
        "        __threadfence();\n        is_last =",
        "        is_last =",
        ROWS,
    ),
    Mutant(
        "cut_rows: no fence after arrival",
        "rows.h",
        "== cut.pieces;\n        __threadfence();\n",
        "== cut.pieces;\n",
        ROWS,
    ),
    Mutant(
        "cut_rows: is_last without a barrier",
        "rows.h",
        "      __syncthreads();\n      if (!is_last",
        "      if (!is_last",
        ROWS,
    ),
    Mutant(
        "cut_rows: move published without a fence",
        "rows.h",
        "        __threadfence();\n        atomicExch",
        "        atomicExch",
        ROWS,
    ),
    Mutant(
        "cut_rows: move read without a fence",
        "rows.h",
        "__nanosleep(100);\n        __threadfence();",
        "__nanosleep(100);",
        ROWS,
    ),
    Mutant(
        "cut_rows: shared move without a barrier",
        "rows.h",
        "      __syncthreads();\n      const Move move = shared;",
        "      const Move move = shared;",
        ROWS,
    ),
    Mutant(
        "cut_rows: waits by a weak read", "rows.h", "static_cast<volatile unsigned*>", "static_cast<unsigned*>", ROWS
    ),
    Mutant(
        "cut_rows: tells by a weak write",
        "rows.h",
        "atomicExch(workspace.decided + row, 1u)",
        "workspace.decided[row] = 1u",
        ROWS,
    ),
    Mutant(
        "cut_rows: the last step missing",
        "rows.h",
        "(n + lag) * (Op::steps ? 2 : 1) * cut.pieces;",
        "(n + lag) * (Op::steps ? 2 : 1) * cut.pieces - Op::steps;",
        ROWS,
    ),
    Mutant("cut_rows: one piece too early", "rows.h", "+ 1 == cut.pieces", "+ 2 == cut.pieces", ROWS),
    Mutant("counters not cleared", "rows.h", "RowWorkspace::zeros(n), static_cast", "8, static_cast", ROWS),
    Mutant("workspace too small", "rows.h", "int64_t(3 * sizeof(double))", "int64_t(1 * sizeof(double))", ROWS),
    Mutant("moves over sums", "rows.h", "zeros(n) + kMove * n);", "zeros(n) + 8 * n);", ROWS),
    Mutant(
        "sum_piece: wide wherever",
        "rows.h",
        "const bool wide = aligned(grad) &&",
        "const bool wide = true || aligned(grad) &&",
        ROWS,
    ),
    Mutant(
        "sum_piece: beyond the end",
        "rows.h",
        "i + width <= size; i += width * kRowThreads",
        "i < size; i += width * kRowThreads",
        ROWS,
    ),
    Mutant(
        "sum_piece: no tail",
        "rows.h",
        "size / width * width + threadIdx.x; i < size",
        "size / width * width + threadIdx.x; i < size - 1",
        ROWS,
    ),
    Mutant("sum_piece: second floats lost", "rows.h", "sums[k] += double(pairs[k].low);", ";", ROWS),
    Mutant(
        "row_sums: second floats lost",
        "row_sums.cu",
        "sums[k] += double(pairs[k].low);",
        ";",
        ("row_sums",),
    ),
    Mutant("pairs: the offset is rounded", "float_pairs.h", "(a - (high - other)) - (b + other)", "0.0f", ROWS),
    Mutant("pairs: of one float", "float_pairs.h", "float(value - double(high))", "0.0f", ("pgd_l2_step_",)),
    Mutant("pairs: sums begin too low", "float_pairs.h", "begin(Width * largest[k])", "begin(largest[k] / 64)", ROWS),
    Mutant("pairs: products too large", "float_pairs.h", "largest <= 0x1p60f", "largest <= 0x1p127f", ROWS),
    Mutant("pairs: products too small", "float_pairs.h", "largest >= 0x1p-50f", "largest >= 0x1p-149f", ROWS),
    Mutant("pgd_l2: never exact for 16 bits", "pgd_l2_step.cu", "if (all) return;", "return;", STEPS[1:]),
    Mutant("pgd_l2: 0 * nan", "pgd_l2_step.cu", "if (move.push.high == 0.0f)", "if (false)", STEPS[1:]),
    Mutant("pgd_l2: no scale", "pgd_l2_step.cu", "if (move.scale != 1.0f)", "if (false)", STEPS[1:]),
    Mutant("pgd_l2: nan in the bounds", "pgd_l2_step.cu", "move.keep.high != move.keep.high", "false", STEPS[1:]),
    Mutant(
        "step_piece: apart as together",
        "rows.h",
        "const bool together = phase(x_adv) == phase(grad) &&",
        "const bool together = true || phase(x_adv) == phase(grad) &&",
        STEPS,
    ),
    Mutant("step_piece: lead off by one", "rows.h", "% 16 / sizeof(T);", "% 16 / sizeof(T) + 1;", STEPS),
    Mutant(
        "pgd_linf: mask ends the block",
        "pgd_linf_step.cu",
        "!mask[row]) continue;",
        "!mask[row]) return;",
        ("pgd_linf_step_",),
    ),
    Mutant(
        "row_sums: loop by team",
        "row_sums.cu",
        "for (int64_t first = int64_t(blockIdx.x) * teams; first < rows;",
        "for (int64_t first = int64_t(blockIdx.x) * teams; first + threadIdx.x / team < rows;",
        ("row_sums",),
    ),
    Mutant(
        "regression: no barrier in the tree",
        "regression_weights.cu",
        "    __syncthreads();\n    if (thread < half)",
        "    if (thread < half)",
        ("regression",),
    ),
    Mutant(
        "regression: line without a barrier",
        "regression_weights.cu",
        "keep);\n    __syncthreads();",
        "keep);",
        ("regression",),
    ),
    Mutant("crop_flip: wide wherever", "crop_flip.cu", "all.length % 4 == 0 &&", "", ("crop_flip",)),
    Mutant(
        "crop_flip: a row too many",
        "crop_flip.cu",
        "first + all.part < all.count ? uint32_t(first + all.part) : all.count",
        "uint32_t(first + all.part)",
        ("crop_flip",),
    ),
    Mutant(
        "philox: wide wherever",
        "philox.cu",
        "const bool wide = count % 4 == 0 &&",
        "const bool wide = true || count % 4 == 0 &&",
        ("philox",),
    ),
    Mutant(
        "philox: parts overlap",
        "philox.cu",
        "begin + kPart < blocks ? begin + kPart",
        "begin + 2 * kPart < blocks ? begin + 2 * kPart",
        ("philox",),
    ),
    Mutant(
        "grid stride too long",
        "launch.h",
        "return int64_t(gridDim.x) * blockDim.x;",
        "return int64_t(gridDim.x + 1) * blockDim.x;",
        ("clip_weights",),
    ),
]


def broken_sources(folder: Path, *mutants: Mutant) -> Path:
    """A copy of csrc in which the places of these mutants are changed."""
    copy = folder / "csrc"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(CSRC, copy)
    for mutant in mutants:
        path = copy / "cuda" / mutant.file
        text = path.read_text()
        assert text.count(mutant.old) == 1, f"{mutant.name}: expected its text once in {mutant.file}"
        path.write_text(text.replace(mutant.old, mutant.new))
    return copy
