"""The counts of the roofline on paper, on machine code written by hand in the form that cuobjdump prints."""

import pytest
from tools.roofline import ARCHS, CARDS, RATES, Code, Pass, busiest, count, kernels, unit
from tools.sass import functions, loops, turns

# Sums squares of float32 in rows: vectors by a loop that goes round twice an entry, with a rare branch of float64
# arithmetic, and an outer loop over rows; misaligned rows by single elements.
SUMS = """
	code for sm_89
		Function : _Z4sumsPKf
	.headerflags	@"EF_CUDA_SM89"
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;  /* 0x00000a00ff017624 */
        /*0010*/              @P1 BRA 0x120 ;                               /* 0x0000000000017947 */
        /*0020*/                   LDG.E.128.CONSTANT R4, [R2.64] ;         /* 0x0000000402047981 */
        /*0030*/                   LDG.E.128.CONSTANT R8, [R2.64+0x2000] ;  /* 0x0020000402087981 */
        /*0040*/                   FMNMX R12, |R4|, |R5|, !PT ;             /* 0x80000005040c7209 */
        /*0050*/                   FSETP.GTU.AND P0, PT, R12, 1e18, PT ;    /* 0x5d5e0b6b0c00780b */
        /*0060*/              @!P0 BRA 0x00b0 ;                              /* 0x0000004000008947 */
        /*0070*/                   F2F.F64.F32 R14, R4 ;                    /* 0x00000004000e7310 */
        /*0080*/                   DMUL R14, R14, R14 ;                     /* 0x0000000e0e0e7228 */
        /*0090*/                   DADD R16, R16, R14 ;                     /* 0x0000000010107229 */
        /*00a0*/                   BRA 0xe0 ;                               /* 0x0000003000007947 */
        /*00b0*/                   FMUL R4, R4, R4 ;                        /* 0x0000000404047220 */
        /*00c0*/                   FFMA R4, R5, R5, R4 ;                    /* 0x0000000505047223 */
        /*00d0*/                   F2F.F64.F32 R14, R4 ;                    /* 0x00000004000e7310 */
        /*00e0*/                   DADD R16, R16, R14 ;                     /* 0x0000000010107229 */
        /*00f0*/                   IADD3 R0, R0, 0x400, RZ ;                /* 0x0000040000007810 */
        /*0100*/              @!P2 BRA 0x20 ;                               /* 0xffffff1000008947 */
        /*0110*/                   BRA 0x150 ;                              /* 0x0000003000007947 */
        /*0120*/                   LDG.E.CONSTANT R4, [R2.64] ;             /* 0x0000000402047981 */
        /*0130*/                   FFMA R6, R4, R4, R6 ;                    /* 0x0000000404067223 */
        /*0140*/              @!P2 BRA 0x120 ;                              /* 0xffffffd000008947 */
        /*0150*/              @!P3 BRA 0x10 ;                               /* 0xfffffeb000008947 */
        /*0160*/                   EXIT ;                                   /* 0x000000000000794d */
"""
COPY = """
		Function : _Z4copyPKfPf
        /*0000*/                   IADD3 R0, R0, 0x1, RZ ;
        /*0010*/              @!P4 LDG.E.128 R4, desc[UR6][R2.64] ;
        /*0020*/               @P4 LDG.E R4, desc[UR6][R2.64] ;
        /*0030*/                   STG.E.128 desc[UR6][R8.64], R4 ;
        /*0040*/                   BRA.U UP0, 0x0 ;
        /*0050*/                   EXIT ;
"""


@pytest.fixture
def sums():
    return dict(functions(SUMS))["_Z4sumsPKf"]


def test_lines(sums):
    assert len(sums) == 23
    assert [line.target for line in sums if line.target is not None] == [0x120, 0xB0, 0xE0, 0x20, 0x150, 0x120, 0x10]
    assert [line.width for line in sums if line.width] == [16, 16, 4]
    assert [(loop[0].address, loop[-1].address) for loop in loops(sums)] == [
        (0x20, 0x100),
        (0x120, 0x140),
        (0x10, 0x150),
    ]


def test_a_rare_branch_is_left_out(sums):
    (size, turn), *others = turns(loops(sums)[0]).items()
    assert (size, others) == (32, [])
    assert 0x80 not in {line.address for line in turn}
    assert len(turn) == 11


def test_a_rare_branch_of_float64_is_left_out_where_it_is_the_shorter_way(sums):
    longer = [*sums[:13], *(sums[11]._replace(address=0xC0 + k) for k in range(1, 9)), *sums[13:]]
    (turn,) = turns(loops(longer)[0]).values()
    assert 0x80 not in {line.address for line in turn}
    assert len(turn) == 11 + 8


def test_counts_for_each_element(sums):
    counts = count(sums, (Pass(reads=4, writes=0),))
    assert counts == {
        "fp32": 2 / 8,
        "conversion64": 1 / 8,
        "fp64": 1 / 8,
        "integer": 3 / 8,
        "issue": 11 / 8,
        "memory": 2 / 8,
    }
    with pytest.raises(ValueError, match="reads 4 and writes 4 bytes"):
        count(sums, (Pass(reads=4, writes=4),))


def test_narrow_accesses_under_a_condition_are_of_other_rows():
    (code,) = dict(functions(COPY)).values()
    assert count(code, (Pass(reads=4, writes=4),))["issue"] == 5 / 4


def test_text_without_functions():
    with pytest.raises(ValueError, match="cuobjdump"):
        list(functions("cuobjdump fatal: no such file"))


def test_units():
    units = [unit(line) for line in next(functions(SUMS))[1]]
    assert units[2:5] == [None, None, "integer"]
    assert units[7] == "conversion64"
    assert units[-1] is None


def test_what_bounds_a_kernel():
    """Two float64 operations an element: 1 element a clock on the one GPU, which reads 3.1 bytes; 32 on the other."""
    code = Code({"fp64": 2.0, "issue": 3.0}, registers=32, spills=0)
    cards = {card.name: card for card in CARDS}
    assert cards["RTX 4090"].bytes_per_clock == pytest.approx(1008e9 / (82.6e12 / 2 / 128))
    assert busiest(code, cards["RTX 4090"], 4) == "0.78 fp64"
    assert busiest(code, cards["RTX 4090"], 2) == "**1.56 fp64**"
    assert busiest(code, cards["H100 SXM"], 4) == "0.10 fp64"
    # float32 and integer multiplications share lanes
    assert code._replace(counts={"fp32": 64.0, "imad": 64.0}).load(cards["A100 SXM 80 GB"], 1)["fp32"] == pytest.approx(
        2 * cards["A100 SXM 80 GB"].bytes_per_clock
    )


def test_figures_are_complete():
    assert all(len(rates) == len(ARCHS) for rates in RATES.values())
    assert {card.arch for card in CARDS} == {*ARCHS}
    assert all(card.source for card in CARDS)
    names = [(kernel.op, kernel.type) for kernel in kernels()]
    assert len(set(names)) == len(names) > 40
