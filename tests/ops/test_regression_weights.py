"""The line through gradient norms and its weights against numpy, and the contract of the ops."""

import math

import numpy as np
import pytest
import torch

from pyengm.ops import clip_weights, regression_fit, regression_statistics, regression_weights

SIZES = [1, 2, 3, 31, 128, 257, 5000]
DTYPES = [torch.float32, torch.float64]


def line(intercept=0.0, slope=1.0, device="cpu"):
    return torch.tensor([intercept, slope], dtype=torch.float64, device=device)


def norms(n, dtype, device, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, generator=generator, dtype=dtype) + 0.1
    y = 3 * x + 0.5 + 0.1 * torch.randn(n, generator=generator, dtype=dtype)
    return x.to(device), y.to(device)


@pytest.mark.parametrize("dtype", DTYPES)
class TestFormulas:
    @pytest.mark.parametrize("n", SIZES[1:])
    def test_fit_against_numpy(self, any_backend, device, n, dtype):
        x, y = norms(n, dtype, device)
        weights, gammas = regression_weights(x, y, line(0.2, 1.5, x.device), 1.3, keep=0.7, backend=any_backend)
        slope, intercept = np.polyfit(x.double().cpu().numpy(), y.double().cpu().numpy(), 1)
        expected = torch.tensor([0.7 * 0.2 + 0.3 * intercept, 0.7 * 1.5 + 0.3 * slope], dtype=torch.float64)
        torch.testing.assert_close(gammas.cpu(), expected, rtol=1e-9, atol=0)  # sums of squares lose some digits
        predicted = expected[1] * x.double().cpu() + expected[0]
        torch.testing.assert_close(weights.double().cpu(), (1.3 / predicted).clamp(max=1), rtol=1e-6, atol=0)
        assert weights.dtype == dtype

    @pytest.mark.parametrize("n", [0, *SIZES])
    def test_weights_of_a_given_line(self, any_backend, device, n, dtype):
        x, _ = norms(n, dtype, device)
        gammas = line(0.3, 2.0, x.device)
        weights, same = regression_weights(x, None, gammas, 1.0, backend=any_backend)
        assert same.equal(gammas)
        assert same.data_ptr() != gammas.data_ptr()
        assert weights.equal(clip_weights(2.0 * x.double() + 0.3, 1.0, backend="reference").to(dtype))

    def test_statistics_of_parts_add_up(self, any_backend, device, dtype):
        x, y = norms(300, dtype, device)
        whole = regression_statistics(x, y, backend=any_backend)
        a, b = x.double(), y.double()
        expected = torch.stack([torch.ones_like(a), a, b, a * a, a * b]).sum(1)
        torch.testing.assert_close(whole, expected, rtol=1e-13, atol=0)
        parts = [
            regression_statistics(x[part], y[part], backend=any_backend) for part in (slice(0, 77), slice(77, 300))
        ]
        fitted = regression_fit(parts[0] + parts[1], line(device=x.device), keep=0.7)
        _, gammas = regression_weights(x, y, line(device=x.device), 1.0, keep=0.7, backend=any_backend)
        torch.testing.assert_close(fitted, gammas, rtol=1e-9, atol=0)


class TestDegenerateFits:
    @pytest.mark.parametrize("x", [[2.0], [2.0, 2.0, 2.0], [0.0, 0.0, 0.0], [0.1, 0.1, 0.1]])
    def test_equal_inputs_keep_the_slope(self, any_backend, device, x):
        x = torch.tensor(x, device=device)
        y = torch.linspace(1.0, 3.0, len(x), device=x.device)
        _, gammas = regression_weights(x, y, line(9.0, 0.5, x.device), 1.0, keep=0.0, backend=any_backend)
        torch.testing.assert_close(gammas.cpu(), line((y - 0.5 * x).double().mean().item(), 0.5), rtol=1e-6, atol=0)

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_norms_that_are_not_finite_keep_the_line(self, any_backend, device, bad):
        x, y = norms(5, torch.float64, device)
        for t in (x, y):
            kept = t[2].item()
            t[2] = bad
            _, gammas = regression_weights(x, y, line(0.2, 0.3, x.device), 1.0, backend=any_backend)
            assert gammas.tolist() == [0.2, 0.3]
            t[2] = kept

    def test_an_empty_batch(self, any_backend, device):
        x = torch.empty(0, device=device)
        weights, gammas = regression_weights(x, x, line(0.2, 0.3, x.device), 1.0, backend=any_backend)
        assert weights.shape == (0,)
        assert gammas.tolist() == [0.2, 0.3]

    def test_predictions(self, any_backend, device):
        x = torch.tensor([0.0, 1.0, 2.0, 6.0, math.inf, math.nan], dtype=torch.float64, device=device)
        weights, _ = regression_weights(x, None, line(-2.0, 1.0, x.device), 2.0, backend=any_backend)
        assert weights[:5].tolist() == [1.0, 1.0, 1.0, 0.5, 0.0]
        assert weights[5].isnan()


def test_strided(any_backend, device):
    x, y = norms(40, torch.float32, device)
    gammas = torch.tensor([0.0, 7.0, 1.0, 7.0], dtype=torch.float64, device=x.device)[::2]
    strided = regression_weights(x[::2], y[::2], gammas, 1.0, backend=any_backend)
    dense = regression_weights(x[::2].clone(), y[::2].clone(), gammas.clone(), 1.0, backend=any_backend)
    assert all(a.equal(b) for a, b in zip(strided, dense, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_norms": torch.ones(2, 2)}, r"input_norms of shape \(n,\)"),
        ({"input_norms": torch.ones(3).half()}, "float32 or float64"),
        ({"norms": torch.ones(4)}, r"norms of shape \(3,\)"),
        ({"norms": torch.ones(3).double()}, "in torch.float32"),
        ({"gammas": torch.ones(2)}, r"gammas of shape \(2,\) in torch.float64"),
        ({"alpha": 0.0}, "alpha > 0"),
        ({"keep": 1.5}, "keep between 0 and 1"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {"input_norms": torch.ones(3), "norms": torch.ones(3), "gammas": line(), "alpha": 1.0} | change
    with pytest.raises(ValueError, match=f"regression_weights: expected .*{message}"):
        regression_weights(**arguments)


def test_requires_grad():
    with pytest.raises(RuntimeError, match="no derivative"):
        regression_weights(torch.ones(3, requires_grad=True), None, line(), 1.0)


def test_opcheck():
    op = torch.ops.pyengm
    x, y = norms(5, torch.float32, "cpu")
    torch.library.opcheck(op.regression_statistics.default, (x, y))
    torch.library.opcheck(op.regression_weights.default, (x, y, line(), 1.0, 0.7))
    torch.library.opcheck(op.regression_weights.default, (x, None, line(), 1.0, 0.7))
