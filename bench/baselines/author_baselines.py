"""Training steps of the authors' public code, from unmodified copies of their repositories.

Every function takes (root, model, optimizer, x, y) and the attack, and returns a step: a callable that trains the model
on the batch as the authors' script does and returns its loss; `at_epoch` does so for an epoch. `root` is the folder of
the repositories, in folders named as in `REPOSITORIES` and at the commits given there. The model maps images in [0, 1]
to logits. x: (n, 3, 32, 32), on the device of the model; y: (n,) int64. eps and step_size are in pixel units.

Some things are patched, only while the authors' code is imported or runs: `.cuda()` moves to the device of the model,
progress bars and prints show nothing, data sets are not loaded, and folders for output are temporary.
"""

import ast
import copy
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import CodeType, ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer

REPOSITORIES = {
    "TRADES": ("https://github.com/yaodongyu/TRADES", "6e8e11b7c281371c2f027ffadfbaea80361f09de"),
    "MART": ("https://github.com/YisenWang/MART", "2d83e17b381dd2ee52223695e517bf6d5ff09c2c"),
    "AWP": ("https://github.com/csdongxian/AWP", "a7acf5d842fccf1bbb4b91644352ce157d370a26"),
    "ATAS": ("https://github.com/HuangZhiChao95/ATAS", "674b195b124b7313a5e9052045f7659672300838"),
    "ATTA": ("https://github.com/hzzheng93/ATTA", "2c987de56986f2b0599e96b1b9c12b1df9b62b54"),
}
PADDING = 4  # pixels, of ATAS and ATTA
Step = Callable[[], float | None]


def trades(
    root: Path,
    model: nn.Module,
    optimizer: Optimizer,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
    beta: float = 6.0,
) -> Step:
    """One call of trades_loss, backward and an optimiser step."""
    loss_of = load(root / "TRADES", "trades").trades_loss
    return _loss_step(loss_of, model, optimizer, x, y, step_size, eps, steps, beta)


def mart(
    root: Path,
    model: nn.Module,
    optimizer: Optimizer,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
    beta: float = 6.0,
) -> Step:
    """One call of mart_loss, backward and an optimiser step."""
    loss_of = load(root / "MART", "mart").mart_loss
    return _loss_step(loss_of, model, optimizer, x, y, step_size, eps, steps, beta)


def at_awp(
    root: Path,
    model: nn.Module,
    optimizer: Optimizer,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
    gamma: float = 0.01,
) -> Step:
    """The body of the loop over train_batches in main()."""
    module = load(root / "AWP/AT_AWP", "train_cifar10")
    proxy = copy.deepcopy(model)
    adversary = module.AdvWeightPerturb(model, proxy, SGD(proxy.parameters(), lr=0.01), gamma)
    options = {"--attack-iters": steps}
    batches = [{"input": x, "target": y}]
    return _at_awp_loop(
        module, options, model, optimizer, batches, epsilon=eps, pgd_alpha=step_size, awp_adversary=adversary
    )


def at_epoch(
    root: Path,
    model: nn.Module,
    optimizer: Optimizer,
    images: np.ndarray,
    labels: list[int],
    *,
    batch_size: int,
    workers: int,
    eps: float,
    step_size: float,
    steps: int,
    padding: int = 4,
) -> Step:
    """The loop over train_batches in main() before AWP's warm-up is over, on their shuffled crops and flips.

    What main() does after the loop is left out: the test, a line of the log, and the checkpoints of every tenth epoch.

    Args:
        images: (N, 32, 32, 3) uint8.
        labels: N class indices.
        workers: Processes that crop and flip ahead; 2 in the script.
        padding: Pixels of reflection padding before the crop; with 0 there are no crops.
    """
    module = load(root / "AWP/AT_AWP", "train_cifar10")
    vars(module)["device"] = next(model.parameters()).device  # of the batches
    images = module.transpose(module.pad(images, padding) / 255.0)
    augmented = module.Transform(list(zip(images, labels, strict=True)), [module.Crop(32, 32), module.FlipLR()])
    batches = module.Loader(augmented, batch_size, shuffle=True, set_random_choices=True, num_workers=workers)
    options = {"--attack-iters": steps, "--awp-warmup": 1}
    return _at_awp_loop(module, options, model, optimizer, batches, epsilon=eps, pgd_alpha=step_size)


def _at_awp_loop(
    module: ModuleType,
    options: dict[str, int],
    model: nn.Module,
    optimizer: Optimizer,
    batches: Iterable[object],
    **variables: object,
) -> Step:
    """The loop over train_batches, taken from the source, in epoch 0; images are not normalised."""
    vars(module)["normalize"] = lambda images: images
    words = [str(word) for option in options.items() for word in option]
    with mock.patch.object(sys, "argv", ["train_cifar10.py", *words]):
        args = module.get_args()
    names: dict[str, Any] = vars(module) | {
        "args": args,
        "model": model,
        "opt": optimizer,
        "criterion": nn.CrossEntropyLoss(),
        "epoch": 0,
        "lr_schedule": lambda t, lr=optimizer.param_groups[0]["lr"]: lr,
        "train_batches": batches,
        **variables,
    }
    sums = dict.fromkeys(["train_loss", "train_acc", "train_robust_loss", "train_robust_acc", "train_n"], 0)
    body = _loop_code(_source(module), function="main", over="enumerate(train_batches)")

    def run() -> float:
        names.update(sums)
        exec(body, names)
        return names["train_robust_loss"] / names["train_n"]

    return _on_model_device(model, run)


def trades_awp(
    root: Path,
    model: nn.Module,
    optimizer: Optimizer,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
) -> Step:
    """One call of train() on one batch, after the warm-up without AWP; beta and gamma are the script's."""
    options = {"--epsilon": 255 * eps, "--step-size": 255 * step_size, "--num-steps": steps}
    with mock.patch.object(torchvision.datasets, "CIFAR10", return_value=[0]):
        module = load(
            root / "AWP/trades_AWP",
            "train_trades_cifar",
            {**options, "--no-cuda": None, "--model-dir": ...},
            {"progress": _module("progress"), "progress.bar": _module("progress.bar", Bar=_Bar)},
        )
    # Their accuracy views a strided tensor, which is an error in today's torch. It is only for the log.
    vars(module).update(print=_print_nothing, device=x.device, accuracy=_accuracy)
    proxy = copy.deepcopy(model)
    proxy_optimizer = SGD(proxy.parameters(), lr=module.args.lr)
    adversary = module.TradesAWP(model, proxy, proxy_optimizer, module.args.awp_gamma)
    return _on_model_device(
        model, lambda: module.train(model, [(x, y)], optimizer, module.args.awp_warmup, adversary)[0]
    )


def atas(root: Path, model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, *, eps: float) -> Step:
    """One call of train() on one batch, in the first epoch after the warm-up. x is padded here, cropped each step."""
    options: dict[str, object] = {"--epsilon": 255 * eps, "--model-dir": ...}
    module = load(root / "ATAS", "ATAS", options, {"tqdm": _module("tqdm", tqdm=_Bar)})
    batch = F.pad(x, (PADDING,) * 4), y, torch.arange(len(x), device=x.device)
    delta = torch.empty_like(batch[0]).uniform_(-eps, eps)
    gradients, epoch = torch.zeros(len(x), device=x.device), module.args.warmup_epochs + 1
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[10**9])

    def run() -> float:
        module.train(module.args, model, [batch], delta, optimizer, scheduler, gradients, epoch)
        return _Bar.loss

    return _on_model_device(model, run)


def atta(
    root: Path,
    model: nn.Module,
    optimizer: Optimizer,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
) -> Step:
    """One call of train() on one batch; x is padded here, and cropped in each step. The step returns no loss."""
    # train() assumes 50000 images: the batch is as large, and the permutation contains only the n that exist.
    options = {"--epsilon": eps, "--step-size": step_size, "--num-steps": steps, "--batch-size": 50000}
    module = load(root / "ATTA", "train_atta_cifar", {**options, "--no-cuda": None, "--model-dir": ...})
    numpy = SimpleNamespace(random=SimpleNamespace(permutation=lambda total: list(range(len(x)))))
    vars(module).update(print=_print_nothing, np=numpy)
    natural = F.pad(x, (PADDING,) * 4, value=0.5)
    stored = natural + 0.001 * torch.randn_like(natural)
    return _on_model_device(
        model, lambda: module.train(module.args, model, x.device, natural, stored, y, optimizer, epoch=1)
    )


def load(
    folder: Path, name: str, options: dict[str, object] | None = None, stubs: dict[str, ModuleType] | None = None
) -> ModuleType:
    """Imports a module of a folder, and leaves neither it nor its siblings behind in sys.modules.

    Args:
        folder: Folder of the module.
        name: Name of the module.
        options: Options of the command line that the module reads; None stands for an option without a value, ... for
            a temporary folder.
        stubs: Replacements, by name, of packages that need not be installed.

    Returns:
        The module.
    """
    with ExitStack() as stack:
        scratch = stack.enter_context(TemporaryDirectory())
        words = [name]
        for option, value in (options or {}).items():
            words += [option] if value is None else [option, scratch if value is ... else str(value)]
        stack.enter_context(torch.random.fork_rng(devices=[]))  # scripts set seeds,
        stack.enter_context(mock.patch.dict(os.environ))  # and the devices that torch may use
        stack.enter_context(
            mock.patch.multiple(sys, argv=words, path=[str(folder), *sys.path], dont_write_bytecode=True)
        )
        stack.enter_context(_isolated_modules({path.stem for path in folder.iterdir()}, stubs or {}))
        stack.enter_context(redirect_cuda(torch.device("cpu")))
        return importlib.import_module(name)


@contextmanager
def redirect_cuda(device: torch.device) -> Iterator[None]:
    """Within the context, `.cuda()` of tensors and modules moves them to this device."""

    def cuda(self, *args, **options):
        return self.to(device)

    with mock.patch.object(Tensor, "cuda", cuda), mock.patch.object(nn.Module, "cuda", cuda):
        yield


@contextmanager
def _isolated_modules(siblings: set[str], stubs: dict[str, ModuleType]) -> Iterator[None]:
    """Within the context, the names in `siblings`, such as "utils" or "models", are free for other modules."""

    def remove() -> dict[str, ModuleType]:
        names = [name for name in sys.modules if name.partition(".")[0] in siblings or name in stubs]
        return {name: sys.modules.pop(name) for name in names}

    before = remove()
    sys.modules.update(stubs)
    try:
        yield
    finally:
        remove()
        sys.modules.update(before)


class _Bar:
    """Replaces tqdm.tqdm and progress.bar.Bar: it shows nothing, and keeps the last loss that any bar received."""

    loss = elapsed_td = eta_td = 0.0

    def __init__(self, iterable=(), **options):
        self.iterable = iterable

    def __iter__(self):
        return iter(self.iterable)

    def set_postfix(self, loss: float) -> None:
        _Bar.loss = loss

    def next(self) -> None:
        pass

    finish = next


def _loss_step(loss_of: Callable, model: nn.Module, optimizer: Optimizer, x, y, *attack) -> Step:
    def run() -> float:
        loss = loss_of(model, x, y, optimizer, *attack)
        loss.backward()
        optimizer.step()
        return loss.item()

    return _on_model_device(model, run)


def _source(module: ModuleType) -> Path:
    if module.__file__ is None:
        raise ImportError(f"expected the module {module.__name__} in a file")
    return Path(module.__file__)


def _loop_code(path: Path, function: str, over: str) -> CodeType:
    """The code of a function's loop over the expression `over`."""
    top = next(node for node in ast.parse(path.read_text()).body if getattr(node, "name", None) == function)
    loop = next(node for node in ast.walk(top) if isinstance(node, ast.For) and ast.unparse(node.iter) == over)
    return compile(ast.Module([loop], []), str(path), "exec")


def _on_model_device(model: nn.Module, run: Step) -> Step:
    device = next(model.parameters()).device

    def step() -> float | None:
        with redirect_cuda(device):
            return run()

    return step


def _module(name: str, **attributes: object) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(attributes)
    return module


def _accuracy(logits: Tensor, labels: Tensor, topk: tuple[int, ...]) -> list[Tensor]:
    return [100 * (logits.topk(k, dim=1).indices == labels[:, None]).any(dim=1).float().mean() for k in topk]


def _print_nothing(*values: object) -> None:
    pass
