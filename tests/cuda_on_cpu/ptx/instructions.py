"""Instructions of PTX in C++: what each one computes is a function of semantics.h.

What is not in the tables is an error that names the instruction, so that nothing is translated by a guess. Sums and
products of floating-point numbers are there with their rounding only: without one they may be fused into one operation.
"""

import re

from cuda_on_cpu.ptx.parsing import SIZES, Address, Group, Instruction, Operand

CPP = {f"{kind}{bits}": f"{'int' if kind == 's' else 'uint'}{bits}_t" for kind in "sub" for bits in (8, 16, 32, 64)}
CPP |= {"f16": "__half", "bf16": "__nv_bfloat16", "f32": "float", "f64": "double", "pred": "bool"}

WORDS, FLOATS = "s32 s64 u32 u64", "f32 f64"
BITS = "b16 b32 b64 pred"
# An opcode without its type -> the types that it may have; its operands have that type too.
PLAIN = {
    **dict.fromkeys(("add", "sub", "mul.lo", "mad.lo", "div", "rem"), WORDS),
    **dict.fromkeys(("min", "max"), f"{WORDS} {FLOATS}"),
    **dict.fromkeys(("mul.wide", "mul.hi"), "s32 u32"),
    **dict.fromkeys(("neg", "abs"), "s32 s64 f32 f64"),
    **dict.fromkeys(("and", "or", "xor", "not"), BITS),
    **dict.fromkeys(("add.rn", "sub.rn", "mul.rn", "div.rn", "fma.rn", "sqrt.rn"), FLOATS),
    **{"shl": "b32 b64", "bfi": "b32 b64", "shr": f"{WORDS} b32 b64", "clz": "b32 b64", "rcp.approx.ftz": "f64"},
    **dict.fromkeys(("mov", "cvta.to.global", "cvta.local", "cvta.to.local"), f"{BITS} u16 s16 {WORDS} {FLOATS}"),
    "selp": f"b16 b32 b64 u16 s16 {WORDS} {FLOATS}",
    **dict.fromkeys(("setp.eq", "setp.ne"), f"b16 b32 b64 u16 s16 {WORDS} {FLOATS}"),
    **dict.fromkeys(("setp.lt", "setp.le", "setp.gt", "setp.ge"), f"u16 s16 {WORDS} {FLOATS}"),
    **dict.fromkeys(("setp.equ", "setp.neu", "setp.ltu", "setp.leu", "setp.gtu", "setp.geu"), FLOATS),
    **dict.fromkeys(("setp.num", "setp.nan"), FLOATS),
}
# The types of the last operands, where they are others.
LAST = {"shl": ("u32",), "shr": ("u32",), "selp": ("pred",), "bfi": ("u32", "u32")}
CARRY = ("add.cc", "addc", "addc.cc", "sub.cc", "subc", "subc.cc", "mad.lo.cc", "madc.lo", "madc.lo.cc", "madc.hi",
         "madc.hi.cc")  # fmt: skip
INTEGERS = ("u8", "s8", "u16", "s16", *WORDS.split())
CONVERSIONS = {f"cvt.{to}.{source}" for to in INTEGERS[2:] for source in INTEGERS}
CONVERSIONS |= {f"cvt.rn.{to}.{source}" for to in FLOATS.split() for source in INTEGERS}
CONVERSIONS |= {
    f"cvt.{how}.{to}.{source}" for how in ("rni", "rzi") for to in WORDS.split() for source in FLOATS.split()
}
CONVERSIONS |= {"cvt.f64.f32", "cvt.rn.f32.f64", "cvt.f32.f16", "cvt.rn.f16.f32", "cvt.rn.bf16.f32"}
BARE = {
    "ret": "return;",
    "bar.sync 0": "emu::barrier(__FILE__, __LINE__);",
    "membar.gl": "emu::fence();",
}
MEMORY = re.compile(r"(ld|st)(\.volatile)?\.(param|global|shared|local)(?:\.(nc|cg))?(?:\.v([24]))?\.(\w+)")
ATOMIC = re.compile(r"atom\.global\.(add|exch)\.(u32|u64|b32|b64)")
SPECIAL = {"%tid.x": "emu::thread_idx().x", "%ctaid.x": "emu::block_idx().x"}
SPECIAL |= {"%ntid.x": "emu::block_dim().x", "%nctaid.x": "emu::grid_dim().x"}


class Untranslated(ValueError):
    """An instruction that the tables do not have."""


def translate(instruction: Instruction) -> str:
    """The instruction as a statement of C++.

    Raises:
        Untranslated: it is not in the tables; the message has the line and the instruction.
    """
    try:
        code = by_kind(instruction.opcode, instruction.operands)
    except (Untranslated, KeyError, ValueError, TypeError):
        text = f"{instruction.opcode} {', '.join(map(written, instruction.operands))}"
        raise Untranslated(f"PTX, line {instruction.line}: expected an instruction of instructions.py, got "
                           f"'{text.strip()}'; add it there and to semantics.h") from None  # fmt: skip
    return f"if ({cpp_name(instruction.guard)}) {{ {code} }}" if instruction.guard else f"{{ {code} }}"


def written(operand: Operand) -> str:
    if isinstance(operand, Address):
        return f"[{operand.base}+{operand.offset}]"
    return operand if isinstance(operand, str) else f"{operand.sign}{', '.join(operand.items)}"


def by_kind(opcode: str, operands: tuple[Operand, ...]) -> str:
    bare = " ".join([opcode, *map(written, operands)])
    stem, _, kind = opcode.rpartition(".")
    if bare in BARE:
        return BARE[bare]
    if opcode in ("bra", "bra.uni"):
        (label,) = operands
        return f"goto {label};"
    if opcode == "nanosleep.u32":
        return "emu::sleep();"
    if opcode == "call.uni":
        returned, name, given = operands
        return f"{name}({', '.join([*returned.items, *given.items])});"
    if opcode == "shfl.sync.bfly.b32":
        return shuffle(*operands)
    if match := MEMORY.fullmatch(opcode):
        return memory(match, *operands)
    if match := ATOMIC.fullmatch(opcode):
        return atomic(match, *operands)
    if opcode in CONVERSIONS:
        return convert(opcode.split("."), *operands)
    return compute(stem, kind, *operands)


def cpp_name(name: str) -> str:
    return name.replace("%", "")


def number(text: str, kind: str) -> str:
    if match := re.fullmatch(r"0[fd]([0-9A-Fa-f]{8}|[0-9A-Fa-f]{16})", text):
        return f"ptx::as<{CPP[kind]}>(uint{4 * len(match[1])}_t(0x{match[1]}u))"
    if kind[0] not in "sub":
        raise Untranslated
    return f"{CPP[kind]}(0x{int(text, 0) % (1 << 8 * SIZES[kind]):x}u)"


def value(operand: Operand, kind: str) -> str:
    """An operand of this type: a register has its size; a number is converted; a name is an address."""
    if not isinstance(operand, str):
        raise Untranslated
    if re.match(r"-?\d", operand):
        return number(operand, kind)
    return f"ptx::as<{CPP[kind]}>({SPECIAL.get(operand) or cpp_name(operand)})"


def assign(register: Operand, expression: str) -> str:
    if not isinstance(register, str):
        raise Untranslated
    return f"ptx::set({cpp_name(register)}, {expression});"


def compute(stem: str, kind: str, *operands: Operand) -> str:
    """An instruction whose operands have its type, or one that moves several of them."""
    to, *given = operands
    if stem in CARRY and kind == "u32":
        values = [*(value(operand, kind) for operand in given), "carry"]
    elif kind in PLAIN[stem].split():
        if stem == "mov" and isinstance(to, Group):
            return unpack(kind, to, *given)
        if stem == "mov" and isinstance(given[0], Group):
            return assign(to, pack(kind, *given))
        last = LAST.get(stem, ())
        kinds = [*[kind] * (len(given) - len(last)), *last]
        values = [value(*pair) for pair in zip(given, kinds, strict=True)]
    else:
        raise Untranslated
    return assign(to, f"ptx::do_{stem.replace('.', '_')}({', '.join(values)})")


def part_type(kind: str, parts: tuple[str, ...]) -> str:
    return f"b{int(kind[1:]) // len(parts)}"


def unpack(kind: str, parts: Group, whole: Operand) -> str:
    """The lowest bits go to the first register; `_` takes some that nobody wants."""
    part = part_type(kind, parts.items)
    bits = f"const auto whole = {value(whole, 'b' + kind[1:])};"
    return " ".join([bits, *(assign(to, f"{CPP[part]}(whole >> {k * 8 * SIZES[part]})")
                             for k, to in enumerate(parts.items) if to != "_")])  # fmt: skip


def pack(kind: str, parts: Group) -> str:
    part, whole = part_type(kind, parts.items), CPP["b" + kind[1:]]
    bits = (f"{whole}({value(own, part)}) << {k * 8 * SIZES[part]}" for k, own in enumerate(parts.items))
    return f"{whole}({' | '.join(bits)})"


def convert(opcode: list[str], to: str, source: Operand) -> str:
    """A register may be wider than the type it is converted from: its lowest bits are the value."""
    *_, target, kind = opcode
    rounding = "_".join(["cvt", *opcode[1:-2]])
    own = {"f16": "ptx::low<uint16_t>"}.get(kind, f"ptx::low<{CPP[kind]}>")
    given = f"{own}({cpp_name(source)})" if isinstance(source, str) and source[0] == "%" else value(source, kind)
    if kind == "f16":
        given = f"ptx::as<__half>({given})"
    return assign(to, f"ptx::do_{rounding}<{CPP[target]}>({given})")


def address(place: Address, space: str) -> str:
    if space == "param":
        return f"ptx::parameter({cpp_name(place.base)}, {place.offset})"
    if space == "shared":
        return f"ptx::shared({value(place.base, 'u32')} + {number(place.offset, 'u32')})"
    return f"{value(place.base, 'u64')} + {number(place.offset, 'u64')}"


def memory(match: re.Match, *operands: Operand) -> str:
    name, volatile, space, cache, width, kind = match.groups()
    target, data = operands[::-1] if name == "ld" else operands
    if not isinstance(target, Address) or (cache == "nc" and (name == "st" or space != "global")):
        raise Untranslated
    items = data.items if isinstance(data, Group) else (data,)
    if len(items) != int(width or 1):
        raise Untranslated
    size, access = SIZES[kind], "strong" if volatile else "constant" if cache == "nc" else "weak"
    check = f"ptx::{access}_{'read' if name == 'ld' else 'write'}({address(target, space)}, {size * len(items)})"
    code = [f"const auto at = {check if space != 'param' else address(target, space)};"]
    for k, item in enumerate(items):
        own = value(item, kind) if name == "st" and item[0] != "%" else cpp_name(item)
        code.append(f"ptx::{'load' if name == 'ld' else 'store'}<{CPP[kind]}>(at + {k * size}, {own});")
    return " ".join(code)


def atomic(match: re.Match, to: str, place: Address, operand: Operand) -> str:
    kind = match[2]
    call = f"emu::atomic(reinterpret_cast<void*>({address(place, 'global')}), {SIZES[kind]}, "
    call += f"{'true' if match[1] == 'add' else 'false'}, {value(operand, kind)})"
    return assign(to, f"{CPP[kind]}({call})")


def shuffle(to: Operand, own: Operand, distance: Operand, segment: Operand, mask: Operand) -> str:
    register, *found = to.items if isinstance(to, Group) else (to,)
    values = (value(operand, "u32") for operand in (own, distance, segment, mask))
    call = assign(register, f"ptx::do_shfl_bfly({', '.join(values)}, __FILE__, __LINE__)")
    return " ".join([call, *(f"{cpp_name(name)} = true;" for name in found)])
