"""The choice between the Triton kernels, their forms and tiles, and the reference."""

import subprocess
import sys
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.nn import functional as F

from pyengm import clipped_backward, per_example_grad_norms
from pyengm.kernels import HAS_TRITON, conv_cost_model, conv_dispatch, conv_tuning
from pyengm.kernels.conv_shape import ConvShape, channels_innermost
from pyengm.ops import conv_direct_sqnorm, conv_gradients, conv_gram_sqnorm
from pyengm.pergrad import conv_grad as conv_module
from pyengm.pergrad.conv_grad import ConvGrad, Geometry
from pyengm.pergrad.per_example_grad import DenseGrad

WINDOW = ((3, 3), (1, 1), (1, 1), (1, 1))


def operands(n=2, c=3, o=4, size=5, dtype=torch.float32, device="cpu") -> tuple[Tensor, Tensor]:
    return tuple(torch.randn(n, k, size, size).to(device, dtype) for k in (c, o))


def layer(c, o, height, stride=1, k=3, dtype=torch.bfloat16) -> ConvShape:
    out = (height - 1) // stride + 1
    return ConvShape((c, height, height), (o, out, out), (k, k), (stride, stride), (k // 2, k // 2), (1, 1), dtype)


@pytest.fixture(autouse=True)
def no_failures(monkeypatch):
    monkeypatch.setattr(conv_dispatch, "_failed", {})
    monkeypatch.setattr(conv_dispatch, "_warned", set())


@pytest.fixture
def a100(monkeypatch):
    """Tensors are on the CPU; queries of their GPU return those of an A100."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA A100")


NO_CUDA_MODULE = """
found = pkgutil.iter_modules
pkgutil.iter_modules = lambda *args, **options: (m for m in found(*args, **options) if not m.name.startswith("_cuda"))
"""


class TestUnsupported:
    def refused(self, x, g, message):
        with pytest.warns(UserWarning, match=message):
            assert not conv_dispatch.supports(x, g, WINDOW)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # the message comes once
            assert not conv_dispatch.supports(x, g, WINDOW)
            assert conv_dispatch.gram(x, g, WINDOW) is None
            assert conv_dispatch.direct(x, g, WINDOW) is None

    def test_without_triton(self, monkeypatch, a100):
        monkeypatch.setattr(conv_dispatch, "HAS_TRITON", False)
        self.refused(*operands(), "Triton is not installed.*slower")

    def test_old_gpu(self, monkeypatch, a100):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        self.refused(*operands(), "NVIDIA A100 is older than compute capability 8.0")

    @pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
    def test_float64(self, a100):
        self.refused(*operands(dtype=torch.float64), "do not support torch.float64")

    @pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
    def test_large_example(self, a100):
        x, g = (torch.empty(1, 2**15, 2**8, 2**8, device="meta") for _ in range(2))
        self.refused(x, g, "too large")

    @pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
    def test_a_failed_shape_is_not_tried_again(self, monkeypatch, a100):
        tries = []

        def broken(*arguments):
            tries.append(arguments)
            raise RuntimeError("Failed to find C compiler")

        monkeypatch.setattr(conv_dispatch, "conv_gram_sqnorm", broken)
        x, g = operands()
        assert conv_dispatch.supports(x, g, WINDOW)
        with pytest.warns(UserWarning, match="RuntimeError: Failed to find C compiler"):
            assert conv_dispatch.gram(x, g, WINDOW) is None
        assert conv_dispatch.gram(x, g, WINDOW) is None
        assert len(tries) == 1
        assert conv_dispatch.supports(*operands(c=7), WINDOW)  # other shapes are tried

    @pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
    def test_a_batch_that_is_too_large_says_nothing_about_others(self, monkeypatch, a100):
        def up_to_four(x, g, window):
            if len(x) > 4:
                raise ValueError("expected at most 4 tiles in one launch")
            return x.new_zeros(len(x))

        monkeypatch.setattr(conv_dispatch, "conv_gram_sqnorm", up_to_four)
        with pytest.warns(UserWarning, match="expected at most 4"):
            assert conv_dispatch.gram(*operands(n=5), WINDOW) is None
        for n in (1, 4):
            assert conv_dispatch.gram(*operands(n=n), WINDOW) is not None

    @pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
    def test_out_of_memory_is_raised(self, monkeypatch, a100):
        def greedy(*arguments):
            raise torch.cuda.OutOfMemoryError("no memory")

        monkeypatch.setattr(conv_dispatch, "conv_gram_sqnorm", greedy)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            conv_dispatch.gram(*operands(), WINDOW)

    @pytest.mark.parametrize("missing", ["sys.modules['triton'] = None", NO_CUDA_MODULE])
    def test_installation_without(self, missing, tmp_path):
        """The ops work, and on CUDA their kernels do not need nvcc."""
        code = f"""
import pkgutil, sys
import torch
{missing}
from pyengm.ops import conv_gram_sqnorm
x = torch.ones(1, 1, 1, 1)
assert conv_gram_sqnorm(x, x, (1, 1)).item() == 1
try:
    conv_gram_sqnorm(x, x, (1, 1), backend="cuda")
except ValueError as error:
    assert "needs cuda tensors" in str(error)
"""
        subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


class TestOperands:
    """What the kernels are given: they address the elements of an example with 32 bits."""

    @pytest.mark.parametrize("axis", [1, 2, 3])
    def test_elements_far_apart_are_copied(self, axis):
        sizes, steps = [1, 16, 16, 16], [1, 1, 16, 256]
        steps[axis] = 2**31 // 15 + 1
        far = torch.empty_strided(sizes, steps, device="meta")
        assert channels_innermost(far).is_contiguous(memory_format=torch.channels_last)

    def test_elements_side_by_side_are_not(self):
        """The distance between examples does not count: the kernels have it in 64 bits."""
        near = torch.empty_strided((3, 16, 5, 7), (2**31, 1, 2**28, 16), device="meta")
        assert channels_innermost(near) is near


class TestModel:
    def test_form(self):
        """Gram matrices are cheaper for small images with many channels."""
        for shape in (layer(3, 64, 32), layer(64, 64, 32), layer(128, 128, 16), layer(64, 128, 32, stride=2)):
            assert not conv_tuning.gram_is_cheaper(shape)
        for shape in (layer(256, 256, 8), layer(512, 512, 4), layer(256, 512, 8, stride=2)):
            assert conv_tuning.gram_is_cheaper(shape)

    def test_axes_of_the_offsets(self):
        """One axis each where channels are equal and nothing is strided; both where one side has few channels."""
        assert conv_cost_model.gram_tile(layer(256, 256, 8))[2:4] in ((True, False), (False, True))
        assert conv_cost_model.gram_tile(layer(16, 512, 8))[2:4] == (True, True)
        assert conv_cost_model.gram_tile(layer(512, 16, 8))[2:4] == (False, False)
        assert conv_cost_model.gram_tile(layer(256, 256, 8, stride=2))[2:4] == (True, True)

    def test_counts(self):
        shape = layer(64, 100, 32)
        assert conv_cost_model.DirectTile(64, 32, 64, 3, False, 4, 3).count(shape) == 2 * 2 * 3
        assert conv_cost_model.GramTile(128, 64, True, True, 8, 3).count(shape) == 8 * 9 // 2


class TestTiming:
    SHAPE = layer(64, 64, 32)

    @pytest.fixture(autouse=True)
    def cache(self, tmp_path, monkeypatch):
        self.path = tmp_path / "pyengm" / "tiles.json"
        monkeypatch.setattr(conv_tuning, "_path", lambda: self.path)
        conv_tuning.clear_cache()
        yield
        conv_tuning.clear_cache()

    def test_the_fastest_tile_is_stored(self):
        times = {
            form: {tile: 10.0 + k for k, tile in enumerate(reversed(tiles))}
            for form, tiles in conv_tuning.candidates(self.SHAPE).items()
        }
        times["gram"] = {tile: us / 2 for tile, us in times["gram"].items()}
        conv_tuning.store(self.SHAPE, times)
        for _ in range(2):
            assert conv_tuning.best_direct_tile(self.SHAPE) == next(iter(times["direct"]))
            assert conv_tuning.best_gram_tile(self.SHAPE) == next(iter(times["gram"]))
            assert conv_tuning.gram_is_cheaper(self.SHAPE)
            assert not conv_tuning.gram_is_cheaper(layer(64, 64, 32, dtype=torch.float32))
            conv_tuning.clear_cache()

    @pytest.mark.parametrize("content", ["", "{", "[1]"])
    def test_a_corrupt_file_is_ignored(self, content):
        self.path.parent.mkdir()
        self.path.write_text(content)
        assert conv_tuning.best_direct_tile(self.SHAPE) == conv_cost_model.direct_tile(self.SHAPE)
        assert not conv_tuning.gram_is_cheaper(self.SHAPE)

    @pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
    def test_needs_a_gpu(self):
        from pyengm.kernels.tune import tune

        with pytest.raises(RuntimeError, match="on a GPU"):
            tune(*operands(), WINDOW)

    @pytest.mark.gpu
    def test_on_the_gpu(self, monkeypatch):
        from pyengm.kernels.tune import operands, tune

        few = {form: tiles[:2] for form, tiles in conv_tuning.candidates(self.SHAPE).items()}
        monkeypatch.setattr(conv_tuning, "candidates", lambda shape: few)
        x, g, window = operands(64, 64, 32, 1, 3, n=8, dtype=torch.bfloat16)
        times = tune(x, g, window)
        assert {form: list(tiles) for form, tiles in times.items()} == few
        assert conv_tuning.best_direct_tile(self.SHAPE) == min(few["direct"], key=times["direct"].__getitem__)


class TestOps:
    def test_outputs_on_cuda(self):
        """As torch.compile infers them, without a GPU: float32 for 16 bits, channels innermost."""
        raw = operands(dtype=torch.bfloat16, device="meta")
        with FakeTensorMode() as mode:
            x, g = (FakeTensor(mode, t, torch.device("cuda:0")) for t in raw)
            squares, gradients = conv_gradients(x, g, *WINDOW)
            for got in (squares, conv_gram_sqnorm(x, g, *WINDOW), conv_direct_sqnorm(x, g, *WINDOW)):
                assert (got.dtype, got.shape, got.device.type) == (torch.float32, (2,), "cuda")
        assert gradients.dtype == torch.float32
        assert gradients.movedim(2, -1).is_contiguous()

    @pytest.mark.gpu
    def test_opcheck(self):
        x, g = operands(device="cuda")
        for op in (torch.ops.pyengm.conv_gram_sqnorm, torch.ops.pyengm.conv_gradients):
            torch.library.opcheck(op.default, (x, g, *map(list, WINDOW)))

    @pytest.mark.gpu
    def test_the_reference_without_triton(self, monkeypatch):
        x, g = operands(dtype=torch.bfloat16, device="cuda")
        ours = conv_gradients(x, g, *WINDOW)
        monkeypatch.setattr(conv_dispatch, "HAS_TRITON", False)
        with pytest.warns(UserWarning, match="Triton is not installed"):
            theirs = conv_gradients(x, g, *WINDOW)
        for own, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(own, other, rtol=3e-5, atol=1e-4)
            assert own.stride() == other.stride()


class TestOperandsOf16Bits:
    """pergrad's convolution with operands of 16 bits, as on a GPU."""

    GEOMETRY = Geometry((2, 1), (1, 1), (1, 1), False, (0, 0), 1)

    def conv(self, dtype: torch.dtype, device: str) -> tuple[ConvGrad, ConvGrad]:
        """One with operands of dtype, one with the same values in float64 on the CPU."""
        x, g, weight = torch.randn(4, 1, 6, 9, 8), torch.randn(4, 1, 20, 5, 8), torch.zeros(20, 6, 3, 3)
        x, g = x.to(device, dtype), g.to(device, dtype)
        conv = ConvGrad(x, g, weight.to(device), self.GEOMETRY)
        conv.x, conv.g = x, g  # on the CPU too
        return conv, ConvGrad(x.double().cpu(), g.double().cpu(), weight.double(), self.GEOMETRY)

    @pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_sums_over_the_batch(self, dtype, device):
        ours, exact = self.conv(dtype, device)
        weights = torch.tensor([1.0, 1e-3, 0.5, 2e-6], dtype=torch.float64)
        for k in range(4):  # one example at a time, the vanishing ones too: rounded once as operand, once as result
            chosen = torch.zeros(4, dtype=torch.float64).index_fill_(0, torch.tensor([k]), weights[k].item())
            got, expected = ours.weighted(chosen.to(device)), exact.weighted(chosen)
            assert got.dtype == torch.float32
            atol = 2 * torch.finfo(dtype).eps * expected.abs().max().item()
            torch.testing.assert_close(got.double().cpu(), expected, rtol=0, atol=atol)
        basis = torch.randn(1, 54, 3)
        with torch.backends.cudnn.flags(allow_tf32=False):
            features = ours.features(basis.to(device))
            found = features, ours.input_products(features), ours.along_features(features)
        features = exact.features(basis.double())
        truth = features, exact.input_products(features), exact.along_features(features)
        for got, expected in zip(found, truth, strict=True):
            torch.testing.assert_close(got.double().cpu(), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())

    @pytest.mark.gpu
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("keep", [False, True])
    @pytest.mark.parametrize("triton", [True, False])
    def test_squares(self, dtype, keep, triton, monkeypatch):
        monkeypatch.setattr(conv_dispatch, "HAS_TRITON", HAS_TRITON and triton)
        monkeypatch.setattr(conv_module, "STORED", 100 if keep else 0)
        ours, exact = self.conv(dtype, "cuda")
        ours = ours.stored()
        torch.testing.assert_close(ours.squares().double().cpu(), exact.squares(), rtol=3e-5, atol=0)
        assert isinstance(ours, DenseGrad) == keep
        largest = exact.dense(slice(None)).abs().max().item()
        found, truth = ours.dense(slice(1, 3)).double().cpu(), exact.dense(slice(1, 3))
        torch.testing.assert_close(found, truth, rtol=0, atol=3e-5 * largest)
        if keep:
            weights = torch.rand(4, dtype=torch.float64)
            found, truth = ours.weighted(weights.cuda()).double().cpu(), exact.weighted(weights)
            torch.testing.assert_close(found, truth, rtol=0, atol=1e-3 * largest)  # the product may run in tf32


@pytest.mark.gpu
class TestWalk:
    """Norms and the clipped gradient of a small network, against float64 on the CPU."""

    @staticmethod
    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(),
            nn.Conv2d(16, 48, 3, stride=2, padding=1, groups=2), nn.ReLU(),
            nn.Conv2d(48, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5),
        )  # fmt: skip

    @pytest.mark.parametrize("triton", [True, False])
    def test_clipped(self, triton, monkeypatch):
        monkeypatch.setattr(conv_dispatch, "HAS_TRITON", HAS_TRITON and triton)
        x, y = torch.randn(6, 3, 12, 12), torch.arange(6) % 5
        exact, ours = self.model().double(), self.model().cuda()
        norms = per_example_grad_norms(F.cross_entropy(exact(x.double()), y, reduction="none"), exact.parameters())
        alpha = norms.median().item()
        clipped_backward(F.cross_entropy(exact(x.double()), y, reduction="none"), exact.parameters(), alpha)
        x, y = x.cuda(), y.cuda()
        with torch.backends.cudnn.flags(allow_tf32=False):
            losses = F.cross_entropy(ours(x), y, reduction="none")
            used = clipped_backward(losses, ours.parameters(), alpha)
        torch.testing.assert_close(used.norms.double().cpu(), norms, rtol=2e-4, atol=0)  # as test_walk has for float32
        for p, q in zip(ours.parameters(), exact.parameters(), strict=True):
            torch.testing.assert_close(p.grad.double().cpu(), q.grad, rtol=0, atol=2e-4 * norms.max().item())
