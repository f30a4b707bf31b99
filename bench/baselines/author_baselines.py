"""Training steps of the authors' public code, from unmodified copies of their repositories.

Every function takes (root, model, optimizer, x, y) and the attack, and returns a step: a callable that trains the model
on the batch as the authors' script does and returns its loss; `at_epoch` does so for an epoch. root: holds the
repositories as folders named as in `REPOSITORIES`, at the commits there. model: logits of images in [0, 1].
x: (n, 3, 32, 32), on the device of the model; y: (n,) int64. eps, step: in pixel units.

Patched at run time, and only while their code is imported or runs: `.cuda()` goes to the device of the model, progress
bars and prints show nothing, their data sets are not loaded and folders for output are temporary.
"""

import ast
import copy
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, SimpleNamespace
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
    root: Path, model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, *, eps, step, steps, beta=6.0
) -> Step:
    """trades_loss, backward and step."""
    loss_of = load(root / "TRADES", "trades").trades_loss
    return _loss_step(loss_of, model, optimizer, x, y, step, eps, steps, beta)


def mart(
    root: Path, model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, *, eps, step, steps, beta=6.0
) -> Step:
    """mart_loss, backward and step."""
    loss_of = load(root / "MART", "mart").mart_loss
    return _loss_step(loss_of, model, optimizer, x, y, step, eps, steps, beta)


def at_awp(
    root: Path,
    model: nn.Module,
    optimizer: Optimizer,
    x: Tensor,
    y: Tensor,
    *,
    eps,
    step,
    steps,
    gamma=0.01,
) -> Step:
    """The body of the loop over train_batches in main()."""
    module = load(root / "AWP/AT_AWP", "train_cifar10")
    proxy = copy.deepcopy(model)
    adversary = module.AdvWeightPerturb(model, proxy, SGD(proxy.parameters(), lr=0.01), gamma)
    options = {"--attack-iters": steps}
    batches = [{"input": x, "target": y}]
    return _at_awp_loop(
        module, options, model, optimizer, batches, epsilon=eps, pgd_alpha=step, awp_adversary=adversary
    )


def at_epoch(
    root: Path,
    model: nn.Module,
    optimizer: Optimizer,
    images: np.ndarray,
    labels: list[int],
    *,
    batch_size,
    workers,
    eps,
    step,
    steps,
    padding=4,
) -> Step:
    """The loop over train_batches in main() before AWP's warm-up is over, on their shuffled crops and flips.

    images: (N, 32, 32, 3) uint8. workers: processes that crop and flip ahead, 2 in the script. padding: pixels, by
    reflection, within which they crop; 0: no crops. What main() does after the loop is left out: the test, a line of
    the log, and checkpoints, the last every ten epochs.
    """
    module = load(root / "AWP/AT_AWP", "train_cifar10")
    module.device = next(model.parameters()).device  # of the batches
    images = module.transpose(module.pad(images, padding) / 255.0)
    augmented = module.Transform(list(zip(images, labels, strict=True)), [module.Crop(32, 32), module.FlipLR()])
    batches = module.Loader(augmented, batch_size, shuffle=True, set_random_choices=True, num_workers=workers)
    options = {"--attack-iters": steps, "--awp-warmup": 1}
    return _at_awp_loop(module, options, model, optimizer, batches, epsilon=eps, pgd_alpha=step)


def _at_awp_loop(module: ModuleType, options: dict[str, int], model, optimizer, batches, **names: object) -> Step:
    """The loop over train_batches, cut out of the source, in epoch 0; images are not normalised."""
    module.normalize = lambda images: images
    words = [str(word) for option in options.items() for word in option]
    with mock.patch.object(sys, "argv", ["train_cifar10.py", *words]):
        args = module.get_args()
    names = vars(module) | {
        "args": args,
        "model": model,
        "opt": optimizer,
        "criterion": nn.CrossEntropyLoss(),
        "epoch": 0,
        "lr_schedule": lambda t, lr=optimizer.param_groups[0]["lr"]: lr,
        "train_batches": batches,
        **names,
    }
    sums = dict.fromkeys(["train_loss", "train_acc", "train_robust_loss", "train_robust_acc", "train_n"], 0)
    body = _loop(Path(module.__file__), function="main", over="enumerate(train_batches)")

    def run() -> float:
        names.update(sums)
        exec(body, names)
        return names["train_robust_loss"] / names["train_n"]

    return _on_its_device(model, run)


def trades_awp(root: Path, model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, *, eps, step, steps) -> Step:
    """train() on one batch, after the warm-up without AWP; beta and gamma as in the script."""
    bar = ModuleType("progress.bar")
    bar.Bar = _Bar
    options = {"--epsilon": 255 * eps, "--step-size": 255 * step, "--num-steps": steps}
    with mock.patch.object(torchvision.datasets, "CIFAR10", return_value=[0]):
        module = load(
            root / "AWP/trades_AWP",
            "train_trades_cifar",
            {**options, "--no-cuda": None, "--model-dir": ...},
            {"progress": ModuleType("progress"), "progress.bar": bar},
        )
    module.print, module.device = _silent, x.device
    # Theirs views a strided tensor, an error in today's torch. It is only for the log.
    module.accuracy = lambda logits, labels, topk: [
        100 * (logits.topk(k, dim=1).indices == labels[:, None]).any(dim=1).float().mean() for k in topk
    ]
    proxy = copy.deepcopy(model)
    rate = SGD(proxy.parameters(), lr=module.args.lr)
    adversary = module.TradesAWP(model, proxy, rate, module.args.awp_gamma)
    return _on_its_device(model, lambda: module.train(model, [(x, y)], optimizer, module.args.awp_warmup, adversary)[0])


def atas(root: Path, model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, *, eps) -> Step:
    """train() on one batch, in the first epoch after the warm-up; x is padded here and cropped in every step."""
    tqdm = ModuleType("tqdm")
    tqdm.tqdm = _Bar
    module = load(root / "ATAS", "ATAS", {"--epsilon": 255 * eps, "--model-dir": ...}, {"tqdm": tqdm})
    batch = F.pad(x, (PADDING,) * 4), y, torch.arange(len(x), device=x.device)
    delta = torch.empty_like(batch[0]).uniform_(-eps, eps)
    gradients, epoch = torch.zeros(len(x), device=x.device), module.args.warmup_epochs + 1
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[10**9])

    def run() -> float:
        module.train(module.args, model, [batch], delta, optimizer, scheduler, gradients, epoch)
        return _Bar.loss

    return _on_its_device(model, run)


def atta(root: Path, model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, *, eps, step, steps) -> Step:
    """train() on one batch; x is padded here and cropped in every step. Returns no loss."""
    # 50000 images are written into train(): one batch as large, of which a permutation names the n that there are.
    options = {"--epsilon": eps, "--step-size": step, "--num-steps": steps, "--batch-size": 50000}
    module = load(root / "ATTA", "train_atta_cifar", {**options, "--no-cuda": None, "--model-dir": ...})
    module.print = _silent
    module.np = SimpleNamespace(random=SimpleNamespace(permutation=lambda total: list(range(len(x)))))
    natural = F.pad(x, (PADDING,) * 4, value=0.5)
    stored = natural + 0.001 * torch.randn_like(natural)
    return _on_its_device(
        model, lambda: module.train(module.args, model, x.device, natural, stored, y, optimizer, epoch=1)
    )


def load(
    folder: Path, name: str, options: dict[str, object] | None = None, stubs: dict[str, ModuleType] | None = None
) -> ModuleType:
    """Imports module `name` of a folder, and leaves neither it nor its siblings behind in sys.modules.

    options: of the command line that the module reads; None: an option without a value, ...: a temporary folder.
    stubs: stand for packages that need not be installed.
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
        stack.enter_context(_modules_put_back({path.stem for path in folder.iterdir()}, stubs or {}))
        stack.enter_context(cuda_means(torch.device("cpu")))
        return importlib.import_module(name)


@contextmanager
def cuda_means(device: torch.device) -> Iterator[None]:
    """Tensors and modules go to this device when told to go to a GPU."""

    def cuda(self, *args, **options):
        return self.to(device)

    with mock.patch.object(Tensor, "cuda", cuda), mock.patch.object(nn.Module, "cuda", cuda):
        yield


@contextmanager
def _modules_put_back(siblings: set[str], stubs: dict[str, ModuleType]) -> Iterator[None]:
    """Meanwhile the names in `siblings`, such as "utils" or "models", are free for other modules."""

    def take_out() -> dict[str, ModuleType]:
        names = [name for name in sys.modules if name.partition(".")[0] in siblings or name in stubs]
        return {name: sys.modules.pop(name) for name in names}

    before = take_out()
    sys.modules.update(stubs)
    try:
        yield
    finally:
        take_out()
        sys.modules.update(before)


class _Bar:
    """Stands for tqdm.tqdm and progress.bar.Bar: shows nothing, keeps the last loss that any of them was told."""

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

    return _on_its_device(model, run)


def _loop(path: Path, function: str, over: str):
    """The code of a function's loop over the expression `over`."""
    top = next(node for node in ast.parse(path.read_text()).body if getattr(node, "name", None) == function)
    loop = next(node for node in ast.walk(top) if isinstance(node, ast.For) and ast.unparse(node.iter) == over)
    return compile(ast.Module([loop], []), str(path), "exec")


def _on_its_device(model: nn.Module, run: Step) -> Step:
    device = next(model.parameters()).device

    def step() -> float | None:
        with cuda_means(device):
            return run()

    return step


def _silent(*words: object) -> None:
    pass
