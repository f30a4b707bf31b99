"""Single instructions of PTX, translated and run, against what the manual of PTX says that they give."""

import ctypes
import re
import struct
import subprocess
from pathlib import Path

import pytest
from cuda_on_cpu.compile_kernels import COMMON, CSRC, RUNTIME, obstacle
from cuda_on_cpu.ptx.compile_ptx import PTX, TRANSLATED
from cuda_on_cpu.ptx.emission import translate_file
from helpers.cuobjdump import dump

NAN, INF = float("nan"), float("inf")
MOST32, MOST64 = 2**32 - 1, 2**64 - 1
# Code on registers a, b, c that gives d, and more letters: h is of 16 bits, w of 64, p a predicate, y one that is true.
# (code, type of a, b and c, their values, type of d, its value)
CASES = [
    ("add.s32 d, a, b", "s32", (2**31 - 1, 1), "s32", -(2**31)),
    ("add.u64 d, a, b", "u64", (MOST64, 2), "u64", 1),
    ("sub.s64 d, a, b", "s64", (-(2**63), 1), "s64", 2**63 - 1),
    ("sub.u32 d, a, b", "u32", (1, 2), "u32", MOST32),
    ("mul.lo.s32 d, a, b", "s32", (-(2**30), 6), "s32", -(2**31)),
    ("mul.lo.u64 d, a, b", "u64", (2**63 + 3, 3), "u64", 2**63 + 9),
    ("mul.hi.u32 d, a, b", "u32", (MOST32, MOST32), "u32", MOST32 - 1),
    ("mul.hi.s32 d, a, b", "s32", (-(2**31), 3), "s32", -2),
    ("mul.wide.s32 d, a, b", "s32", (-2, 3), "s64", -6),
    ("mul.wide.u32 d, a, b", "u32", (MOST32, MOST32), "u64", MOST32**2),
    ("mad.lo.s32 d, a, b, c", "s32", (-7, 3, 5), "s32", -16),
    ("div.s32 d, a, b", "s32", (-7, 2), "s32", -3),
    ("rem.s64 d, a, b", "s64", (-7, 2), "s64", -1),
    ("div.u64 d, a, b", "u64", (MOST64, 2), "u64", 2**63 - 1),
    ("min.s64 d, a, b", "s64", (-1, 1), "s64", -1),
    ("max.u32 d, a, b", "u32", (MOST32, 1), "u32", MOST32),
    ("neg.s32 d, a", "s32", (-(2**31),), "s32", -(2**31)),
    ("abs.s64 d, a", "s64", (-5,), "s64", 5),
    ("shl.b32 d, a, 31", "u32", (3,), "u32", 2**31),
    ("shl.b32 d, a, 32", "u32", (3,), "u32", 0),
    ("shr.s32 d, a, 40", "s32", (-8,), "s32", -1),
    ("shr.s64 d, a, 1", "s64", (-7,), "s64", -4),
    ("shr.u64 d, a, 63", "u64", (MOST64,), "u64", 1),
    ("shr.u32 d, a, 32", "u32", (MOST32,), "u32", 0),
    ("bfi.b64 d, a, b, 32, 32", "u64", (2**40 + 5, 2**40 + 7), "u64", 5 * 2**32 + 7),
    ("bfi.b32 d, a, b, 4, 8", "u32", (0xFFFFF123, 0xABCDE00F), "u32", 0xABCDE23F),
    ("bfi.b32 d, a, b, 28, 40", "u32", (0xFF, 0), "u32", 0xF0000000),
    ("bfi.b32 d, a, b, 32, 8", "u32", (0xFF, 7), "u32", 7),
    ("bfi.b32 d, a, b, 3, 0", "u32", (0xFF, 7), "u32", 7),
    ("clz.b64 d, a", "u64", (1,), "u32", 63),
    ("clz.b64 d, a", "u64", (0,), "u32", 64),
    ("and.b32 d, a, -4", "u32", (7,), "u32", 4),
    ("or.b64 d, a, b", "u64", (6, 3), "u64", 7),
    ("xor.b64 d, a, b", "u64", (6, 3), "u64", 5),
    ("not.b32 d, a", "u32", (0,), "u32", MOST32),
    ("not.pred p, y; selp.u32 d, 1, 0, p", "u32", (), "u32", 0),
    ("add.cc.u32 d, a, b; addc.u32 d, c, 0", "u32", (MOST32, 1, 7), "u32", 8),
    ("add.cc.u32 d, a, b; addc.cc.u32 d, a, 0; addc.u32 d, c, 0", "u32", (MOST32, 1, 7), "u32", 8),
    ("sub.cc.u32 d, a, b; subc.u32 d, c, 0", "u32", (0, 1, 7), "u32", 6),
    ("sub.cc.u32 d, a, b; subc.cc.u32 d, a, 0; subc.u32 d, c, 0", "u32", (0, 1, 7), "u32", 6),
    ("mad.lo.cc.u32 d, a, b, c; madc.hi.u32 d, a, b, 0", "u32", (2**16 + 1, 2**16 - 1, 2), "u32", 1),
    ("mad.lo.cc.u32 d, a, a, a; madc.lo.cc.u32 d, a, a, b; addc.u32 d, c, 0", "u32", (MOST32, MOST32, 4), "u32", 5),
    ("add.cc.u32 d, a, a; madc.hi.cc.u32 d, a, a, a; addc.u32 d, c, 0", "u32", (MOST32, 0, 4), "u32", 5),
    ("add.rn.f32 d, a, b", "f32", (2.0**24, 1.0), "f32", 2.0**24),
    ("sub.rn.f64 d, a, b", "f64", (1.0, 2.0**-54), "f64", 1.0),
    ("mul.rn.f32 d, a, b", "f32", (1e30, 1e30), "f32", INF),
    ("div.rn.f64 d, a, b", "f64", (-1.0, 0.0), "f64", -INF),
    ("fma.rn.f64 d, a, b, c", "f64", (1 + 2.0**-52, 1 - 2.0**-52, -1.0), "f64", -(2.0**-104)),
    ("sqrt.rn.f32 d, a", "f32", (2.25,), "f32", 1.5),
    ("neg.f64 d, a", "f64", (0.0,), "f64", -0.0),
    ("abs.f32 d, a", "f32", (-INF,), "f32", INF),
    ("max.f32 d, a, b", "f32", (-3.0, 2.0), "f32", 2.0),
    ("max.f32 d, a, b", "f32", (NAN, -INF), "f32", -INF),
    ("max.f32 d, a, b", "f32", (-INF, NAN), "f32", -INF),
    ("max.f64 d, a, b", "f64", (-0.0, 0.0), "f64", 0.0),
    ("max.f64 d, a, b", "f64", (0.0, -0.0), "f64", 0.0),
    ("min.f32 d, a, b", "f32", (-3.0, 2.0), "f32", -3.0),
    ("min.f64 d, a, b", "f64", (NAN, 2.0), "f64", 2.0),
    ("min.f32 d, a, b", "f32", (0.0, -0.0), "f32", -0.0),
    ("rcp.approx.ftz.f64 d, a", "f64", (-4.0,), "f64", -0.25),
    ("add.rn.f32 d, a, 0fBF800000", "f32", (3.0,), "f32", 2.0),
    ("add.rn.f64 d, a, 0d3FF0000000000000", "f64", (3.0,), "f64", 4.0),
    ("selp.f32 d, a, b, y", "f32", (1.0, 2.0), "f32", 1.0),
    ("mov.b32 d, {a, b}", "u16", (1, 2), "u32", 0x20001),
    ("mov.b32 {d, _}, a", "u32", (0x12345678,), "u16", 0x5678),
    ("mov.b32 {_, d}, a", "u32", (0x12345678,), "u16", 0x1234),
    ("mov.b64 d, a", "f64", (1.0,), "u64", 0x3FF0000000000000),
    ("cvt.u16.u32 h, a; cvt.u32.u16 d, h", "u32", (0x18001,), "u32", 0x8001),
    ("cvt.u32.u16 d, a", "u32", (0x18001,), "u32", 0x8001),
    ("cvt.s32.s16 d, a", "u16", (0x8000,), "s32", -(2**15)),
    ("cvt.s64.s32 d, a", "s32", (-5,), "s64", -5),
    ("cvt.u64.u32 d, a", "u32", (MOST32,), "u64", MOST32),
    ("cvt.u32.u64 d, a", "u64", (2**33 + 9,), "u32", 9),
    ("cvt.rni.s32.f64 d, a", "f64", (2.5,), "s32", 2),
    ("cvt.rni.s32.f64 d, a", "f64", (3e9,), "s32", 2**31 - 1),
    ("cvt.rni.s32.f64 d, a", "f64", (NAN,), "s32", -(2**31)),
    ("cvt.rni.s32.f32 d, a", "f32", (NAN,), "s32", 0),
    ("cvt.rzi.s32.f32 d, a", "f32", (-2.7,), "s32", -2),
    ("cvt.rzi.u32.f32 d, a", "f32", (-2.7,), "u32", 0),
    ("cvt.rn.f32.s32 d, a", "s32", (2**24 + 1,), "f32", 2.0**24),
    ("cvt.rn.f32.u32 d, a", "u32", (MOST32,), "f32", 2.0**32),
    ("cvt.rn.f32.f64 d, a", "f64", (1 + 2.0**-30,), "f32", 1.0),
    ("cvt.f64.f32 d, a", "f32", (0.5,), "f64", 0.5),
    ("cvt.f32.f16 d, a", "u16", (0x3C01,), "f32", 1 + 2.0**-10),
    ("cvt.rn.f16.f32 d, a", "f32", (65520.0,), "u16", 0x7C00),  # halfway to what is not finite
    ("cvt.rn.bf16.f32 d, a", "f32", (1 + 2.0**-8,), "u16", 0x3F80),  # halfway: to the even one
    ("@y mov.u32 d, 1", "u32", (), "u32", 1),
    ("mov.u32 d, 2; @!y mov.u32 d, 1", "u32", (), "u32", 2),
    ("mov.u32 d, 2; bra $done; mov.u32 d, 1; $done: mov.u32 d, d", "u32", (), "u32", 2),
    ("mov.u32 d, a; { .reg .b32 a; mov.u32 a, 3; } add.u32 d, d, a", "u32", (1,), "u32", 2),
    ("st.param.b32 [given+0], a; call.uni (got), twice, (given); ld.param.b32 d, [got+0]", "u32", (21,), "u32", 42),
    ("st.local.u32 [memory+4], a; ld.local.u8 h, [memory+7]; cvt.u32.u16 d, h", "u32", (0xFE000000,), "u32", 0xFE),
    ("st.local.u32 [memory], a; mov.u64 w, memory; cvta.local.u64 w, w; ld.local.u32 d, [w]", "u32", (5,), "u32", 5),
    ("st.shared.u32 [array+4], a; ld.shared.s8 h, [array+4]; cvt.s32.s16 d, h", "u32", (0x1FF,), "s32", -1),
    ("st.shared.v2.u32 [array+8], {a, b}; ld.shared.u64 d, [array+8]", "u32", (1, 2), "u64", 0x200000001),
    ("mov.u64 w, table; ld.global.nc.u16 h, [w+2]; cvt.u32.u16 d, h", "u32", (), "u32", 0x201),
    ("mov.u64 w, table; ld.global.nc.u8 h, [w+5]; cvt.u32.u16 d, h", "u32", (), "u32", 0),
]
COMPARISONS = [  # with the values for which each is true: below, at and above 1, and not a number
    *[(f"setp.{name}.f64", holds) for name, holds in {
        "eq": "=", "ne": "<>", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "num": "<=>", "nan": "?", "equ": "=?",
        "neu": "<>?", "ltu": "<?", "leu": "<=?", "gtu": ">?", "geu": ">=?"}.items()],
    *[(f"setp.{name}.s32", holds) for name, holds in {
        "eq": "=", "ne": "<>", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}.items()],
]  # fmt: skip
AROUND = {"f64": {"<": 0.5, "=": 1.0, ">": INF, "?": NAN}, "s32": {"<": -1, "=": 1, ">": 2}}
for opcode, holds in COMPARISONS:
    kind = opcode[-3:]
    CASES += [(f"{opcode} p, a, b; selp.u32 d, 1, 0, p", kind, (value, type(value)(1)), "u32", int(sign in holds))
              for sign, value in AROUND[kind].items()]  # fmt: skip
CASES.append(("setp.lt.u32 p, a, b; selp.u32 d, 1, 0, p", "u32", (MOST32, 1), "u32", 0))
FAULTS = [
    ("div.s32 d, a, b", "s32", (1, 0), "a division by zero"),
    ("rem.s64 d, a, b", "s64", (-(2**63), -1), "a quotient that overflows"),
    ("shfl.sync.bfly.b32 d, a, 1, 15, -1", "u32", (1,), "a shuffle in segments"),
]
FORMATS = {"u16": "<H", "s32": "<i", "u32": "<I", "s64": "<q", "u64": "<Q", "f32": "<f", "f64": "<d"}
MODULE = """
.version 9.0
.target sm_90
.address_size 64
.global .align 8 .b8 table[8] = {3, 0, 1, 2};
.shared .align 8 .b8 array[16];
.func (.param .b32 result) twice(.param .b32 given) {
  .reg .b32 %r<1>;
  ld.param.u32 %r0, [given]; add.s32 %r0, %r0, %r0; st.param.b32 [result+0], %r0; ret;
}
"""
ENTRY = """
.entry case{k}(.param .u64 input, .param .u64 output) .maxntid 1, 1, 1 {{
  .reg .{own} %a, %b, %c; .reg .{result} %d; .reg .b16 %h; .reg .b64 %w, %in<1>, %out<1>; .reg .pred %p, %y;
  .local .align 8 .b8 memory[8]; .param .b32 given; .param .b32 got;
  ld.param.u64 %in0, [input]; ld.param.u64 %out0, [output]; setp.eq.u32 %y, 0, 0;
  {loads} {code}; st.global.{result} [%out0], %d; ret;
}}
"""
HARNESS = """
#include "cases.ptx.cpp"
#include <map>
#include <stdexcept>
#include <string>
static std::map<std::string, void (*)(void**)>& entries() {
  static std::map<std::string, void (*)(void**)> all;
  return all;
}
void ptx::entry(const char* name, void (*body)(void**), int) { entries()[name] = body; }
struct Call {
  void (*body)(void**);
  void** arguments;
};
EMU_EXPORT const char* run(const char* name, void* input, void* output) {
  static std::string text;
  void* arguments[] = {&input, &output};
  Call call{entries().at(name), arguments};
  const auto body = [](void* own) { static_cast<Call*>(own)->body(static_cast<Call*>(own)->arguments); };
  try {
    emu::run(name, 1, 1, body, &call, sizeof call);
  } catch (const std::exception& error) {
    return (text = error.what()).c_str();
  }
  return nullptr;
}
"""


def entry(k: int, code: str, own: str, operands: tuple, result: str) -> str:
    code = re.sub(r"(?<![\w$])([abcdhwpy])(?![\w.])", r"%\1", code)
    loads = "".join(f"ld.global.{own} %{'abc'[i]}, [%in0+{8 * i}];" for i in range(len(operands)))
    return ENTRY.format(k=k, own=own, result=result, loads=loads, code=code)


def compiled(folder: Path, cases: list[tuple]) -> ctypes.CDLL:
    """The cases as kernels with these numbers."""
    ptx = MODULE + "".join(entry(k, *case) for k, case in enumerate(cases))
    (folder / "cases.ptx").write_text(ptx)
    (folder / "cases.ptx.cpp").write_text(translate_file(folder / "cases.ptx"))
    (folder / "harness.cpp").write_text(HARNESS)
    sources = [folder / "harness.cpp", *(path for path in RUNTIME.glob("*.cpp") if "checks" not in path.stem)]
    command = ["g++", "-shared", *COMMON, *TRANSLATED, f"-I{RUNTIME}", f"-I{PTX}", *sources, "-ldl"]
    subprocess.run([*command, "-o", folder / "cases.so"], check=True)
    library = ctypes.CDLL(str(folder / "cases.so"))
    library.run.restype = ctypes.c_char_p
    return library


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    if (reason := obstacle()) is not None:
        pytest.skip(reason)
    faults = [(*fault[:3], fault[1]) for fault in FAULTS]
    return compiled(tmp_path_factory.mktemp("ptx"), [case[:4] for case in CASES] + faults)


def run(library: ctypes.CDLL, k: int, own: str, operands: tuple) -> tuple[bytes, str]:
    """What case k writes, and its error."""
    words = b"".join(struct.pack(FORMATS[own], value).ljust(8, b"\0") for value in operands)
    output = ctypes.create_string_buffer(8)
    error = library.run(f"case{k}".encode(), words.ljust(8, b"\0"), output)
    return output.raw, (error or b"").decode()


@pytest.mark.parametrize("k", range(len(CASES)), ids=[case[0] for case in CASES])
def test_an_instruction_gives_what_the_manual_says(library, k):
    _, own, operands, kind, expected = CASES[k]
    got, error = run(library, k, own, operands)
    assert error == ""
    assert got[: struct.calcsize(FORMATS[kind])] == struct.pack(FORMATS[kind], expected)


@pytest.mark.parametrize("k", range(len(FAULTS)), ids=[fault[0] for fault in FAULTS])
def test_what_the_manual_leaves_open_ends_the_launch(library, k):
    _, own, operands, message = FAULTS[k]
    assert message in run(library, len(CASES) + k, own, operands)[1]


@pytest.mark.parametrize(
    "code",
    ["add.f32 d, a, b",  # may be fused
     "add.rz.f32 d, a, b", "min.NaN.f32 d, a, b", "red.global.add.u32 [w], a", "ld.global.ca.u32 d, [w]", "bar.sync 1",
     "ld.shared.nc.u32 d, [w]", "ld.global.v2.u32 d, [w]", "atom.global.cas.b32 d, [w], a, b", "setp.lt.f32 p|p, a, b",
     "sin.approx.f32 d, a", "shl.b32 d, [a], 1", "cvt.sat.f32.f32 d, a"],
)  # fmt: skip
def test_what_is_not_translated_is_named(tmp_path, code):
    path = tmp_path / "case.ptx"
    path.write_text(MODULE + entry(0, code, "b32", (), "b32"))
    opcode = code.split()[0]
    with pytest.raises(ValueError, match=rf"line 16: expected an instruction of instructions.py, got '{opcode}"):
        translate_file(path)


def test_every_kernel_is_translated(tmp_path):
    """The PTX in the module that was built, which the slow tests run."""
    files = re.findall(r"^\.version.*?(?=^Fatbin|\Z)", dump("-ptx"), re.MULTILINE | re.DOTALL)
    assert len(files) == len([*(CSRC / "cuda").glob("*.cu")])
    for k, text in enumerate(files):
        path = tmp_path / f"{k}.ptx"
        path.write_text(text)
        assert translate_file(path).count("static void") >= text.count(".entry")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (".entry k() .maxnreg 32 { ret; }", "line 1: expected .maxntid or .minnctapersm, got '.maxnreg'"),
        ("\n.tex .u64 t;", "line 2: expected .shared or .global or .const, got '.tex'"),
        (".entry k() { ret;", "expected more, got 'the end'"),
        (".entry k() { .reg .b128 %r; }", "got '.b128'"),
        (".entry k() { .reg .b32 %r<1>; mov.u32 %r0, %laneid; ret; }", "in k: %laneid"),
        (".global .align 4 .u32 counter;", "expected counter to be bytes with their values, got u32"),
    ],
)
def test_another_grammar_is_an_error(tmp_path, text, message):
    (tmp_path / "case.ptx").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        translate_file(tmp_path / "case.ptx")
