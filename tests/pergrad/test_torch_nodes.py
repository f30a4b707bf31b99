"""The names and saved fields of torch's autograd nodes that rules read: a torch that renames one fails here."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import checkpoint

from pyengm.pergrad import autograd_graph, hooks, rules, validation
from pyengm.pergrad.batch_norm import frozen
from pyengm.pergrad.layout import NOBODY, UnprovenError, one_per_loss
from pyengm.pergrad.rules.registry import NodeView
from pyengm.pergrad.rules.weights import weight_rule_of


def leaf(*shape):
    return torch.randn(shape, dtype=torch.float64).requires_grad_()


X, W, B = leaf(5, 6), leaf(6, 4), leaf(4)
IMAGES = leaf(5, 4, 7, 6)


def node_of(tensor, name):
    """The node that made a tensor, which must have this name."""
    found = tensor.grad_fn.name()
    assert found == name, f"torch {torch.__version__} has the node {found}, expected {name}; adapt pyengm.pergrad.rules"
    return tensor.grad_fn


def field(node, name):
    assert hasattr(node, f"_saved_{name}"), (
        f"torch {torch.__version__} has no field _saved_{name} in {node.name()}, only "
        f"{[a for a in dir(node) if a.startswith('_saved_')]}: adapt pyengm.pergrad.rules"
    )
    return getattr(node, f"_saved_{name}")


def same(found, expected):
    if isinstance(expected, torch.Tensor):
        return isinstance(found, torch.Tensor) and found.shape == expected.shape and torch.allclose(found, expected)
    return found == expected


def moments(t, axes):
    return t.mean(axes), (t.var(axes, unbiased=False) + 1e-5).rsqrt()


def batch_norm(training):
    mean, var = torch.randn(4).double(), torch.rand(4).double()
    given = (mean.clone(), var.clone())  # training moves them
    y = F.batch_norm(IMAGES, mean, var, B, leaf(4), training, 0.1, 1e-5)
    fields = {"input": IMAGES, "eps": 1e-5, "training": training, "weight": B}
    if training:
        fields["result1"], fields["result2"] = moments(IMAGES, (0, 2, 3))
    else:
        fields["running_mean"], fields["running_var"] = given
    return y, fields


def group_norm():
    mean, rstd = moments(IMAGES.reshape(5, 2, -1), 2)
    fields = {"N": 5, "group": 2, "input": IMAGES, "result1": mean, "result2": rstd}
    return F.group_norm(IMAGES, 2, B, leaf(4)), fields


def layer_norm():
    mean, rstd = (t.unsqueeze(1) for t in moments(X, 1))
    fields = {"input": X, "normalized_shape": (6,), "result1": mean, "result2": rstd}
    return F.layer_norm(X, (6,), leaf(6), leaf(6)), fields


def convolution():
    weight = leaf(6, 2, 3, 3)
    y = F.conv2d(IMAGES, weight, leaf(6), stride=2, padding=1, dilation=(2, 1), groups=2)
    fields = {"stride": (2, 2), "padding": (1, 1), "dilation": (2, 1), "transposed": False, "output_padding": (0, 0)}
    return y, {"input": IMAGES, "weight": weight, "groups": 2, **fields}


def transposed():
    weight = leaf(4, 3, 3, 3)
    y = F.conv_transpose2d(IMAGES, weight, stride=2, output_padding=(1, 0))
    return y, {"input": IMAGES, "weight": weight, "transposed": True, "stride": (2, 2), "output_padding": (1, 0)}


def input_gradient(y):
    """The gradient of sum(sin(y)) in IMAGES or X, and that in y."""
    inputs = IMAGES if y.dim() == 4 else X
    return torch.autograd.grad(y.sin().sum(), inputs, create_graph=True)[0], y.cos()


def convolution_twice():
    y, fields = convolution()
    g, grad_output = input_gradient(y)
    return g, {**{k: v for k, v in fields.items() if k != "input"}, "grad_output": grad_output}


def batch_norm_twice():
    y, fields = batch_norm(False)
    g, grad_out = input_gradient(y)
    return g, {"grad_out": grad_out, "train": False, "eps": 1e-5, "running_var": fields["running_var"]}


def layer_norm_twice():
    y, fields = layer_norm()
    g, grad_out = input_gradient(y)
    moments = {"mean": fields["result1"], "rstd": fields["result2"]}
    return g, {"grad_out": grad_out, "input": X, "normalized_shape": (6,), **moments}


def embedding():
    numbers = torch.tensor([[1, 2], [3, 1]])
    y = F.embedding(numbers, W, padding_idx=2)
    return y, {"indices": numbers, "padding_idx": 2, "scale_grad_by_freq": False}


# node -> a function that gives a tensor made by such a node, and what its fields must hold
MADE = {
    "AddBackward0": [lambda: (torch.add(X, leaf(6), alpha=3), {"alpha": 3})],
    "AddmmBackward0": [lambda: (torch.addmm(B, X, W, alpha=2, beta=3), {"alpha": 2, "beta": 3, "mat1": X})],
    "BmmBackward0": [lambda: (torch.bmm(a := leaf(2, 3, 4), b := leaf(2, 4, 5)), {"self": a, "mat2": b})],
    "ConvolutionBackward0": [convolution, transposed],
    "ConvolutionBackwardBackward0": [convolution_twice],
    "DivBackward0": [lambda: (X / (b := leaf(6)), {"self": X, "other": b})],
    "EmbeddingBackward0": [embedding],
    "MmBackward0": [lambda: (X @ W, {"self": X, "mat2": W})],
    "MulBackward0": [lambda: (X * (b := leaf(6)), {"self": X, "other": b})],
    "MvBackward0": [lambda: (X @ leaf(6), {"self": X})],
    "NativeBatchNormBackward0": [lambda: batch_norm(True), lambda: batch_norm(False)],
    "NativeBatchNormBackwardBackward0": [batch_norm_twice],
    "NativeGroupNormBackward0": [group_norm],
    "NativeLayerNormBackward0": [layer_norm],
    "NativeLayerNormBackwardBackward0": [layer_norm_twice],
    "PreluKernelBackward0": [lambda: (F.prelu(X, leaf(6)), {"self": X})],
    "RepeatBackward0": [lambda: (B.repeat(2, 3), {"repeats": (2, 3)})],
    "SubBackward0": [lambda: (torch.sub(X, leaf(6), alpha=3), {"alpha": 3})],
}
ON_OTHER_DEVICES = {"CudnnBatchNormBackward0", "FusedRmsNormBackward0", "MiopenBatchNormBackward0"}


@pytest.mark.parametrize("name", MADE)
def test_fields(name):
    seen = set()
    for make in MADE[name]:
        tensor, fields = make()
        node = node_of(tensor, name)
        for key, value in fields.items():
            assert same(field(node, key), value), (
                f"torch {torch.__version__} holds {field(node, key)} in _saved_{key} of {name}, not {value}: "
                "adapt pyengm.pergrad.rules"
            )
        seen |= set(fields)
    assert seen == set(rules.SAVED[name]), f"pyengm.pergrad.rules.SAVED lists other fields of {name} than these"


def test_every_node_is_made():
    assert set(rules.SAVED) == set(MADE) | ON_OTHER_DEVICES
    assert set(rules.SAVED) <= set(rules.WEIGHT_RULES)


@pytest.mark.parametrize("name", sorted(set(rules.WEIGHT_RULES) - ON_OTHER_DEVICES))
def test_slots(name):
    """A weight in a slot of a node is an input of the operation in the same place."""
    node = node_of(B.expand(5, -1) if name == "ExpandBackward0" else MADE[name][0]()[0], name)
    assert len(node.next_functions) > max(rules.WEIGHT_RULES[name].slots)
    for slot in rules.WEIGHT_RULES[name].slots:
        assert node.next_functions[slot][0].name() == autograd_graph.LEAF or (
            slot == 1 and name == "PreluKernelBackward0"
        )


def test_a_linear_layer():
    """Weight and bias stand in slots 2 and 0, the weight behind one transpose."""
    layer = nn.Linear(6, 4).double()
    node = node_of(layer(X), "AddmmBackward0")
    bias, (data, _), (transpose, _) = node.next_functions[0][0], node.next_functions[1], node.next_functions[2]
    assert bias.variable is layer.bias
    assert data.variable is X
    assert transpose.name() in autograd_graph.TRANSPARENT
    assert transpose.next_functions[0][0].variable is layer.weight


VIEWS = {
    "PermuteBackward0": lambda: X.permute(1, 0),
    "SqueezeBackward0": lambda: leaf(1, 3).squeeze(),
    "SqueezeBackward1": lambda: leaf(1, 3).squeeze(0),
    "TBackward0": lambda: X.t(),
    "ToCopyBackward0": lambda: X.float(),
    "TransposeBackward0": lambda: X.transpose(0, 1),
    "UnsqueezeBackward0": lambda: X.unsqueeze(0),
    "ViewBackward0": lambda: X.view(30),
    "AliasBackward0": lambda: torch.ops.aten.alias(X),
    "UnsafeViewBackward0": lambda: torch.ops.aten._unsafe_view(X, [30]),
    "ReshapeAliasBackward0": lambda: torch.ops.aten._reshape_alias(X, [30], [1]),
}


@pytest.mark.parametrize("name", sorted(autograd_graph.TRANSPARENT))
def test_transparent_nodes(name):
    """They move or cast elements: the gradient of all ones stays that."""
    tensor = VIEWS[name]()
    node_of(tensor, name)
    (found,) = torch.autograd.grad(tensor.sum(), _leaf_below(tensor.grad_fn))
    assert found.eq(1).all()


def _leaf_below(node):
    return node.next_functions[0][0].variable


def test_metadata_of_nodes():
    node = (X.bfloat16() @ W.bfloat16()).grad_fn
    (output,) = node._input_metadata
    assert tuple(output.shape) == (5, 4)
    assert output.dtype == torch.bfloat16


@pytest.mark.parametrize("outputs", [1, 2])
def test_nodes_can_be_called(outputs):
    """A node's own backward function gives a tensor for one input and a tuple for several."""
    x, y = leaf(5), leaf(5)
    node = node_of(torch.sin(x), "SinBackward0") if outputs == 1 else node_of(torch.atan2(x, y), "Atan2Backward0")
    found = node(torch.ones(5).double())
    assert isinstance(found, torch.Tensor) == (outputs == 1)
    found = (found,) if outputs == 1 else found
    expected = torch.autograd.grad(
        (torch.sin(x) if outputs == 1 else torch.atan2(x, y)).sum(), [x] if outputs == 1 else [x, y]
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_nodes_in_python_cannot_be_called_as_they_are():
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, g):
            return 2 * g

    assert weight_rule_of(Double.apply(X).grad_fn, [0]) is None


def test_opaque_nodes():
    """The names that compiled and reentrant parts of a model go by."""
    model = nn.Linear(6, 4).double()
    outputs = [torch.compile(model, backend="aot_eager")(X), checkpoint.checkpoint(model, X, use_reentrant=True)]
    assert {output.grad_fn.name() for output in outputs} == set(validation.OPAQUE | validation.HIDDEN)


def test_name_of_the_sink():
    from torch.nn.parallel import distributed

    assert distributed._DDPSink.__name__ + "Backward" == hooks.DDP_SINK


def test_layouts_pass_the_sink_of_data_parallel_models():
    n, shape = one_per_loss(4), (4, 2)
    rule = rules.LAYOUT_RULES[hooks.DDP_SINK]
    view = NodeView(hooks.DDP_SINK, (shape, shape), (shape, shape), {}, "")
    assert rule(view, {1: n}) == [NOBODY, n]
    with pytest.raises(UnprovenError, match="no tensors"):
        rule(NodeView(hooks.DDP_SINK, ((), shape), (shape,), {}, ""), {1: n})


def test_instance_norm_is_a_batch_norm_of_one_image():
    y = F.instance_norm(IMAGES, weight=B, bias=leaf(4))
    names, node = set(), y.grad_fn
    while node is not None and node.name() != autograd_graph.LEAF:
        names.add(node.name())
        if node.name() == "NativeBatchNormBackward0":
            assert tuple(node._input_metadata[0].shape)[:2] == (1, 20)
            assert node._saved_training
        node = node.next_functions[0][0]
    assert "NativeBatchNormBackward0" in names


@pytest.mark.gpu
def test_fields_on_a_gpu():
    x = torch.randn(5, 4, 7, 6, device="cuda", requires_grad=True)
    w, b = torch.randn(2, 4, device="cuda").requires_grad_()
    y = F.batch_norm(x, torch.zeros(4).cuda(), torch.ones(4).cuda(), w, b, True)
    assert y.grad_fn.name() in frozen.NAMES
    rms = F.rms_norm(x, (6,), torch.randn(6, device="cuda", requires_grad=True))
    for node in (y.grad_fn, rms.grad_fn):
        for name in rules.SAVED.get(node.name(), ()):
            field(node, name)
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    torch.testing.assert_close(y.grad_fn._saved_result1, mean)
    torch.testing.assert_close(y.grad_fn._saved_result2, (var + 1e-5).rsqrt())
    if rms.grad_fn.name() == "FusedRmsNormBackward0":
        rstd = (x.square().mean(3, keepdim=True) + torch.finfo(x.dtype).eps).rsqrt()
        torch.testing.assert_close(rms.grad_fn._saved_result1.reshape(-1), rstd.reshape(-1))


def _indexed():
    x, i, mask = leaf(4, 3), torch.tensor([[0, 1, 2]]), torch.tensor([True, False, True, False])[:, None].expand(4, 3)
    row, y = torch.tensor([0, 2]), leaf(2, 3)
    return {
        "GatherBackward0": x.gather(0, i),
        "IndexAddBackward0": x.index_add(0, row, y),
        "IndexBackward0": x[row],
        "IndexCopyBackward0": x.index_copy(0, row, y),
        "IndexFillBackward0": x.index_fill(0, row, 1.0),
        "IndexPutBackward0": x.index_put((row,), y),
        "IndexSelectBackward0": x.index_select(0, row),
        "MaskedScatterBackward0": x.masked_scatter(mask, y),
        "MaskedSelectBackward0": x.masked_select(mask),
        "ScatterAddBackward0": x.scatter_add(0, i, y),
        "ScatterBackward0": x.scatter(0, i, y),
        "ScatterReduceBackward0": x.scatter_reduce(0, i, y, "sum"),
        "SegmentReduceBackward0": torch.segment_reduce(x, "sum", lengths=torch.tensor([1, 3])),
    }


@pytest.mark.parametrize("name", _indexed())
def test_fields_whose_contents_are_read(name):
    node = node_of(_indexed()[name], name)
    for key in rules.LAYOUT_FIELDS[name]:
        field(node, key)
