"""Per-example gradient norms from one backward pass over the autograd graph, exact where examples do not couple."""

import weakref
from collections import OrderedDict
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointError

from pyengm.pergrad.check import check_losses
from pyengm.pergrad.graph import Consumer, UndecidedError, UnservedError, find_consumers, visit_gradients
from pyengm.pergrad.oracle import exact_norms
from pyengm.pergrad.rules import Rows, as_rows, check_served, squares

# graph signature -> its rows, or why it is not served, and the parameters that this was found out for
_known: OrderedDict[tuple, tuple[list[Rows] | str, tuple[weakref.ref, ...]]] = OrderedDict()
KNOWN_GRAPHS = 64
MIXING_TOLERANCE = 1e-3  # of a row's norm: a change of sign is exact but for the order of sums
VERIFY_TOLERANCE = 1e-3  # relative, in float32 and float64; 16-bit passes round to 8 bits and get 3e-2


def walk_norms(losses: Tensor, params: Iterable[Tensor]) -> Tensor:
    """||dL_i / dparams|| for each of the losses (n,), (n,) in float32 or better; the graph is kept.

    The first call for a graph checks that no row of an output gradient belongs to two examples, and two norms against
    exact derivatives. Raises UnservedError for what is not served exactly, RuntimeError where the check of the norms
    fails, and what `exact_norms` raises.
    """
    check_losses(losses)
    params = [p for p in dict.fromkeys(params) if p.requires_grad]
    if not params:
        raise ValueError("none of the parameters requires grad")
    consumers, nodes = find_consumers(losses, params)
    # Parameters are known by themselves: another model may do other things in nodes of the same names.
    places = tuple((c.name, *((slot, id(p)) for slot, p in sorted(c.slots.items()))) for c in consumers)
    signature = (hash(nodes), places, losses.shape, losses.dtype)
    rows = _recall(signature, params)
    if isinstance(rows, str):
        raise UnservedError(rows)
    if rows is not None:
        return _norms(losses, consumers, rows)
    try:
        check_served(consumers)
        rows, proven = _find_rows(losses, consumers)
        norms = _norms(losses, consumers, rows)
    except UndecidedError:
        raise
    except (UnservedError, CheckpointError) as error:
        _remember(signature, params, f"{type(error).__name__}: {error}")
        raise UnservedError(str(error)) from error
    if norms.isfinite().all():
        _verify(losses, params, norms, consumers, nodes)
        if proven:
            _remember(signature, params, rows)
    return norms


def _norms(losses: Tensor, consumers: list[Consumer], rows: list[Rows]) -> Tensor:
    total = torch.zeros(losses.shape, dtype=torch.float64, device=losses.device)

    def add(k: int, g: Tensor) -> None:
        total.add_(squares(consumers[k], g, rows[k]).to(total.device))

    visit_gradients(losses, torch.ones_like(losses), consumers, add)
    return total.sqrt().to(torch.promote_types(losses.dtype, torch.float32))


def _find_rows(losses: Tensor, consumers: list[Consumer]) -> tuple[list[Rows], bool]:
    """Which example each row of each output gradient belongs to, by sign codes, and whether this is proven.

    Backward pass b weighs loss i by -1 where bit b of i is set. A row that belongs to one example changes its sign
    with that example's weight and nothing else; a row that two examples share changes its size. A gradient of zeros
    (behind a head that starts at zero, say) fits everything: it adds nothing now and proves nothing for later.
    """
    n = len(losses)
    numbers = torch.arange(n, device=losses.device)
    codes = [torch.ones_like(losses)]
    codes += [1 - 2 * (numbers >> b & 1).to(losses.dtype) for b in range((n - 1).bit_length())]
    sketches: list[dict[int, Tensor]] = []
    sizes: dict[int, Tensor] = {}
    for code in codes:
        sketch: dict[int, Tensor] = {}

        def project(k: int, g: Tensor, sketch=sketch) -> None:
            matrix = as_rows(consumers[k].node, g).double()
            direction = torch.arange(matrix.shape[1], dtype=torch.float64, device=g.device).add_(1).mul_(12.9898).sin_()
            sketch[k] = matrix @ direction
            if k not in sizes:
                sizes[k] = matrix.norm(dim=1)

        visit_gradients(losses, code, consumers, project)
        sketches.append(sketch)
    signs = torch.stack(codes)
    rows = [_rows_of(k, consumers[k], n, signs, sketches, sizes) for k in range(len(consumers))]
    return rows, all(k in sizes and sizes[k].any().item() for k in range(len(consumers)))


def _rows_of(k: int, consumer: Consumer, n: int, signs: Tensor, sketches: list[dict], sizes: dict) -> Rows:
    if k not in sizes:  # undefined, hence zero, in every pass
        return Rows(n, True)
    if len(sizes[k]) % n:
        raise UnservedError(f"{consumer.name} has {len(sizes[k])} rows for {n} examples")
    measured = torch.stack([sketch[k] for sketch in sketches])  # (codes, n T)
    times = len(sizes[k]) // n
    row = torch.arange(len(sizes[k]), device=measured.device)
    owners = {True: row // times} if times == 1 or n == 1 else {True: row // times, False: row % n}
    finite = sizes[k].isfinite()  # a broken example shows in the norms, not here
    fitting = []
    for batch_first, example in owners.items():
        expected = measured[0] * signs.to(measured)[:, example]
        if ((measured - expected).abs() <= MIXING_TOLERANCE * sizes[k])[:, finite].all():
            fitting.append(Rows(n, batch_first))
    if not fitting:
        raise UnservedError(f"the output gradient of {consumer.name} mixes examples")
    if len(fitting) > 1 and sizes[k].any():
        raise UndecidedError(f"the output gradient of {consumer.name} has too few rows that are not zero")
    return fitting[0]


def _verify(losses: Tensor, params: list[Tensor], norms: Tensor, consumers: list[Consumer], nodes: tuple) -> None:
    """Compares the largest and the median norm with exact derivatives."""
    chosen = norms.argsort(descending=True)[[0, len(norms) // 2]]
    exact = exact_norms(losses[chosen], params, chunk=1)
    half = any(dtype in (torch.float16, torch.bfloat16) for _, outputs, _ in nodes for _, dtype in outputs)
    if not torch.allclose(norms[chosen], exact, rtol=3e-2 if half else VERIFY_TOLERANCE, atol=1e-7):
        raise RuntimeError(
            f"the gradient norms {norms[chosen].tolist()} of examples {chosen.tolist()} should be {exact.tolist()}; "
            f'use norms="exact" and please report the model (nodes: {", ".join(sorted({c.name for c in consumers}))})'
        )


def _recall(signature: tuple, params: list[Tensor]) -> list[Rows] | str | None:
    value, alive = _known.get(signature, (None, ()))
    # The number id() of a parameter that is gone may have passed to another one.
    return value if [id(ref()) for ref in alive] == [id(p) for p in params] else None


def _remember(signature: tuple, params: list[Tensor], value: list[Rows] | str) -> None:
    _known[signature] = (value, tuple(map(weakref.ref, params)))
    while len(_known) > KNOWN_GRAPHS:
        _known.popitem(last=False)
