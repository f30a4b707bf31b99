"""A check of an installed wheel, on a CPU and in seconds: python -I tests/packaging/smoke.py [BACKEND ...]

BACKEND: kernels that the wheel must hold, cpu, cuda12, cuda13 (else cpu). Run outside the checkout: the package of the
environment is tested, and no test tools are needed. Raises AssertionError where something is wrong.
"""

import pkgutil
import subprocess
import sys
import sysconfig
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import torch
from torch.nn import functional as F

import pyengm
from pyengm import ops

CHECKOUT = Path(__file__).resolve().parents[2]


def main(wanted: list[str]) -> None:
    package = Path(pyengm.__file__).resolve().parent
    assert not package.is_relative_to(CHECKOUT), f"expected an installed pyengm, got the checkout's, {package}"
    modules = sorted(module.name for module in pkgutil.iter_modules(pyengm.__path__))
    of_cuda = [name[1:] for name in modules if name.startswith("_cuda")]
    kernels = ["cpu"] * ("_C" in modules) + of_cuda
    assert {*wanted} <= {*kernels}, f"expected the kernels {wanted}, got {kernels}"
    for name in of_cuda:  # each imports, whichever of them the driver of this machine runs
        assert hasattr(import_module(f"pyengm._{name}"), "row_norms_f32"), f"pyengm._{name} has no kernels"
    backends = ops.available_backends()
    torch.manual_seed(0)
    check_ops("cpu")
    if "cuda" in backends and torch.cuda.is_available():
        check_ops("cuda")
    check_engm_step()
    check_command()
    print(f"pyengm {pyengm.__version__}, torch {torch.__version__}, Python {sys.version.split()[0]}: {kernels} work")


def check_ops(device: str) -> None:
    """Elementwise ops have the reference's bits; sums differ in the order of additions, n = 245 of them at most."""
    x, grad = torch.rand(3, 5, 7, 7, device=device), torch.randn(3, 5, 7, 7, device=device)
    same_bits(device, lambda b: ops.pgd_linf_step_(x + 0.01, grad, x, 0.02, 0.03, backend=b))
    same_bits(device, lambda b: ops.clip_weights(torch.tensor([0.5, 4.0, 1.0], device=device), 1.0, backend=b))
    index = torch.tensor([3, 0, 2**31], device=device)
    same_bits(device, lambda b: ops.philox_uniform(index, (5,), seed=1, purpose=ops.Purpose.SHUFFLE, backend=b))
    close(device, lambda b: ops.pgd_l2_step_(x.clone(), grad, x, 0.1, 0.5, backend=b))
    close(device, lambda b: ops.row_norms(grad.flatten(1), backend=b))
    g = torch.randn(3, 4, 7, 7, device=device)
    for conv_sqnorm in (ops.conv_direct_sqnorm, ops.conv_gram_sqnorm):
        close(device, lambda b, op=conv_sqnorm: op(x, g, (3, 3), padding=(1, 1), backend=b))


def same_bits(device: str, op) -> None:
    assert torch.equal(op(device), op("reference")), "kernel and reference differ"


def close(device: str, op) -> None:
    torch.testing.assert_close(op(device), op("reference"), rtol=1e-5, atol=1e-6)


def check_engm_step() -> None:
    """One step of ENGM against the gradients of single examples, clipped and averaged by hand."""
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(48, 10))
    x, y, lr, alpha = torch.rand(4, 1, 6, 6), torch.arange(4), 0.1, 1.0
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad(F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), parameters) for i in range(4)]
    norms = torch.stack([torch.cat([p.flatten() for p in g]).norm() for g in gradients])
    assert norms.max() > alpha, "nothing would be clipped"
    weights = (alpha / norms).clamp(max=1) / len(x)
    expected = [
        p.detach() - lr * sum(w * g for w, g in zip(weights, of_p, strict=True))
        for p, of_p in zip(parameters, zip(*gradients, strict=True), strict=True)
    ]
    optimizer = pyengm.ENGM(parameters, lr=lr, momentum=0, weight_decay=0, alpha=alpha)
    optimizer.backward(F.cross_entropy(model(x), y, reduction="none"))
    optimizer.step()
    torch.testing.assert_close([p.detach() for p in parameters], expected, rtol=1e-5, atol=1e-6)


def check_command() -> None:
    """The pyengm command of this environment starts and prints the version."""
    command = [Path(sysconfig.get_path("scripts"), "pyengm"), "--version"]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    assert printed == pyengm.__version__ == version("pyengm"), f"pyengm --version printed {printed!r}"


if __name__ == "__main__":
    main(sys.argv[1:] or ["cpu"])
