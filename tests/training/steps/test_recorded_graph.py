"""The replacement for a CUDA graph does what a CUDA graph does, where calling the function again hides errors."""

import pytest
import torch
from helpers.recorded_graph import RecordedGraph
from torch import Tensor, nn

from pyengm.ops import clip_weights

CPU = torch.device("cpu")


def recorded(function) -> tuple[RecordedGraph, tuple[Tensor, ...]]:
    graph = RecordedGraph(CPU)
    return graph, graph.capture(function)


def test_a_replay_sees_memory_and_not_the_host():
    x, scale = torch.arange(3.0), 2.0
    graph, (y,) = recorded(lambda: (x * scale,))
    scale = 5.0
    x += 1
    graph.replay()
    assert y.tolist() == [2.0, 4.0, 6.0]
    x = torch.zeros(3)  # other memory
    graph.replay()
    assert y.tolist() == [2.0, 4.0, 6.0]


def test_a_capture_changes_nothing():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5)), torch.rand(4, 3)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = torch.get_rng_state()
    graph, (y,) = recorded(lambda: (model(x).detach(),))
    assert all(t.equal(before[name]) for name, t in model.state_dict().items())
    assert torch.get_rng_state().equal(state)
    assert y.isnan().all()
    graph.replay()
    first = y.clone()
    graph.replay()
    assert not y.equal(first)  # other random numbers
    assert model[0].num_batches_tracked == 2
    torch.manual_seed(0)
    twin = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))
    torch.set_rng_state(state)
    assert twin(x).equal(first)
    assert twin(x).equal(y)
    assert all(t.equal(twin.state_dict()[name]) for name, t in model.state_dict().items())


def test_gradients_views_and_operators_of_pyengm():
    torch.manual_seed(0)
    layer, x = nn.Linear(3, 2), torch.rand(4, 3)

    def function() -> tuple[Tensor, ...]:
        layer.zero_grad()
        losses = layer(x).square().sum(1)
        losses.sum().backward()
        norms = losses.detach().sqrt().unsqueeze(0).squeeze_(0)
        return layer.weight.grad, clip_weights(norms, 0.5), norms[1:]

    graph, results = recorded(function)
    for _ in range(2):
        with torch.no_grad():
            layer.weight.mul_(1.5)
            x.add_(0.1)
        graph.replay()
        found = [t.clone() for t in results]
        assert all(t.equal(other) for t, other in zip(found, function(), strict=True))


@pytest.mark.parametrize(
    "wait", [lambda t: t.sum().item(), lambda t: t[t > 0], lambda t: t + torch.tensor([1.0, 2.0, 3.0])]
)
def test_no_waiting_in_a_capture(wait):
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        recorded(lambda: (wait(torch.rand(3)),))


def test_kernels_past_the_dispatcher():
    norms = torch.rand(4)
    with pytest.raises(AssertionError, match="clip_weights was called past torch's dispatcher"):
        recorded(lambda: (clip_weights(norms, 0.5, backend="reference"),))
