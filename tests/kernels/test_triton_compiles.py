"""Every Triton kernel compiled for sm_80 and sm_90 without a GPU, with the tiles chosen for the layers of ResNet-18."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pyengm.kernels import HAS_TRITON

if HAS_TRITON:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from pyengm.kernels import conv_direct_sqnorm, conv_gram_sqnorm
    from pyengm.kernels.launch import LaunchConfig
    from pyengm.kernels.tune import operands

pytestmark = [
    pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed"),
    pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="kernels are interpreted"),
]

POINTER = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
MAX_STACK = 64  # bytes per thread outside its loop, in forms that are seldom used
STAGES = [(64, 64, 32, 1, 3), (128, 128, 16, 1, 3), (256, 256, 8, 1, 3), (512, 512, 4, 1, 3)]
OTHERS = [(3, 64, 32, 1, 3), (64, 128, 32, 2, 3), (256, 512, 8, 2, 3), (256, 512, 8, 2, 1)]


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path, monkeypatch) -> Iterator[None]:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def prepared(form: str, layer: tuple, dtype: torch.dtype, **options) -> "LaunchConfig":
    module = {"direct": conv_direct_sqnorm, "gram": conv_gram_sqnorm}[form]
    return module.prepare(*operands(*layer, n=2, dtype=dtype, device="meta"), **options)


def compiled(config: "LaunchConfig", dtype: torch.dtype, capability: int):
    """As Triton compiles it at the first launch: pointers are multiples of 16 bytes, a single tile is a constant."""
    names, constants = config.kernel.arg_names, config.constants | {"WIDEN": False}
    if config.tiles == 1:
        constants["tiles"] = 1
    signature = {name: "constexpr" if name in constants else "*fp32" for name in names}
    signature |= {"x": POINTER[dtype], "g": POINTER[dtype]} | ({} if config.tiles == 1 else {"tiles": "i32"})
    aligned = {(k,): [["tt.divisibility", 16]] for k, name in enumerate(names) if signature[name].startswith("*")}
    source = ASTSource(config.kernel, signature, {(names.index(k),): v for k, v in constants.items()}, aligned)
    options = {"num_warps": config.warps, "num_stages": config.stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def resources(binary, folder: Path) -> dict[str, int]:
    """Registers per thread, bytes of stack per thread (register spills), bytes of shared memory per program."""
    own = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    tool = str(own) if own.exists() else shutil.which("cuobjdump")
    if tool is None:
        pytest.skip("no cuobjdump")
    path = folder / "kernel.cubin"
    path.write_bytes(binary.asm["cubin"])
    text = subprocess.run([tool, "--dump-resource-usage", path], capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.search(rf"{name}:(\d+)", text)[1]) for name in ("REG", "STACK"))
    return {"registers": registers, "stack": stack, "shared": binary.metadata.shared}


def report(form: str, layer: tuple, dtype: torch.dtype, capability: int, found: dict[str, int], **more) -> None:
    print(form, "-".join(map(str, layer)), dtype, f"sm_{capability}", found, more or "")


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "tf32x3"])
@pytest.mark.parametrize("form", ["direct", "gram"])
@pytest.mark.parametrize("layer", STAGES, ids=lambda layer: "{}at{}px".format(*layer[1:3]))
def test_stages(layer, form, dtype, capability, tmp_path):
    """No spills in the form that the cost model chooses; tensor cores, 16-byte asynchronous copies, float32 sums."""
    config = prepared(form, layer, dtype)
    binary = compiled(config, dtype, capability)
    found = resources(binary, tmp_path)
    report(form, layer, dtype, capability, found)
    chosen = "gram" if layer[2] <= 8 else "direct"
    assert found["stack"] <= (0 if form == chosen else MAX_STACK)
    assert found["shared"] <= {80: 163, 90: 227}[capability] * 1024
    products = re.findall(r"(?:wgmma\.mma_async|mma)\.sync\.aligned\.\S+", binary.asm["ptx"])
    types = ".f32.bf16.bf16" if dtype == torch.bfloat16 else ".f32.tf32.tf32"
    assert products
    assert all(types in product for product in products)
    least = config.constants.get("BO", config.constants.get("BP"))
    assert any(product.startswith("wgmma") for product in products) == (capability == 90 and least >= 64)
    if config.constants.get("BT", 0) < layer[2] ** 2:  # more than one step, so that copies run ahead of products
        assert re.search(r"cp\.async\.c[ag]\.shared\.global \[[^\]]*\], \[[^\]]*\], (0x10|16)", binary.asm["ptx"])


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "tf32x3"])
def test_stored(dtype, capability, tmp_path):
    found = resources(compiled(prepared("direct", STAGES[0], dtype, store=True), dtype, capability), tmp_path)
    report("direct", STAGES[0], dtype, capability, found, store=True)
    assert found["stack"] <= MAX_STACK


@pytest.mark.parametrize("layer", OTHERS, ids=lambda layer: "{}-{}_{}px_s{}_k{}".format(*layer))
def test_other_layers(layer, tmp_path):
    """The stem and strides of two, in float16, in both forms."""
    for form in ("direct", "gram"):
        found = resources(compiled(prepared(form, layer, torch.float16), torch.float16, 90), tmp_path)
        report(form, layer, torch.float16, 90, found)
        assert found["stack"] <= MAX_STACK
