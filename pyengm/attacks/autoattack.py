"""AutoAttack (Croce & Hein 2020) and its members, run by its authors' package, batch by batch."""

import hashlib
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyautoattack
import torch
from pyautoattack import checks
from torch import Tensor, nn

from pyengm.attacks.model_state import attack_mode
from pyengm.attacks.threat_model import ThreatModel
from pyengm.attacks.validation import check_batch
from pyengm.data import ImageDataset, Loader
from pyengm.errors import CheckpointError, ConfigError, NonFiniteError
from pyengm.utils.io import atomic_write, make_dirs

MEMBERS = ("apgd-ce", "apgd-t", "fab-t", "square")
_PACKAGE_NORMS = {"linf": "Linf", "l2": "L2"}


@dataclass(frozen=True, eq=False)
class Verdicts:
    """What became of each image.

    members: those that ran, in order. survived: (n,) int64, 0 for an image that is misclassified as it is; one for
    those that are not, and one more for each member, up to the first that fooled the model.
    """

    members: tuple[str, ...]
    survived: Tensor

    @property
    def robust(self) -> Tensor:
        """(n,) bool: no member fooled the model."""
        return self.survived > len(self.members)

    def accuracies(self) -> dict[str, float]:
        """In [0, 1]: "natural", then under each member's name what is left after it and those before it."""
        stages = ("natural", *self.members)
        return {name: (self.survived > i).double().mean().item() for i, name in enumerate(stages)}


class AutoAttack:
    """APGD-CE, targeted APGD on DLR, targeted FAB and Square, each on what still stands; or some of them.

    eps: in pixel units. norm: "linf" or "l2". attacks: the members, names of MEMBERS, in this order; those that cannot
    run on a model and its images (`fitting`) are left out with a warning. batch_size: images at a time. seed: of
    the random numbers; every member starts from it in every batch, as in the authors' evaluation (version "standard"),
    so that no batch depends on another.
    The model is in eval mode during the attack and left as it was; torch's default generators are too.
    Raises ConfigError for an unknown member and where no member can run, DataError for images outside [0, 1] and
    labels that do not fit, NonFiniteError for a model whose outputs are not finite.
    """

    def __init__(
        self,
        eps: float,
        *,
        norm: str = "linf",
        attacks: Sequence[str] = MEMBERS,
        batch_size: int = 250,
        seed: int = 0,
    ):
        self.threat = ThreatModel(norm, eps)
        self.attacks = (attacks,) if isinstance(attacks, str) else tuple(dict.fromkeys(attacks))
        if unknown := [name for name in self.attacks if name not in MEMBERS]:
            raise ConfigError(f"AutoAttack has no member {unknown[0]!r}; its members: {', '.join(MEMBERS)}")
        if not self.attacks:
            raise ConfigError(f"expected at least one member of AutoAttack: {', '.join(MEMBERS)}")
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; expected at least 1")
        self.batch_size, self.seed = batch_size, seed

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Adversarial examples for images x (n, c, h, w) in [0, 1], labels y (n,); x itself where none was found."""
        check_batch(x, y)
        x_adv = x.clone()
        with self._attacking(model, x, y) as members:
            for rows in torch.arange(len(x), device=x.device).split(self.batch_size):
                standing = rows[_right(model, x[rows], y[rows])]
                for member in members.values():
                    candidates, right = _run(member, model, x[standing], y[standing])
                    x_adv[standing[~right]] = candidates[~right]
                    standing = standing[right]
        return x_adv

    def run(
        self,
        model: nn.Module,
        data: ImageDataset,
        *,
        device: torch.device,
        state: Path | None = None,
        progress: Callable[[int, int, float], None] = lambda done, total, robust: None,
    ) -> Verdicts:
        """Attacks a whole set, and may be interrupted.

        device: where the model is.
        state: folder for a file with the verdicts so far, written whole after each member of each batch; a later call
        goes on from there, to the same verdicts, or returns them at once. The file's name tells what they depend on
        (weights, threat model, members, batch size, seed, images): other files there stay as they are.
        progress: called with the number of passes done, of all (one per member and batch), and the robust accuracy on
        the images of the batches so far.
        Raises CheckpointError for a damaged state file, StorageError where it cannot be written, and what the attack
        raises.
        """
        batches = Loader(data, self.batch_size, device=device, seed=self.seed, augment="none", shuffle=False)
        first = next(batches.epoch(0))
        with self._attacking(model, first.x, first.y) as members:
            saved = None if state is None else _State(state, self._identity(model, data, tuple(members)))
            done, survived = (0, torch.zeros(len(data), dtype=torch.int64)) if saved is None else saved.load(len(data))
            total, begun = len(batches) * len(members), done // len(members)
            for number, batch in enumerate(batches.epoch(0, start=begun), start=begun):
                before = number * self.batch_size
                here = survived[before : before + len(batch.y)]
                if done == number * len(members):
                    here.copy_(_right(model, batch.x, batch.y))
                for stage, member in list(enumerate(members.values(), start=1))[done - number * len(members) :]:
                    standing = (here == stage).nonzero().squeeze(1)
                    rows = standing.to(device)
                    here[standing] += _run(member, model, batch.x[rows], batch.y[rows])[1].cpu()
                    done += 1
                    if saved is not None:
                        saved.save(done, survived)
                    robust = (survived[:before] > len(members)).sum() + (here > stage).sum()
                    progress(done, total, robust.item() / (before + len(here)))
            verdicts = Verdicts(tuple(members), survived)
            checks.check_square_sr(verdicts.accuracies(), logger=logging.getLogger("auto-attack"))
        return verdicts

    def fitting(self, classes: int, shape: Sequence[int]) -> tuple[tuple[str, ...], dict[str, str]]:
        """The members that can run with that many classes on images of `shape` (c, h, w), and why the others cannot.

        Raises ConfigError where none can.
        """
        reasons = {}
        if classes < 4:
            reasons["apgd-t"] = f"its targeted DLR loss needs at least 4 classes, there are {classes}"
        if self.threat.norm == "l2" and not _first_squares_fit(*shape[-2:]):
            height, width = shape[-2:]
            reasons["square"] = f"its first squares in L2 do not fit images of {height}x{width}"
        reasons = {name: reason for name, reason in reasons.items() if name in self.attacks}
        left = tuple(name for name in self.attacks if name not in reasons)
        if not left:
            raise ConfigError("; ".join(f"AutoAttack's {name} cannot run: {why}" for name, why in reasons.items()))
        return left, reasons

    def warn_of_the_unfit(self, classes: int, shape: Sequence[int]) -> None:
        """Warns of every member that `fitting` leaves out."""
        for name, reason in self.fitting(classes, shape)[1].items():
            warnings.warn(f"AutoAttack ({self.threat}) runs without {name}: {reason}", stacklevel=2)

    @contextmanager
    def _attacking(self, model: nn.Module, x: Tensor, y: Tensor) -> Iterator[dict[str, Any]]:
        """The package's attacks by member, while the model is in eval mode and torch's generators are put back."""
        if x.dim() != 4:
            raise ConfigError(f"AutoAttack needs images of shape (n, c, h, w), got {tuple(x.shape)}")
        devices = range(torch.cuda.device_count())  # the package seeds all of them
        with attack_mode(model, "eval"), torch.random.fork_rng(devices=devices), torch.no_grad(), ExitStack() as stack:
            classes = model(x[:1]).shape[1]
            names, _ = self.fitting(classes, x.shape[1:])
            self.warn_of_the_unfit(classes, x.shape[1:])
            package = pyautoattack.AutoAttack(
                model, norm=_PACKAGE_NORMS[self.threat.norm], eps=self.threat.eps, seed=self.seed, device=x.device
            )
            package.apgd.loss, package.fab.targeted = "ce", True
            package.apgd_targeted.n_target_classes = package.fab.n_target_classes = min(9, classes - 1)
            stack.callback(sys.settrace, sys.gettrace())  # the package ends all tracing, a debugger's too
            part = x[: self.batch_size]
            checks.check_randomized(model, part, y[: self.batch_size], logger=package.logger)
            checks.check_range_output(model, part, logger=package.logger)
            checks.check_dynamic(model, part, logger=package.logger)
            members = zip(MEMBERS, (package.apgd, package.apgd_targeted, package.fab, package.square), strict=True)
            by_name = dict(members)
            yield {name: by_name[name] for name in names}

    def _identity(self, model: nn.Module, data: ImageDataset, members: tuple[str, ...]) -> dict[str, Any]:
        """All that the verdicts depend on."""
        return {
            "norm": self.threat.norm,
            "eps": self.threat.eps,
            "members": list(members),
            "batch_size": self.batch_size,
            "seed": self.seed,
            "model": _hash_of_model(model),
            "images": _hash_of_images(data),
        }


class _State:
    """The file that a run goes on from. Its name is a digest of what the verdicts depend on."""

    def __init__(self, folder: Path, identity: dict[str, Any]):
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.path = Path(folder) / f"{identity['norm']}-{digest[:16]}.json"
        self.identity = identity

    def load(self, size: int) -> tuple[int, Tensor]:
        """Passes done, and what `size` images have survived. Raises CheckpointError for a damaged file."""
        if not self.path.exists():
            return 0, torch.zeros(size, dtype=torch.int64)
        try:
            saved = json.loads(self.path.read_text())
            done, survived = saved.pop("passes"), torch.tensor(saved.pop("survived"), dtype=torch.int64)
            whole = saved == self.identity and survived.shape == (size,)
        except (OSError, AttributeError, KeyError, TypeError, ValueError):
            whole = False
        if not whole:
            raise CheckpointError(f"{self.path} is damaged; remove it, and its images are attacked anew")
        return done, survived

    def save(self, done: int, survived: Tensor) -> None:
        make_dirs(self.path.parent)
        text = json.dumps({**self.identity, "passes": done, "survived": survived.tolist()}) + "\n"
        atomic_write(self.path, lambda path: path.write_text(text))


def _run(member: Any, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """What a member made of images that the model has right, and which of them it still has right."""
    if len(x) == 0:
        return x, torch.zeros(0, dtype=torch.bool, device=x.device)
    x_adv = member.perturb(x.clone(), y.clone())
    return x_adv, _right(model, x_adv, y)


def _right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    logits = model(x)
    if not logits.isfinite().all():
        raise NonFiniteError("the model's outputs are nan or infinite")
    return logits.argmax(dim=1) == y


def _first_squares_fit(height: int, width: int) -> bool:
    """Does the grid of squares that the package's Square attack starts from in L2 lie within the image?

    Its squares have a fifth of the height, and as many are laid as fit into a side, from a margin on: those of images
    of 12, 14, 18, 19 or 24 pixels and of many that are not square reach over the edge, and the package fails.
    """
    square = height // 5
    margin = (height - 5 * square) // 2
    return square == 1 or (square > 1 and all(margin + side // square * square <= side for side in (height, width)))


def _hash_of_model(model: nn.Module) -> str:
    """Of the kinds of its modules, and of its parameters and buffers."""
    digest = hashlib.sha256(repr([(name, type(module).__name__) for name, module in model.named_modules()]).encode())
    for name, t in model.state_dict().items():
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        digest.update(t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _hash_of_images(data: ImageDataset) -> str:
    """Of images and labels."""
    digest = hashlib.sha256(repr(tuple(data.images.shape)).encode())
    digest.update(data.labels.numpy())
    for rows in torch.arange(len(data)).split(1024):
        digest.update(data.images[rows].contiguous().numpy())
    return digest.hexdigest()
