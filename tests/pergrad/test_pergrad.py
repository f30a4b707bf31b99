"""Per-example gradient norms against their definition, one example at a time in float64."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pyengm import per_example_grad_norms
from pyengm.errors import NonFiniteError
from pyengm.models import build
from pyengm.pergrad import check_losses, exact, exact_norms


def network(norm, dtype=torch.float64):
    torch.manual_seed(0)
    return build("cnn4", width=4, image_size=8, in_channels=1, norm_layer=norm).to(dtype)


def batch(n=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(n, 1, 8, 8, generator=generator, dtype=dtype)
    return x, torch.randint(0, 10, (n,), generator=generator)


def losses_of(model, x, y):
    return F.cross_entropy(model(x), y, reduction="none")


def norm_of(loss, params):
    grads = torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
    return sum(g.square().sum() for g in grads if g is not None).sqrt()


@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_examples_one_at_a_time(norm):
    model, (x, y) = network(norm).eval(), batch()
    params = list(model.parameters())
    expected = torch.stack([norm_of(losses_of(model, x[i : i + 1], y[i : i + 1])[0], params) for i in range(7)])
    norms = exact_norms(losses_of(model, x, y), params)
    assert norms.shape == (7,)
    assert not norms.requires_grad
    torch.testing.assert_close(norms, expected, rtol=1e-10, atol=0)  # float64, sums in another order


def test_batch_norm_in_training_mode():
    model, (x, y) = network("bn").train(), batch()
    params = list(model.parameters())
    losses = losses_of(model, x, y)
    expected = torch.stack([norm_of(loss, params) for loss in losses])
    torch.testing.assert_close(exact_norms(losses, params), expected, rtol=1e-10, atol=0)
    alone = exact_norms(losses_of(model.eval(), x, y), params)
    assert not torch.allclose(expected, alone, rtol=0.1)  # the examples are not independent


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_chunks_change_nothing(chunk):
    model, (x, y) = network("bn").train(), batch()
    losses = losses_of(model, x, y)
    expected = exact_norms(losses, model.parameters(), chunk=4)
    torch.testing.assert_close(exact_norms(losses, model.parameters(), chunk=chunk), expected, rtol=1e-10, atol=0)


def test_memory_bounds_the_chunk(monkeypatch):
    model, (x, y) = network("gn"), batch()
    losses = losses_of(model, x, y)
    expected = exact_norms(losses, model.parameters())
    monkeypatch.setattr(exact, "CHUNK_BYTES", 1)
    torch.testing.assert_close(exact_norms(losses, model.parameters()), expected, rtol=1e-10, atol=0)


def test_graph_and_gradients_do_not_change():
    model, (x, y) = network("gn"), batch()
    model.head.bias.grad = mark = torch.ones_like(model.head.bias)
    losses = losses_of(model, x, y)
    first = exact_norms(losses, model.parameters())
    assert first.equal(exact_norms(losses, model.parameters()))
    assert model.head.bias.grad is mark
    assert mark.eq(1).all()
    assert all(p.grad is None for name, p in model.named_parameters() if name != "head.bias")
    losses.mean().backward()


def test_unused_frozen_and_repeated_parameters():
    model, (x, y) = network("gn"), batch()
    losses = losses_of(model, x, y)
    expected = exact_norms(losses, model.parameters())
    spare = nn.Parameter(torch.ones(3, dtype=torch.float64))
    assert exact_norms(losses, [spare, *model.parameters()]).equal(expected)
    assert exact_norms(losses, [*model.parameters(), *model.parameters()]).equal(expected)
    with pytest.raises(ValueError, match="depend on none of the parameters"):
        exact_norms(losses, [spare])

    model.block1.requires_grad_(False)
    losses = losses_of(model, x, y)
    kept = [p for p in model.parameters() if p.requires_grad]
    norms = exact_norms(losses, model.parameters())
    assert norms.equal(exact_norms(losses, kept))
    assert (norms < expected).all()


def test_a_parameter_used_twice_counts_the_sum_of_its_uses():
    w = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    a, b = torch.randn(2, 5, 2, dtype=torch.float64)
    norms = exact_norms((a @ w) + (b @ w), [w])
    torch.testing.assert_close(norms, (a + b).norm(dim=1), rtol=1e-12, atol=0)


def test_dtypes():
    for dtype, expected in ((torch.float32, torch.float32), (torch.bfloat16, torch.float32)):
        w = nn.Parameter(torch.ones(2, dtype=dtype))
        norms = per_example_grad_norms(torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=dtype) @ w, [w])
        assert norms.dtype == expected
        assert norms.tolist() == [5, 0]
    w = nn.Parameter(torch.ones(1))
    assert exact_norms(w * torch.tensor([1e-30, 1e30]), [w]).tolist() == pytest.approx([1e-30, 1e30])


def test_losses_of_a_wrong_form():
    w = nn.Parameter(torch.ones(4))
    with pytest.raises(ValueError, match=r'\(n,\), got \(\).*reduction="none"'):
        check_losses(w.sum())
    with pytest.raises(ValueError, match=r"got \(4, 2\)"):
        check_losses(w[:, None].expand(4, 2))
    with pytest.raises(ValueError, match="no_grad"):
        check_losses(torch.ones(4))
    with pytest.raises(ValueError, match="at least one"):
        check_losses(w[:0])
    with pytest.raises(NonFiniteError, match=r"2 of 4 losses.*position 1 "):
        check_losses(w * torch.tensor([0, torch.nan, 0, torch.inf]))
    assert check_losses(w) is None


def test_norms_of_a_wrong_call():
    w = nn.Parameter(torch.ones(4))
    for losses in (w.sum(), torch.ones(4), w[:0]):
        with pytest.raises(ValueError, match=r"loss"):
            exact_norms(losses, [w])
    with pytest.raises(ValueError, match="requires grad"):
        exact_norms(w, [])
    with pytest.raises(ValueError, match="requires grad"):
        exact_norms(w, [torch.ones(3)])
    with pytest.raises(NonFiniteError, match="position 0"):
        exact_norms(w * torch.nan, [w])
