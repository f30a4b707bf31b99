"""A module of PTX as a file of C++ for the emulator: a function for each of its own, and one that announces them."""

import sys
from collections.abc import Iterator
from pathlib import Path

from cuda_on_cpu.ptx.instructions import CPP, SPECIAL, cpp_name, translate
from cuda_on_cpu.ptx.parsing import (
    Address,
    Brace,
    Function,
    Group,
    Instruction,
    Label,
    Module,
    Registers,
    Statement,
    Variable,
    parse,
)


def translate_file(path: Path) -> str:
    """The C++ of a file of PTX; its lines are those of the PTX for the compiler and for the checks.

    Raises:
        ValueError: it has something that is not translated; the message says what, and where.
    """
    module = parse(path.read_text())
    return "\n".join([*emit(module, path), ""])


def emit(module: Module, path: Path) -> Iterator[str]:
    tables = [variable for variable in module.variables if variable.space != "shared"]
    shared = {variable.name: variable for variable in module.variables if variable.space == "shared"}
    yield '#include "semantics.h"'
    for table in tables:
        yield from constant_table(table)
    for function in module.functions:
        yield f"{signature(function)};"
    for function in module.functions:
        check_registers(function)
        used = [shared[name] for name in shared if name in names_in(function)]
        yield from define(function, used, path)
    yield "[[gnu::constructor]] static void announce() {"
    for table in tables:
        yield f"  emu::constant_memory({table.name}_bytes, sizeof {table.name}_bytes);"
    for function in module.functions:
        if function.is_entry:
            yield f'  ptx::entry("{function.name}", {function.name}, {function.most_threads});'
    yield "}"


def constant_table(table: Variable) -> Iterator[str]:
    """Of bytes, the last of which may be left out where they are zero; PTX calls some global that nobody writes."""
    if table.type != "b8" or not table.values:
        raise ValueError(f"PTX: expected {table.name} to be bytes with their values, got {table.type}")
    values = ", ".join(table.values)
    yield f"alignas({table.align}) static const unsigned char {table.name}_bytes[{table.count}] = {{{values}}};"
    yield f"static const uint64_t {table.name} = ptx::address({table.name}_bytes);"


def check_registers(function: Function) -> None:
    declared = {name for part in function.body if isinstance(part, Registers) for name in part.names}
    unknown = {name for name in names_in(function) if name.startswith("%")} - declared - {*SPECIAL}
    if unknown:
        raise ValueError(f"PTX: expected registers that are declared or special ones of instructions.py, got in "
                         f"{function.name}: {', '.join(sorted(unknown))}")  # fmt: skip


def names_in(function: Function) -> set[str]:
    names = set()
    for statement in function.body:
        if isinstance(statement, Instruction):
            for operand in statement.operands:
                names |= {operand.base} if isinstance(operand, Address) else {*items(operand)}
    return names


def items(operand: str | Group) -> tuple[str, ...]:
    return operand.items if isinstance(operand, Group) else (operand,)


def signature(function: Function) -> str:
    """An entry is given the addresses of its arguments, another function the memory of its results and arguments."""
    if function.is_entry:
        return f"static void {function.name}([[maybe_unused]] void** arguments)"
    own = ", ".join(f"char* {variable.name}" for variable in (*function.returns, *function.parameters))
    return f"static void {function.name}({own})"


def define(function: Function, shared: list[Variable], path: Path) -> Iterator[str]:
    yield f"{signature(function)} {{"
    if function.is_entry:
        for k, parameter in enumerate(function.parameters):
            yield f"  [[maybe_unused]] const char* const {parameter.name} = static_cast<char*>(arguments[{k}]);"
    for variable in shared:
        yield from declare(variable)
    yield "  [[maybe_unused]] bool carry = false;"
    for statement in function.body:
        if isinstance(statement, Instruction):
            yield f'#line {statement.line} "{path.name}"'
            yield f"  {translate(statement)}"
        else:
            yield from declare(statement)
    yield "}"


def declare(statement: Statement) -> Iterator[str]:
    match statement:
        case Registers(kind, names):  # what a register holds before it is written must not matter
            values = ", ".join(f"{cpp_name(name)} = ptx::unset<{CPP[kind]}>()" for name in names)
            yield f"  [[maybe_unused]] {CPP[kind]} {values};"
        case Label(name):
            yield f"{name}:;"
        case Brace(sign):
            yield f"  {sign}"
        case Variable("shared", _, name):
            yield f"  static const char {name}_key{{}};"
            yield f"  const uint32_t {name} = ptx::shared_address(&{name}_key, {statement.bytes});"
        case Variable("local", _, name):
            yield f"  alignas({statement.align}) char {name}_bytes[{statement.bytes}];"
            yield f"  const uint64_t {name} = ptx::address({name}_bytes);"
        case Variable(_, _, name):  # of a call
            yield f"  alignas({max(statement.align, 8)}) char {name}[{statement.bytes}];"


if __name__ == "__main__":  # what compile_ptx.py runs
    try:
        print(translate_file(Path(sys.argv[1])), end="")
    except ValueError as error:
        sys.exit(str(error))
