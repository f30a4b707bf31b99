"""A roofline on paper: what bounds every CUDA kernel on every GPU, by its machine code and the figures of data sheets.

    cd bench && python -m tools.roofline [EARLIER_CSRC] > results/roofline.md

nvcc compiles csrc/cuda for each architecture, which needs no GPU; cuobjdump prints the code (it comes with CUDA, or
with Triton). The time of a kernel is then at least that of its bytes at the card's bandwidth, and at least that of its
instructions on each unit. EARLIER_CSRC is the folder csrc of an earlier commit, with which the table is compared.

Counted is one turn of the hot loop. Left out are what happens once per row or block, misaligned rows, rare branches,
latencies, and the narrowness of caches: these are bounds, and no forecast. Every tensor is read once from memory: where
a step follows the sums of a row, its elements are taken to be in the cache. That is the hardest case for the units.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tools.sass import Instruction, functions, loops, turns

CSRC = Path(__file__).resolve().parents[2] / "csrc"
FLAGS = ["-O3", "-std=c++17", "-fmad=false", "-Xptxas", "-v"]  # setup.py's


class Card(NamedTuple):
    """Figures of a data sheet; of a capability with several cards, the one with the most bandwidth per FLOP/s."""

    name: str
    arch: str
    tflops: float  # float32, without tensor cores, at boost clock
    bandwidth: float  # GB/s
    source: str

    @property
    def bytes_per_clock(self) -> float:
        """Of memory, for each multiprocessor: peak FLOP/s are 2 for each float32 lane and clock."""
        return self.bandwidth / (self.tflops * 1000 / (2 * RATES["fp32"][ARCHS.index(self.arch)]))


ARCHS = ("80", "86", "89", "90", "120")
CARDS = (
    Card("A100 SXM 80 GB", "80", 19.5, 2039, "NVIDIA A100 data sheet"),
    Card("RTX 3090", "86", 35.6, 936, "NVIDIA Ampere GA102 GPU architecture, table of the RTX 3090"),
    Card("RTX 4090", "89", 82.6, 1008, "NVIDIA Ada GPU architecture, table of the RTX 4090"),
    Card("H100 SXM", "90", 67.0, 3350, "NVIDIA H100 data sheet"),
    Card("H200 SXM", "90", 67.0, 4800, "NVIDIA H200 data sheet"),
    Card("RTX 5090", "120", 104.8, 1792, "NVIDIA RTX Blackwell GPU architecture, table of the RTX 5090"),
)

# Results per clock and multiprocessor for ARCHS: CUDA C++ Programming Guide 12 and Best Practices Guide 13, "Throughput
# of Native Arithmetic Instructions". Where several instructions share a unit, its slowest rate: IADD3 is faster than
# the 64 of shifts and logic on 12.0. Conversions of float64 on 12.0 are taken to be as slow as on 8.6 and 8.9. Issue:
# four schedulers, each of one instruction for 32 lanes (Tuning Guides).
RATES = {
    "fp32": (64, 128, 128, 128, 128),  # with IMAD, which runs on half of these lanes from 8.6 on
    "imad": (64, 64, 64, 64, 64),
    "integer": (64, 64, 64, 64, 64),  # and logic, shifts, comparisons, minima, selections, moves
    "half": (64, 64, 64, 64, 64),  # arithmetic on 16 bits, which also widens them
    "fp64": (32, 2, 2, 64, 2),
    "conversion64": (16, 2, 2, 16, 2),
    "special": (16, 16, 16, 16, 16),  # roots, logarithms, sines, and all other conversions
    "issue": (128, 128, 128, 128, 128),
}
KINDS = {  # of instructions, by their names before the first point
    "fp32": {"FADD", "FMUL", "FFMA"},
    "imad": {"IMAD"},
    "integer": {
        *("IADD", "IADD3", "IABS", "VIADD", "LEA", "LOP", "LOP3", "PLOP3", "SHF", "SHL", "SHR", "BMSK", "SGXT", "PRMT"),
        *("ISETP", "FSETP", "HSETP2", "IMNMX", "VIMNMX", "VIADDMNMX", "FMNMX", "FMNMX3", "HMNMX2", "SEL", "FSEL"),
        *("FSET", "FCHK", "P2R", "R2P", "MOV", "CS2R"),
    },
    "half": {"HADD2", "HMUL2", "HFMA2"},
    "fp64": {"DADD", "DMUL", "DFMA", "DSETP"},
    "special": {"MUFU", "F2F", "F2FP", "I2F", "I2FP", "F2I", "I2I", "FLO", "POPC", "BREV"},
}  # fmt: skip


def unit(line: Instruction) -> str | None:
    """The unit that an instruction occupies, besides the issue of instructions; None: control and memory."""
    if line.kind in ("F2F", "I2F", "F2I") and "F64" in line.name:
        return "conversion64"
    return next((name for name, kinds in KINDS.items() if line.kind in kinds), None)


class Pass(NamedTuple):
    """A loop over elements.

    Args:
        reads: bytes that it reads for each element.
        writes: bytes that it writes for each.
        with_block: whether a thread passes the loop once for each piece of a block, whose lines then count too.
    """

    reads: int
    writes: int
    with_block: bool = False


class Kernel(NamedTuple):
    """One kernel of one type.

    Args:
        op: its name, as in csrc/cuda/ops.h.
        type: of the elements.
        file: where it is.
        pattern: what is found in its demangled name.
        passes: over each element.
        bytes: of memory for each element, where each is read once.
    """

    op: str
    type: str
    file: str
    pattern: str
    passes: tuple[Pass, ...]
    bytes: int


TYPES = {"float": 4, "BFloat16": 2, "Half": 2}


def kernels() -> Iterator[Kernel]:
    """All of them, but for those on float64 elements."""
    for name, size in TYPES.items():
        step = Pass(3 * size, size)
        rows = {
            "row_norms": ("row_norms.cu", "Norms<", (Pass(size, 0),), size),
            "pgd_l2_step_": ("pgd_l2_step.cu", "L2Step<", (Pass(3 * size, 0), step), 4 * size),
            "fosc linf": ("fosc.cu", "Conditions<false", (Pass(3 * size, 0),), 3 * size),
            "fosc l2": ("fosc.cu", "Conditions<true", (Pass(3 * size, 0),), 3 * size),
            "fosc_step_": ("fosc.cu", "FoscStep<", (Pass(3 * size, 0), step), 4 * size),
            "atas_step_": ("atas_step.cu", "Atas<", (Pass(size, 0), step), 4 * size),
        }
        for op, (file, operation, passes, size_in_memory) in rows.items():
            for function in ("whole_rows", "cut_rows"):
                pattern = rf"::{function}<.*{operation}.*\W{name}>\("
                yield Kernel(f"{op}, {function}", name, file, pattern, passes, size_in_memory)
        step = step._replace(with_block=True)
        yield Kernel("pgd_linf_step_", name, "pgd_linf_step.cu", rf"step_pieces<.*\W?{name}>\(", (step,), 4 * size)
    yield Kernel("row_sums", "float", "row_sums.cu", r"sum_rows<float>", (Pass(8, 0),), 8)
    yield Kernel("clip_weights", "float", "clip_weights.cu", r"weigh<float>", (Pass(4, 4),), 8)
    yield Kernel("philox_uniform", "float", "philox.cu", r"fill<.*Uniform>", (Pass(0, 4),), 4)
    yield Kernel("philox_normal", "float", "philox.cu", r"fill<.*Normal>", (Pass(0, 4),), 4)
    yield Kernel("crop_flip", "float", "crop_flip.cu", r"::fill\(", (Pass(0, 4),), 5)


class Code(NamedTuple):
    """A compiled kernel: instructions for each element by unit, and what ptxas says of it."""

    counts: dict[str, float]
    registers: int
    spills: int  # bytes that are stored

    def load(self, card: Card, memory: int) -> dict[str, float]:
        """Time on each unit in units of that of `memory` bytes for each element."""
        column = ARCHS.index(card.arch)
        clocks = {name: self.counts.get(name, 0) / rates[column] for name, rates in RATES.items()}
        clocks["fp32"] += self.counts.get("imad", 0) / RATES["fp32"][column]
        return {name: value * card.bytes_per_clock / memory for name, value in clocks.items()}


def count(code: list[Instruction], passes: tuple[Pass, ...]) -> dict[str, float]:
    """Instructions for each element, by unit and in all ("issue"), and accesses to global memory ("memory").

    Raises:
        ValueError: there is no loop for a pass.
    """
    total: Counter[str] = Counter()
    for each in passes:
        turn, elements = hot_turn(code, each)
        names = Counter(name for line in turn if (name := unit(line)))
        names.update(issue=len(turn), memory=sum(line.width > 0 for line in turn))
        total.update({name: number / elements for name, number in names.items()})
    return dict(total)


def hot_turn(code: list[Instruction], each: Pass) -> tuple[list[Instruction], float]:
    """The turn of a pass with the widest accesses and the most elements, and the number of elements.

    It is one of a loop without others within, and its accesses are all of one width. That of a pass with its block is
    of the longest loop, and has one access of each tensor.
    """
    found = []
    every = loops(code)
    for loop in every:
        nested = any(other is not loop and other[0] in loop and other[-1] in loop for other in every)
        if nested != each.with_block:
            continue
        for turn in turns(loop).values():
            elements = elements_of(turn, each)
            widest = max(line.width for line in turn)
            order = (len(loop), -elements) if each.with_block else (elements, -len(turn))
            if elements:
                found.append((widest, *order, elements, turn))
    if not found:
        raise ValueError(f"expected a loop that reads {each.reads} and writes {each.writes} bytes for each element")
    *_, elements, turn = max(found, key=lambda entry: entry[:3])
    return turn, elements


def elements_of(turn: list[Instruction], each: Pass) -> float:
    """How many elements a turn has by the bytes that it reads and writes; 0: it is not one of the pass.

    Narrow accesses under a condition beside wide ones are those of misaligned rows.
    """
    widest = max(line.width for line in turn)
    accesses = [line for line in turn if line.width == widest or (line.width and not line.conditional)]
    read, written = (sum(line.width for line in accesses if line.kind == kind) for kind in ("LDG", "STG"))
    elements = written / each.writes if each.writes else read / each.reads
    if each.reads == 0:  # of what a thread reads besides, such as the index of its row, nothing is known
        return elements
    uniform = all(line.width == widest for line in accesses)
    return elements if uniform and (read, written) == (elements * each.reads, elements * each.writes) else 0


def compiled(csrc: Path) -> dict[tuple[str, str, str], Code]:
    """Every kernel of a folder csrc by op, type and architecture.

    Raises:
        RuntimeError: nvcc or cuobjdump is not here, or fails; or a kernel is not in what they say.
    """
    codes = {}
    wanted = list(kernels())
    with tempfile.TemporaryDirectory() as folder:
        for file in dict.fromkeys(kernel.file for kernel in wanted):
            fat = Path(folder, f"{file}.fatbin")
            targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHS]
            said = _run(_tool("nvcc"), *FLAGS, *targets, "-fatbin", csrc / "cuda" / file, "-o", fat)
            resources = {(arch, name): rest for arch, name, *rest in _resources(said)}
            for arch in ARCHS:
                code = dict(functions(_run(_tool("cuobjdump"), "-sass", "-arch", f"sm_{arch}", fat)))
                readable = dict(zip(code, _run(_tool("c++filt"), *code).splitlines(), strict=True))
                for kernel in wanted:
                    if kernel.file == file:
                        name = next((name for name in code if re.search(kernel.pattern, readable[name])), None)
                        if name is None:
                            raise RuntimeError(f"{file} has no kernel that matches {kernel.pattern!r}")
                        counts = count(code[name], kernel.passes)
                        codes[kernel.op, kernel.type, arch] = Code(counts, *resources[arch, name])
    return codes


def _resources(text: str) -> Iterator[tuple[str, str, int, int]]:
    """Architecture, mangled name, registers and bytes of spills of each kernel, by the messages of ptxas."""
    pattern = r"Compiling entry function '(\w+)' for 'sm_(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers"
    for name, arch, spills, registers in re.findall(pattern, text, re.DOTALL):
        yield arch, name, int(registers), int(spills)


def _tool(name: str) -> str:
    """Path of a program; cuobjdump also comes with Triton."""
    path = shutil.which(name)
    if path is None and name == "cuobjdump":
        import triton

        path = shutil.which(str(Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"))
    if path is None:
        raise RuntimeError(f"{name} was not found; the CUDA toolkit has nvcc and cuobjdump, binutils have c++filt")
    return path


def _run(*command) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed:\n{done.stderr}")
    return done.stdout + done.stderr


def table(codes: dict[tuple[str, str, str], Code], arch: str) -> Iterator[str]:
    """Lines of Markdown: counts and resources of every kernel, and the unit with the most work on each card."""
    cards = [card for card in CARDS if card.arch == arch]
    units = ("fp32", "fp64", "conversion64", "integer", "imad", "half", "special", "memory", "issue")
    yield f"| kernel | type | {' | '.join(units)} | registers | spills | bytes | {' | '.join(c.name for c in cards)} |"
    yield "|---" * (5 + len(units) + len(cards)) + "|"
    for kernel in kernels():
        code = codes[kernel.op, kernel.type, arch]
        counts = " | ".join(f"{code.counts.get(name, 0):.1f}" for name in units)
        loads = " | ".join(busiest(code, card, kernel.bytes) for card in cards)
        head = f"| {kernel.op} | {kernel.type} | {counts} | {code.registers} | {code.spills} | {kernel.bytes} "
        yield f"{head}| {loads} |"


def busiest(code: Code, card: Card, memory: int) -> str:
    """The load of the busiest unit and its name, in bold where it takes longer than memory."""
    load, name = max((value, name) for name, value in code.load(card, memory).items())
    text = f"{load:.2f} {name}"
    return f"**{text}**" if load > 1 else text


def comparison(now: dict[tuple[str, str, str], Code], earlier: dict[tuple[str, str, str], Code]) -> Iterator[str]:
    """Lines of Markdown: the busiest units, earlier and now, of all kernels that changed."""
    yield f"| kernel | type | {' | '.join(card.name for card in CARDS)} |"
    yield "|---" * (2 + len(CARDS)) + "|"
    for kernel in kernels():
        cells = []
        for card in CARDS:
            key = kernel.op, kernel.type, card.arch
            then, here = (busiest(codes[key], card, kernel.bytes) for codes in (earlier, now))
            cells.append(here if then == here else f"{then} → {here}")
        if any("→" in cell for cell in cells):
            yield f"| {kernel.op} | {kernel.type} | {' | '.join(cells)} |"


def main(earlier: str | None = None) -> None:
    codes = compiled(CSRC)
    release = re.findall(r"release ([\d.]+)", _run(_tool("nvcc"), "--version"))[0]
    commit = _run("git", "-C", CSRC, "describe", "--always", "--dirty").strip()
    print("# A roofline on paper\n\nModelled, not measured; made by `cd bench && python -m tools.roofline`, ", end="")
    print(f"nvcc {release}, commit {commit}.\n{(__doc__ or '').split(chr(10) * 2, 3)[3]}")
    print(
        "Counts are instructions for each element. The last columns: the time of the busiest unit in units of that of"
    )
    print("the bytes at full bandwidth, and its name. Above 1 (bold) it is not memory that bounds the kernel.\n")
    for card in CARDS:
        figures = f"{card.tflops} TFLOP/s of float32, {card.bandwidth:.0f} GB/s ({card.source})"
        print(f"- {card.name}, sm_{card.arch}: {figures}; {card.bytes_per_clock:.1f} bytes a clock and multiprocessor")
    print("\nRates, for each clock and multiprocessor, of sm_" + ", ".join(ARCHS) + ":")
    print("; ".join(f"{name} {', '.join(map(str, rates))}" for name, rates in RATES.items()) + ".")
    if earlier:
        print("\n## Earlier and now\n")
        print("\n".join(comparison(codes, compiled(Path(earlier)))))
    for arch in ARCHS:
        print(f"\n## sm_{arch}\n")
        print("\n".join(table(codes, arch)))


if __name__ == "__main__":
    main(*sys.argv[1:])
