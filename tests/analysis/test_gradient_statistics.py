"""Statistics of gradients against n backward passes in float64."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from pyengm.analysis import gradient_statistics, norm_correlation
from pyengm.attacks import PGD
from pyengm.ops import Key


def gradients(model, x, y, bn):
    """(n, P) gradients and (n,) input norms by the definition, for one batch."""
    state = {name: t.clone() for name, t in model.state_dict().items()}
    model.train(bn == "train")
    rows, inputs = [], []
    for i in range(len(x)):
        leaf = x.clone().requires_grad_()
        losses = cross_entropy(model(leaf), y, reduction="none")
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(losses[i], list(model.parameters()))]))
        losses = cross_entropy(model(leaf), y, reduction="none")
        inputs.append(torch.autograd.grad(losses.sum(), leaf)[0][i].norm())
    model.eval()
    model.load_state_dict(state)
    return torch.stack(rows), torch.stack(inputs)


@pytest.mark.parametrize("bn", ["eval", "train"])
@pytest.mark.parametrize("attacked", [False, True])
def test_statistics_are_their_formulas(net, images, labels, bn, attacked):
    attack = PGD(0.1, 0.03, 3) if attacked else None
    before = {name: t.clone() for name, t in net.state_dict().items()}
    found = gradient_statistics(net, images, labels, attack=attack, bn=bn, batch_size=6, seed=4)
    x = images if attack is None else attack(net, images, labels, key=Key(4, 0, torch.arange(12)))
    halves = [gradients(net, x[rows], labels[rows], bn) for rows in (slice(0, 6), slice(6, 12))]
    rows, inputs = (torch.cat(parts) for parts in zip(*halves, strict=True))
    np.testing.assert_allclose(found.norms[0], rows.norm(dim=1), rtol=1e-9)
    np.testing.assert_allclose(found.input_norms[0], inputs, rtol=1e-9)
    assert found.mu[0] == pytest.approx(rows.norm(dim=1).mean().item(), rel=1e-9)
    centred = rows - rows.mean(dim=0)
    assert found.sigma2[0] == pytest.approx(centred.square().sum(1).mean().item(), rel=1e-9)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert not net.training


def test_a_run_has_a_row_for_every_model(two_nets, images, labels, figure_text):
    found = gradient_statistics(iter(two_nets), images, labels)
    assert found.epochs.tolist() == [1, 5]
    for row, (_, model) in enumerate(two_nets):
        alone = gradient_statistics(model, images, labels)
        assert alone.sigma2[0] == found.sigma2[row]
        np.testing.assert_array_equal(alone.norms[0], found.norms[row])
    assert "epoch" in figure_text(found.plot())
    assert "norm" in figure_text(alone.plot())


def test_correlation_is_numpys(two_nets, images, labels, figure_text):
    found = norm_correlation(two_nets, images, labels)
    assert found.scatter.shape == (2, 2, 12, 2)
    for row, (_, model) in enumerate(two_nets):
        for mode, bn in enumerate(("eval", "train")):
            one = gradient_statistics(model, images, labels, bn=bn)
            x, y = one.input_norms[0], one.norms[0]
            assert found.pearson[row, mode] == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-9)
            slope, intercept = np.polyfit(x, y, 1)
            assert found.slope[row, mode] == pytest.approx(slope, rel=1e-9)
            assert found.intercept[row, mode] == pytest.approx(intercept, rel=1e-9)
    assert "correlation" in figure_text(found.plot())
    assert "gradient in the input" in figure_text(norm_correlation(two_nets[0][1], images, labels).plot())
