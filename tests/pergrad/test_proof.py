"""Proofs against brute force, and against fields, axes and constants that change from one call to the next."""

import pytest
import torch
from helpers.toy_models import TOY_MODELS, fresh, norms_of
from torch import nn
from torch.nn import functional as F

from pyengm import per_example_grad_norms
from pyengm.errors import UnsupportedOperationError
from pyengm.pergrad import weight_usage
from pyengm.pergrad.autograd_graph import LEAF, trace
from pyengm.pergrad.batch_norm.frozen import frozen_norms
from pyengm.pergrad.hooks import visit_gradients
from pyengm.pergrad.layout import SHARED
from pyengm.pergrad.proof import prove

N, TOLERANCE = 4, 1e-10
R = torch.randn


def lin():
    return nn.Linear(3, 3).double()


def x(*shape):
    return R(*shape).double()


def mask(*values):
    return torch.tensor(values, dtype=torch.float64)


def scatter_rows(h, order, size=None):
    return h.new_zeros(size or len(h), *h.shape[1:]).index_add(0, torch.tensor(order), h)


def written(h, into):
    out = torch.zeros_like(h)
    out[into] = h
    return out


def second(function, *shape):
    """The input gradient of a function of the layer's output, squared and summed for each example."""
    leaf = x(*shape).requires_grad_()
    (g,) = torch.autograd.grad(function(leaf).sum(), leaf, create_graph=True)
    return g.flatten(1).square().sum(1)


PERM = ([0, 1, 2, 3], [2, 3, 1, 0])
KEPT = torch.tensor([[1, 0, 1, 0, 1, 0, 1, 0], [1, 1, 0, 0, 1, 1, 0, 0]], dtype=torch.bool)
ROWS = torch.tensor([[0, 0, 1, 2, 3, 3], [3, 1, 1, 2, 0, 0]])  # to which example each row goes
# name -> losses (4,) of a layer m in batch k = 0, 1: one graph, of which a field or a constant changes.
CHANGES = {
    "permute": lambda m, k: m(x(4, 4, 3)).permute(*((0, 1, 2), (1, 0, 2))[k]).square().sum((1, 2)),
    "transpose": lambda m, k: m(x(4, 4, 3)).transpose(0, k).square().sum((1, 2)),
    "slice start": lambda m, k: (lambda t: t[4 * k : 4 * k + 4])(m(x(8, 3)).square().sum(1)),
    "slice step": lambda m, k: (lambda t: t[:: k + 1][:4])(m(x(8, 3)).square().sum(1)[: 4 + 4 * k]),
    "select": lambda m, k: m(x(2, 4, 3)).square().sum(2)[k],
    "select of examples": lambda m, k: (lambda t: torch.stack([t[i] for i in PERM[k]]))(m(x(4, 3)).square().sum(1)),
    "split": lambda m, k: m(x(8, 3)).square().sum(1).split(4)[k],
    "split with sizes": lambda m, k: m(x(6, 3)).square().sum(1).split(([4, 2], [2, 4])[k])[k],
    "unbind": lambda m, k: m(x(2, 4, 3)).square().sum(2).unbind(0)[k],
    "cat": lambda m, k: (lambda a, b: torch.cat((a, b) if k else (b, a)))(*m(x(2, 2, 3)).square().sum(2)),
    "cat along": lambda m, k: torch.cat([m(x(4, 4, 3)), m(x(4, 4, 3))], 2).square().sum(2).sum(1 - k),
    "stack along": lambda m, k: torch.stack([m(x(4, 3)).square().sum(1) for _ in range(4)], k).sum(1),
    "constant pad": lambda m, k: F.pad(m(x(3, 3)).square().sum(1), (k, 1 - k)),
    "flip": lambda m, k: m(x(4, 4, 3)).flip(k).square().sum((1, 2)),
    "roll": lambda m, k: m(x(4, 3)).roll(k + 1, 0).square().sum(1),
    "roll along": lambda m, k: m(x(4, 4, 3)).roll(1, k).square().sum((1, 2)),
    "repeat": lambda m, k: m(x(2, 3)).repeat(2, 1).square().sum(1)[k : k + 3 : 2].repeat(2),
    "unfold": lambda m, k: m(x(5, 5, 3)).square().sum(2).unfold(k, 2, 1).sum((1, 2))[:4],
    "sum": lambda m, k: m(x(4, 4, 3)).square().sum(2).sum(k),
    "mean": lambda m, k: m(x(4, 4, 3)).square().sum(2).mean(k),
    "amax": lambda m, k: m(x(4, 4, 3)).square().sum(2).amax(k),
    "max": lambda m, k: m(x(4, 4, 3)).square().sum(2).max(k).values,
    "logsumexp": lambda m, k: m(x(4, 4, 3)).square().sum(2).logsumexp(k),
    "var": lambda m, k: m(x(4, 4, 3)).square().sum(2).var(k),
    "vector norm": lambda m, k: torch.linalg.vector_norm(m(x(4, 4, 3)).square().sum(2), dim=k),
    "softmax": lambda m, k: (m(x(4, 4, 3)).square().sum(2).softmax(k) * mask(1, 2, 3, 4)).sum(k),
    "log softmax": lambda m, k: (m(x(4, 4, 3)).square().sum(2).log_softmax(k) * mask(1, 2, 3, 4)).sum(k),
    "cumsum": lambda m, k: (m(x(4, 4, 3)).square().sum(2).cumsum(k) * mask(1, 2, 3, 4)).sum(k),
    "sort": lambda m, k: (m(x(4, 4, 3)).square().sum(2).sort(k).values * mask(1, 2, 3, 4)).sum(k),
    "topk": lambda m, k: m(x(4, 4, 3)).square().sum(2).topk(4, k).values.square().sum(k),
    "glu": lambda m, k: F.glu(m(x(4, 4, 3)).square().sum(2), k).sum(k).repeat(2)[:4].sum() * mask(1, 1, 1, 1),
    "layer norm": lambda m, k: F.layer_norm(m(x(4, 4, 3)), ((3,), (4, 3))[k]).pow(3).sum((1, 2)),
    "group norm": lambda m, k: F.group_norm(m(x(4, 4, 3)), (2, 4)[k]).pow(3).sum((1, 2)),
    "gather": lambda m, k: m(x(4, 4, 3)).square().sum(2).gather(k, torch.tensor(PERM).repeat(2, 1)).sum(k),
    "scatter": lambda m, k: x(4, 4).scatter(k, torch.tensor(PERM).repeat(2, 1), m(x(4, 4, 3)).square().sum(2)).sum(k),
    "gather of rows": lambda m, k: m(x(4, 3)).gather(0, torch.tensor(PERM[k])[:, None].expand(4, 3)).square().sum(1),
    "gather of rows of each column": lambda m, k: (
        m(x(4, 3)).gather(0, torch.stack([torch.tensor(PERM[k]), *[torch.arange(4)] * 2], 1)).square().sum(1)
    ),
    "scatter of rows": lambda m, k: x(4, 3).scatter_add(0, ROWS[k][:, None].expand(6, 3), m(x(6, 3))).square().sum(1),
    "scatter of elements": lambda m, k: (
        x(4, 3).scatter_add(0, torch.stack([ROWS[k], *[ROWS[0]] * 2], 1), m(x(6, 3))).square().sum(1)
    ),
    "scatter that replaces": lambda m, k: (
        x(4, 3).scatter(0, torch.tensor(PERM[k])[:, None].expand(4, 3), m(x(4, 3))).square().sum(1)
    ),
    "scatter reduce": lambda m, k: (
        x(4, 3).scatter_reduce(0, ROWS[k][:, None].expand(6, 3), m(x(6, 3)), "amax").square().sum(1)
    ),
    "index copy": lambda m, k: x(4, 3).index_copy(0, torch.tensor(PERM[k]), m(x(4, 3))).square().sum(1),
    "index fill": lambda m, k: m(x(4, 3)).index_fill(0, torch.tensor([k]), 1.0).square().sum(1),
    "index put of a row": lambda m, k: x(4, 3).index_put((torch.tensor([k]),), m(x(3))).square().sum(1),
    "index put of two axes": lambda m, k: (
        x(4, 2, 3).index_put((torch.tensor(PERM[k]), torch.tensor([0, 1, 1, 0])), m(x(4, 3))).square().sum((1, 2))
    ),
    "mask of positions": lambda m, k: x(4, 2, 3).index_put((KEPT[k].view(4, 2),), m(x(4, 3))).square().sum((1, 2)),
    "index of a mask of positions": lambda m, k: (
        torch.zeros(4)
        .double()
        .index_add(0, KEPT[k].view(4, 2).nonzero()[:, 0], m(x(4, 2, 3))[KEPT[k].view(4, 2)].sum(1))
    ),
    "masked scatter": lambda m, k: x(4, 2, 3).masked_scatter(KEPT[k].view(4, 2, 1), m(x(5, 3))).square().sum((1, 2)),
    "masked scatter of elements": lambda m, k: (
        x(4, 2).masked_scatter(KEPT[k].view(4, 2), m(x(4, 3)).sum(1)).square().sum(1)
    ),
    "masked select": lambda m, k: (
        torch.zeros(4)
        .double()
        .index_add(
            0,
            KEPT[k].view(4, 2).nonzero()[:, 0],
            m(x(8, 3)).sum(1).view(4, 2).masked_select(KEPT[k].view(4, 2)).square(),
        )
    ),
    "segments of offsets": lambda m, k: torch.segment_reduce(
        m(x(8, 3)).square().sum(1), "max", offsets=torch.tensor(([0, 2, 4, 6, 8], [0, 1, 4, 7, 8])[k])
    ),
    "slice scatter": lambda m, k: x(4, 4, 3).slice_scatter(m(x(4, 2, 3)), 1, k, k + 2).square().sum((1, 2)),
    "slice scatter of examples": lambda m, k: x(4, 3).slice_scatter(m(x(2, 3)), 0, k, k + 2).square().sum(1),
    "select scatter": lambda m, k: x(4, 4).select_scatter(m(x(4, 3)).square().sum(1), k, 1).sum(1),
    "fourier": lambda m, k: torch.fft.fft(m(x(4, 4, 3)).square().sum(2), dim=1 - k).abs().sum(1),
    "real fourier": lambda m, k: torch.fft.rfft2(m(x(4, 4, 3)), dim=((1, 2), (0, 2))[k]).abs().sum((1, 2)),
    "complex numbers": lambda m, k: torch.view_as_real(
        torch.view_as_complex(m(x(4, 2, 2, 3))[..., k : k + 2].contiguous()).transpose(1, 2)
    ).sum((1, 2, 3)),
    "distances": lambda m, k: torch.cdist(*((m(x(4, 3)), x(4, 3)), (x(4, 3), m(x(4, 3))))[k]).sum(k),
    "outer product": lambda m, k: torch.addr(x(4, 3), m(x(4, 3)).sum(1), x(3)).square().sum(1),
    "empty slice": lambda m, k: (lambda t: torch.cat([t[:, k:k], t[:, :k], t[:, k:]], 1).square().sum(1))(m(x(4, 3))),
    "second derivative": lambda m, k: second(lambda t: m(t).square(), 4, 3),
    "second derivative of a softmax": lambda m, k: second(lambda t: m(t).softmax(1 + k).square(), 4, 4, 3),
    "second derivative of a softmax along": lambda m, k: second(lambda t: m(t).softmax(1 - k).square(), 4, 4, 3),
    "second derivative of a slice": lambda m, k: second(lambda t: m(t)[k : k + 3].square(), 4, 3),
    "second derivative of a step": lambda m, k: second(lambda t: m(t)[:, :: k + 1][:, :2].square(), 4, 4, 3),
    "second derivative of select": lambda m, k: second(lambda t: m(t).select(0, k + 1).pow(3), 4, 3),
    "second derivative of an axis": lambda m, k: second(lambda t: m(t).select(k, 1).pow(3), 4, 4, 3),
    "second derivative of an index": lambda m, k: second(
        lambda t: m(t)[PERM[k]].pow(3) * mask(1, 2, 3, 4)[:, None], 4, 3
    ),
    "second derivative of a loss": lambda m, k: second(
        lambda t: F.cross_entropy(m(t), torch.tensor([0, 1, 2, k]), reduction=("none", "sum")[k]), 4, 3
    ),
    "second derivative of layer norm": lambda m, k: second(
        lambda t: F.layer_norm(m(t), ((3,), (4, 3))[k], None, None).pow(3), 4, 4, 3
    ),
    "second derivative of group norm": lambda m, k: second(lambda t: F.group_norm(m(t), (2, 4)[k]).pow(3), 4, 4, 3),
    "second derivative of glu": lambda m, k: second(lambda t: F.glu(m(t), k).square(), 4, 4, 3),
    "second derivative of padding": lambda m, k: second(
        lambda t: F.pad(m(t), (1, 1), ("reflect", "replicate")[k]) ** 3, 4, 4, 3
    ),
    "second derivative of pooling": lambda m, k: second(
        lambda t: (F.max_pool2d, F.avg_pool2d)[k](m(t), 2).pow(3) + F.adaptive_avg_pool2d(m(t), (2, 1)).pow(3),
        4,
        2,
        4,
        3,
    ),
    "second derivative of a lookup": lambda m, k: second(
        lambda t: F.embedding(torch.tensor(PERM[k]), m(t)).pow(3), 4, 3
    ),
    "index": lambda m, k: m(x(4, 3)).square().sum(1)[torch.tensor(PERM[k])],
    "index of labels": lambda m, k: m(x(4, 3))[torch.arange(4), torch.tensor(([0, 1, 2, 0], [2, 2, 1, 1])[k])].square(),
    "index of a mask": lambda m, k: m(x(8, 3)).square().sum(1)[torch.tensor(([1, 0] * 4, [1, 1, 0, 0] * 2)[k]).bool()],
    "index select": lambda m, k: m(x(4, 3)).square().sum(1).index_select(0, torch.tensor(PERM[k])),
    "index add": lambda m, k: scatter_rows(m(x(6, 3)).square().sum(1), ([0, 0, 1, 2, 3, 3], [3, 1, 1, 2, 0, 0])[k], 4),
    "index put": lambda m, k: written(m(x(4, 3)).square().sum(1), torch.tensor(PERM[k])),
    "one-hot product": lambda m, k: torch.eye(4).double()[PERM[k]] @ m(x(4, 3)).square().sum(1),
    "product with a matrix": lambda m, k: (torch.eye(4) + k * 0.05).double() @ m(x(4, 3)).square().sum(1),
    "batched one-hot product": lambda m, k: (torch.eye(4).double()[PERM[k]][None] @ m(x(1, 4, 3)))[0].square().sum(1),
    "masked sum": lambda m, k: (m(x(4, 3)).square().sum(1) * torch.eye(4).double()[PERM[k]]).sum(1),
    "where": lambda m, k: (lambda t: torch.where(mask(k, k, 1 - k, 1 - k).bool(), t, t.flip(0)))(
        m(x(4, 3)).sum(1) ** 2
    ),
    "masked fill": lambda m, k: (lambda t: t + t.flip(0).masked_fill(mask(1, 1, k, 1).bool(), 0))(
        m(x(4, 3)).sum(1) ** 2
    ),
    "gate": lambda m, k: (lambda t: t + k * t.roll(1, 0))(m(x(4, 3)).square().sum(1)),
    "segments": lambda m, k: torch.segment_reduce(
        m(x(8, 3)).square().sum(1), "sum", lengths=torch.tensor(([2, 2, 2, 2], [1, 3, 3, 1])[k])
    ),
    "sequence first": lambda m, k: m(x(6, 3, 3)).square().sum(2)[:, ([0, 1, 2, 0], [2, 0, 1, 1])[k]].sum(0),
    "cancelling terms": lambda m, k: (lambda t: 3 * t + mask(0, 0, 1, -1) * (t[2] - t[3]) * k)(m(x(4, 3)).sum(1) ** 2),
    "weak term": lambda m, k: (lambda t: t + 1e-5 * k * t.mean())(m(x(4, 3)).square().sum(1)),
    "write in place": lambda m, k: (lambda t: t.index_put_((torch.tensor(PERM[k]),), t.detach() * 2))(
        m(x(4, 3)).sum(1)
    ),
    "cumulative in place": lambda m, k: (lambda t: (t[:, k].cumsum_(0), t.square().sum(1))[1])(m(x(4, 3)) * 1),
    "strided": lambda m, k: m(x(8, 3)).square().sum(1).as_strided((4,), (2 - k,), k),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_between_two_calls_is_right_or_refused(name):
    m = lin()
    params = list(m.parameters())
    for k in (0, 1, 0):
        losses = CHANGES[name](m, k)
        assert losses.shape == (N,)
        expected = norms_of(losses, params)
        refusal = None
        try:
            found = per_example_grad_norms(losses, params)
        except UnsupportedOperationError as error:
            refusal = str(error)
        if refusal is None:
            torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=1e-14)
        else:  # which names a node and a way out
            assert "Backward" in refusal
            assert 'norms="exact"' in refusal


# A coupling, a constant whose contents decide, or an operation that the graph does not describe.
PROBED = {
    "cancelling terms", "cat", "cumulative in place", "gate", "masked fill", "strided", "weak term", "where",
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_what_needs_no_probe(name):
    m = lin()
    for k in (0, 1):
        assert bool(prove(trace(CHANGES[name](m, k)), N).unproven) == (name in PROBED)


class Unknown(torch.autograd.Function):
    """A function of the user, of which nothing is known."""

    @staticmethod
    def forward(ctx, t):
        ctx.save_for_backward(t)
        return t.sin()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()


unknown = Unknown.apply
IDS = torch.tensor([[0, 1, 2], [2, 1, 1], [0, 0, 3], [3, 1, 2]])
# name -> (n, T, D) features below a function of which nothing is known, of tokens, a table w (4, 3) and a layer m
TABLES = {
    "positions": lambda m, e, w: e + F.embedding(torch.arange(3), w),
    "positions with a batch axis": lambda m, e, w: e + F.embedding(torch.arange(3)[None], w),
    "labels": lambda m, e, w: e + F.embedding(torch.tensor([0, 1, 1, 3]), w)[:, None],
    "labels, outside as well": lambda m, e, w: (lambda t: unknown(e + t) * t)(F.embedding(IDS[:, 0], w)[:, None]),
    "a parameter, outside as well": lambda m, e, w: (lambda t: unknown(e + t) * t)(w[:1].expand(4, 3, 3)),
    "tokens by an index": lambda m, e, w: e * w[IDS],
    "a relative table": lambda m, e, w: (
        e + w[torch.tensor([[0, 1, 2], [1, 0, 1], [2, 1, 0]]).view(-1)].view(3, 3, 3)[0]
    ),
    "one minus a parameter": lambda m, e, w: e * w[0] + e.flip(1) * (1 - w[0]),
    "one plus a parameter": lambda m, e, w: e * (1 + w[0]),
    "a masked parameter": lambda m, e, w: e @ torch.where(torch.eye(3).bool(), w[:3], 0.0),
    "a table through a layer": lambda m, e, w: e + m(F.embedding(torch.arange(3), w)),
    "tied tokens": lambda m, e, w: e + F.embedding(IDS, w).roll(1, 1),
    "layers": lambda m, e, w: m(m(e).sin()),
}


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("name", TABLES)
def test_tables_below_an_unknown_node(name, requires_grad):
    m, w = lin(), R(4, 3).double().requires_grad_()
    tokens = x(4, 3).requires_grad_(requires_grad)
    for _ in range(2):
        features = TABLES[name](m, F.embedding(IDS, tokens), w)
        losses = (features if "outside" in name else unknown(features)).square().sum((1, 2))
        params = [
            p
            for p in (w, *m.parameters())
            if torch.autograd.grad(losses.sum(), p, retain_graph=True, allow_unused=True)[0] is not None
        ]
        params += [tokens] if requires_grad else []
        torch.testing.assert_close(
            per_example_grad_norms(losses, params), norms_of(losses, params), rtol=TOLERANCE, atol=0
        )


@pytest.mark.parametrize("name", TOY_MODELS)
def test_proofs_agree_with_brute_force(name):
    """An element that a proof gives to one example has no derivative of any other loss."""
    model, loss, inputs = fresh(name)
    compare_with_brute_force(loss(model, inputs))


@pytest.mark.parametrize("name", CHANGES)
def test_proofs_of_changes_agree_with_brute_force(name):
    m = lin()
    for k in (0, 1):
        compare_with_brute_force(CHANGES[name](m, k))


def compare_with_brute_force(losses):
    graph = trace(losses)
    frozen = frozen_norms(graph)
    proof = prove(graph, len(losses), [norm.index for norm in frozen])
    places = [
        k for k, node in enumerate(graph.nodes) if node.name() != LEAF and proof.layouts[k] and k not in proof.probed
    ]
    for example in range(len(losses)):

        def look(place, grads, example=example):
            for output, layout in proof.layouts[place].items():
                if grads[output] is None or layout == SHARED:
                    continue
                flat = grads[output].flatten()
                owners = torch.tensor(layout.owners)[torch.arange(len(flat)) // layout.step % len(layout.owners)]
                assert not flat[owners != example].any(), graph.nodes[place].name()

        seed = torch.zeros_like(losses)
        seed[example] = 1
        visit_gradients(graph, losses, seed, places, look, frozen=frozen)


@pytest.mark.parametrize("name", TOY_MODELS)
def test_every_path_to_a_parameter_crosses_a_use(name):
    model, loss, inputs = fresh(name)
    losses = loss(model, inputs)
    graph, params = trace(losses), list(model.parameters())
    names = [str(k) for k in range(len(params))]
    usage, _ = weight_usage.find_usage(graph, len(losses), params, names, frozen_norms(graph))
    uses = {(use.index, slot) for use in usage.uses for slot in use.slots}
    wanted, seen, stack = {id(p) for p in params}, {0}, [0]
    while stack:
        place = stack.pop()
        leaf = graph.leaf(place)
        assert leaf is None or id(leaf) not in wanted
        for slot, child in enumerate(graph.children[place]):
            if child is not None and (place, slot) not in uses and child[0] not in seen:
                seen.add(child[0])
                stack.append(child[0])
