"""Reads the machine code of kernels as cuobjdump prints it: functions, loops, and the instructions of a loop's turn."""

import re
from collections.abc import Iterator
from typing import NamedTuple

LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?)\s*;")
ENDS = ("EXIT", "RET", "BRX", "JMX")  # where no predicate precedes them, nothing follows


class Instruction(NamedTuple):
    """One line of machine code.

    Args:
        address: in bytes from the start of the function.
        name: such as LDG.E.128.CONSTANT.
        target: address of a jump, or None.
        conditional: whether the next line may follow although this one jumps or ends.
    """

    address: int
    name: str
    target: int | None
    conditional: bool

    @property
    def kind(self) -> str:
        """The name without what follows its first point."""
        return self.name.partition(".")[0]

    @property
    def is_wide(self) -> bool:
        """Whether it is arithmetic in float64."""
        return self.kind in ("DADD", "DMUL", "DFMA", "DSETP")

    @property
    def width(self) -> int:
        """Bytes of global memory that a thread reads or writes, 0 for other instructions."""
        if self.kind not in ("LDG", "STG"):
            return 0
        sizes = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
        return next((sizes[part] for part in self.name.split(".") if part in sizes), 4)


class Way(NamedTuple):
    """Lines of a loop that follow each other; shorter ways are less."""

    wide: int  # lines with arithmetic in float64
    length: int
    lines: list[int]


def functions(text: str) -> Iterator[tuple[str, list[Instruction]]]:
    """The functions in an output of `cuobjdump -sass` of one architecture, by mangled name.

    Raises:
        ValueError: there is no function with instructions.
    """
    found = False
    for part in re.split(r"^\s*Function : ", text, flags=re.MULTILINE)[1:]:
        name, _, body = part.partition("\n")
        lines = [_instruction(match) for match in LINE.finditer(body)]
        if lines:
            found = True
            yield name.strip(), lines
    if not found:
        raise ValueError("expected functions of `cuobjdump -sass`, got none with instructions")


def _instruction(match: re.Match[str]) -> Instruction:
    address, predicate, name, operands = match.groups()
    jump = re.search(r"(?:^|\s)`?\(?(0x[0-9a-f]+)\)?$", operands) if name.split(".")[0] == "BRA" else None
    # BRA P0, 0x10 and BRA.U UP0, 0x10 have their condition among the operands.
    conditional = predicate is not None or "," in operands
    return Instruction(int(address, 16), name, int(jump[1], 16) if jump else None, conditional)


def loops(code: list[Instruction]) -> list[list[Instruction]]:
    """The lines of every loop, from the target of a jump backwards to that jump; nested loops are within others."""
    jumps = [(line.target, line.address) for line in code if line.target is not None and line.target < line.address]
    return [[line for line in code if start <= line.address <= end] for start, end in jumps]


def turns(loop: list[Instruction]) -> dict[int, list[Instruction]]:
    """Shortest ways through a loop, from its first line to its last, by the bytes of their accesses to global memory.

    Only the widest accesses of the loop are counted, as those of a loop that is split into vectors and single elements
    belong to either. Loops within are passed once. So rare branches, of other accesses or other arithmetic, are left
    out: of two ways with the same accesses the one with fewer instructions of float64 stays, as float64 is for values
    that float32 cannot hold, and of two with the same number of these the one with fewer instructions.
    """
    widest = max(line.width for line in loop)
    position = {line.address: k for k, line in enumerate(loop)}
    best: list[dict[int, Way]] = [{} for _ in loop]  # by line: bytes -> the shortest way up to it
    best[0][0] = Way(0, 0, [])
    for k, line in enumerate(loop):
        own = line.width if line.width == widest else 0
        for size, way in best[k].items():
            longer = Way(way.wide + line.is_wide, way.length + 1, [*way.lines, k])
            for follower in _followers(line, k, position):
                best[follower][size + own] = min(longer, best[follower].get(size + own, longer))
    last = len(loop) - 1
    return {size: [loop[j] for j in [*way.lines, last]] for size, way in best[last].items()}


def _followers(line: Instruction, k: int, position: dict[int, int]) -> Iterator[int]:
    """Positions of the lines that may come next, within the loop and forwards."""
    goes_on = line.conditional or (line.target is None and line.kind not in ENDS)
    if goes_on and k + 1 < len(position):
        yield k + 1
    if line.target in position and position[line.target] > k:
        yield position[line.target]
