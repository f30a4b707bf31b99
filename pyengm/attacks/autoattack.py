"""AutoAttack (Croce & Hein 2020): its members, run by its authors' package on one batch of images."""

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import pyautoattack
import torch
from pyautoattack import checks
from torch import Tensor

from pyengm.attacks.half_precision import in_float32
from pyengm.attacks.logits import CheckedModel, Model, logits_of
from pyengm.attacks.model_state import attack_mode
from pyengm.attacks.threat_model import ThreatModel
from pyengm.attacks.validation import check_batch, finite_logits
from pyengm.errors import ConfigError

MEMBERS = ("apgd-ce", "apgd-t", "fab-t", "square")  # of the standard version
VERSIONS = {
    "standard": MEMBERS,
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
_PACKAGE_NORMS: dict[str, Literal["Linf", "L2"]] = {"linf": "Linf", "l2": "L2"}

# Called with images (n, c, h, w) that the model classifies correctly and their labels (n,). It returns the candidates
# of the attack, (n, c, h, w), and whether the model classifies each of them correctly, (n,) bool.
Member = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class AutoAttack:
    """APGD-CE, targeted APGD on the DLR loss, targeted FAB and Square, one after another, or some of them.

    Each member attacks the images that the members before it have not fooled the model on. The model is in eval mode
    during the attack and is restored afterwards, as are torch's default generators.

    Args:
        eps: radius in pixel units.
        norm: "linf" or "l2".
        attacks: names of members, run in this order; None: those of the version. Members that do not apply to a model
            and its images (`applicable_members`) are skipped with a warning.
        batch_size: number of images per batch.
        seed: seed of the random numbers. Every member starts from it in every batch, as in the authors' evaluation
            (version "standard"), so that the batches are independent.
        version: "standard"; "plus", with untargeted APGD-DLR and FAB as well and 5 restarts of APGD and FAB; or "rand"
            for models that are random at test time: APGD-CE and APGD-DLR on the mean gradient of 20 passes.
        queries: number of queries of Square for an image; None: the authors' 5000.

    Raises:
        ConfigError: a member is unknown, none is given, or a value is out of range.

    References:
        Croce & Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
        attacks".
    """

    def __init__(
        self,
        eps: float,
        *,
        norm: str = "linf",
        attacks: str | Sequence[str] | None = None,
        batch_size: int = 250,
        seed: int = 0,
        version: str = "standard",
        queries: int | None = None,
    ):
        self.threat = ThreatModel(norm, eps)
        if version not in VERSIONS:
            raise ConfigError(f"version of AutoAttack is {version!r}; known: {', '.join(VERSIONS)}")
        attacks = VERSIONS[version] if attacks is None else attacks
        self.attacks = (attacks,) if isinstance(attacks, str) else tuple(dict.fromkeys(attacks))
        known = VERSIONS["plus"]
        if unknown := [name for name in self.attacks if name not in known]:
            raise ConfigError(f"AutoAttack has no member {unknown[0]!r}; its members: {', '.join(known)}")
        if not self.attacks:
            raise ConfigError(f"expected at least one member of AutoAttack: {', '.join(known)}")
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; expected at least 1")
        if queries is not None and queries < 1:
            raise ConfigError(f"queries is {queries}; expected at least 1")
        self.batch_size, self.seed, self.version, self.queries = batch_size, seed, version, queries

    @torch.inference_mode(False)
    def __call__(self, model: Model, x: Tensor, y: Tensor) -> Tensor:
        """Attacks a model.

        Args:
            model: classifier of images in [0, 1].
            x: images (n, c, h, w) in [0, 1].
            y: labels (n,) int64.

        Returns:
            Adversarial examples (n, c, h, w); x itself where none was found.

        Raises:
            ConfigError: no member applies, or x has another shape.
            DataError: images are outside [0, 1], or labels do not fit.
            ModelError: the model returns anything but logits.
            NonFiniteError: outputs of the model are not finite.
        """
        x, y = check_batch(x, y)
        x_adv = x.clone()
        with self.prepared_members(model, x, y) as members:
            for batch in torch.arange(len(x), device=x.device).split(self.batch_size):
                active = batch[is_correct(model, x[batch], y[batch])]
                for attack in members.values():
                    candidates, correct = attack(x[active], y[active])
                    x_adv[active[~correct]] = candidates[~correct]
                    active = active[correct]
        return x_adv

    def applicable_members(self, num_classes: int, shape: Sequence[int]) -> tuple[tuple[str, ...], dict[str, str]]:
        """Sorts the members into those that apply to a data set and those that do not.

        Args:
            num_classes: number of classes.
            shape: shape (c, h, w) of an image.

        Returns:
            The applicable members in order, and the reason for each of the others by name.

        Raises:
            ConfigError: no member applies.
        """
        reasons = {}
        if num_classes < 3:
            reasons["apgd-dlr"] = f"its DLR loss needs at least 3 classes, there are {num_classes}"
        if num_classes < 4:
            reasons["apgd-t"] = f"its targeted DLR loss needs at least 4 classes, there are {num_classes}"
        if self.threat.norm == "l2" and not _first_squares_fit(*shape[-2:]):
            height, width = shape[-2:]
            reasons["square"] = f"its first squares in L2 do not fit images of {height}x{width}"
        reasons = {name: reason for name, reason in reasons.items() if name in self.attacks}
        applicable = tuple(name for name in self.attacks if name not in reasons)
        if not applicable:
            raise ConfigError("; ".join(f"AutoAttack's {name} cannot run: {why}" for name, why in reasons.items()))
        return applicable, reasons

    def warn_of_inapplicable_members(self, num_classes: int, shape: Sequence[int]) -> None:
        """Warns of every member that does not apply; arguments and errors as for `applicable_members`."""
        for name, reason in self.applicable_members(num_classes, shape)[1].items():
            warnings.warn(f"AutoAttack ({self.threat}) runs without {name}: {reason}", stacklevel=2)

    @contextmanager
    def prepared_members(self, model: Model, x: Tensor, y: Tensor) -> Iterator[dict[str, Member]]:
        """Context in which the applicable members can be called one by one.

        The model is in eval mode and its parameters are frozen within. On leaving, the model, torch's generators and
        the trace function are restored.

        Args:
            model: classifier of images in [0, 1].
            x: images (n, c, h, w) of which the first batch is used for the package's checks of the model.
            y: their labels (n,) int64.

        Yields:
            The applicable members by name, in the order of `attacks`.

        Raises:
            ConfigError: no member applies, or x has another shape.
        """
        if x.dim() != 4:
            raise ConfigError(f"AutoAttack needs images of shape (n, c, h, w), got {tuple(x.shape)}")
        devices = range(torch.cuda.device_count())  # the package seeds all of them
        with attack_mode(model, "eval"), torch.random.fork_rng(devices=devices), torch.no_grad(), ExitStack() as stack:
            net = CheckedModel(model, y)
            num_classes = net(x[:1]).shape[1]
            names, _ = self.applicable_members(num_classes, x.shape[1:])
            self.warn_of_inapplicable_members(num_classes, x.shape[1:])
            stack.callback(sys.settrace, sys.gettrace())  # the package ends all tracing, a debugger's too
            by_name = self._package_attacks(net, x[: self.batch_size], y[: self.batch_size], num_classes)
            yield {name: partial(_run, by_name[name], net) for name in names}

    def _package_attacks(self, net: CheckedModel, x: Tensor, y: Tensor, num_classes: int) -> dict[str, Any]:
        """The attacks of the package by member, after its checks of the model on one batch."""
        package = pyautoattack.AutoAttack(
            in_float32(net),  # pyright: ignore[reportArgumentType]  # the package calls it, and no more
            norm=_PACKAGE_NORMS[self.threat.norm],
            eps=self.threat.eps,
            seed=self.seed,
            device=x.device,
            version=self.version,  # pyright: ignore[reportArgumentType]  # checked
        )
        package.apgd_targeted.n_target_classes = package.fab.n_target_classes = min(9, num_classes - 1)
        if self.queries is not None:
            package.square.n_queries = self.queries
        if self.version != "rand":
            checks.check_randomized(net, x, y, logger=package.logger)
        checks.check_range_output(net, x, logger=package.logger)
        checks.check_dynamic(net, x, logger=package.logger)
        return {
            "apgd-ce": _Settings(package.apgd, {"loss": "ce"}),
            "apgd-dlr": _Settings(package.apgd, {"loss": "dlr"}),
            "apgd-t": _Settings(package.apgd_targeted, {}),
            "fab": _Settings(package.fab, {"targeted": False}),
            "fab-t": _Settings(package.fab, {"targeted": True, "n_restarts": 1}),
            "square": _Settings(package.square, {}),
        }


class _Settings:
    """An attack of the package, which two members may share, with the settings of one of them."""

    def __init__(self, attack: Any, settings: dict[str, Any]):
        self.attack, self.settings = attack, settings

    def perturb(self, x: Tensor, y: Tensor) -> Tensor:
        before = {name: getattr(self.attack, name) for name in self.settings}
        vars(self.attack).update(self.settings)
        try:
            return self.attack.perturb(x, y)
        finally:
            vars(self.attack).update(before)


def is_correct(model: Model, x: Tensor, y: Tensor) -> Tensor:
    """Whether the model classifies each image correctly, (n,) bool.

    Raises:
        ModelError: the model returns anything but logits.
        NonFiniteError: outputs of the model are not finite.
    """
    return finite_logits(logits_of(model, x, y)).argmax(dim=1) == y


def _run(attack: Any, net: CheckedModel, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if len(x) == 0:
        return x, torch.zeros(0, dtype=torch.bool, device=x.device)
    x_adv = attack.perturb(x.clone(), y.clone())
    return x_adv, finite_logits(net(x_adv)).argmax(dim=1) == y


def _first_squares_fit(height: int, width: int) -> bool:
    """Whether the grid of squares that the package's Square attack starts from in L2 lies within the image.

    Its squares have a fifth of the height, and as many are laid as fit into a side, from a margin on. Those of images
    of 12, 14, 18, 19 or 24 pixels and of many that are not square reach over the edge, and the package fails.
    """
    square = height // 5
    margin = (height - 5 * square) // 2
    return square == 1 or (square > 1 and all(margin + side // square * square <= side for side in (height, width)))
