"""FGSM-SDI: FGSM from a start that a generator learns (Jia et al. 2022)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pyengm.attacks import BN_MODES, ThreatModel, attack_mode
from pyengm.attacks.input_grad import input_grad
from pyengm.attacks.logits import CheckedModel, logits_of
from pyengm.attacks.losses import cross_entropy
from pyengm.attacks.memory_format import dense
from pyengm.attacks.threat_model import unit
from pyengm.attacks.validation import check_batch, check_extras, check_finite
from pyengm.data import Transform
from pyengm.errors import CheckpointError, ConfigError
from pyengm.methods.base import AttackMethod, StepOutput
from pyengm.methods.dataset_spec import DatasetSpec
from pyengm.methods.info import MethodInfo, PassCounts
from pyengm.methods.registry import register_method
from pyengm.ops import Key
from pyengm.utils.distributed import average_buffers, average_gradients


@dataclass
class _Learner:
    """A generator with its optimiser."""

    generator: "Generator"
    adam: torch.optim.Adam


@register_method
class FGSMSDI(AttackMethod):
    """L_i = CE_s(f(x_i + delta_i), y_i), with CE_s the cross-entropy of smoothed labels; delta from a generator G.

    delta = clip(z + clip(step_size sign g1)), z = eps tanh(G(x, sign g0)), clips to the ball; g0 is the gradient of the
    cross-entropy at x, g1 that at x + z. In L2, gradients over their norm take the place of signs (times sqrt(d) as
    inputs of G, which gives values near 1, with d the number of pixels), and eps / sqrt(d) that of eps before tanh, so
    that z is in the ball. In every epoch the first batch, and then one of `generator_interval`, first updates G by a
    step of Adam up the mean of L, with a delta for which G's batch norm is in training mode; the gradient flows through
    z alone. For the delta that f is trained on, G is in evaluation mode.
    The initial weights of G depend on the run's seed, from `prepare` or else from the first key, and leave torch's
    generator as it is. G is part of the state, with Adam's moments.

    Args:
        eps: Radius of the threat model, in pixel units.
        step_size: Step size, in pixel units; eps unless given.
        norm: Norm of the threat model, "linf" or "l2".
        bn: Batch-norm mode of f in all passes but the last: "train" as in the authors' code, "eval" or "batch_stats".
        generator_interval: Batches per step of G.
        smoothing: Probability that the labels give to other classes than y, in equal parts.
        generator_lr: Adam's learning rate.
        decay: Adam's weight decay.
        as_published: As in the authors' code, x + delta may lie outside [0, 1]; else it is clipped.

    Raises:
        ConfigError: A value or name is out of range.

    References:
        Jia et al. 2022, "Boosting Fast Adversarial Training with Learnable Adversarial Initialization", Sec. 3; labels,
        rates and the layers of G from the authors' code.
    """

    info = MethodInfo(
        name="fgsm_sdi",
        title="a start from a generator",
        reference="Jia et al. 2022",
        passes=PassCounts(3, 3, 1, uncounted=2, remark="{}, generator aside"),
        recipe={"epochs": 110, "milestones": (100, 105), "select_on": "none"},
        own_labels="its labels are smoothed by its own option, smoothing",
    )

    def __init__(
        self,
        eps: float,
        step_size: float | None = None,
        *,
        norm: str = "linf",
        bn: str = "train",
        generator_interval: int = 20,
        smoothing: float = 0.5,
        generator_lr: float = 1e-3,
        decay: float = 5e-4,
        as_published: bool = False,
    ):
        self.threat = ThreatModel(norm, eps)
        self.step_size = eps if step_size is None else step_size
        if not (math.isfinite(self.step_size) and self.step_size >= 0):
            raise ConfigError(f"step_size is {step_size}; expected a finite number >= 0 in pixel units, such as 8/255")
        if bn not in BN_MODES:
            raise ConfigError(f"batch-norm mode is {bn!r}; known modes: {', '.join(BN_MODES)}")
        if generator_interval < 1 or not 0 <= smoothing < 1:
            raise ConfigError(
                f"generator_interval and smoothing are {generator_interval} and {smoothing}; "
                "expected 1 or more, and 0 <= smoothing < 1"
            )
        if not (0 <= generator_lr < math.inf and 0 <= decay < math.inf):
            raise ConfigError(f"generator_lr and decay are {generator_lr} and {decay}; expected finite numbers >= 0")
        self.bn, self.generator_interval, self.smoothing = bn, generator_interval, smoothing
        self.generator_lr, self.decay, self.as_published = generator_lr, decay, as_published
        self.batches = 0  # of this epoch so far
        self._learner: _Learner | None = None

    @property
    def generator(self) -> "Generator | None":
        """The generator G; None before `prepare` and the first batch."""
        return None if self._learner is None else self._learner.generator

    def prepare(self, dataset: DatasetSpec) -> None:
        self._learner = self._build(dataset.shape[0], dataset.seed, dataset.device)

    def start_epoch(self, model: nn.Module, epoch: int) -> None:
        self.batches = 0

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, key: Key, transform: Transform | None = None) -> Tensor:
        x, y = check_batch(x, y, soft=True)
        check_extras(x, None, key, None)
        if self._learner is None:
            self._learner = self._build(x.shape[1], key.seed, x.device)
        learner, x = self._learner, x.detach()
        with attack_mode(model, self.bn), torch.no_grad():
            inputs = torch.cat([x, self._direction(self._gradient(model, x, y)) * self._pixels(x)], dim=1).float()
            if self.batches % self.generator_interval == 0:
                self._update_generator(learner, model, x, y, inputs)
            self.batches += 1
            x_adv = self._attack(learner.generator.eval(), model, x, y, inputs)
        return x_adv if self.as_published else self.threat.project_(dense(x_adv), x)

    def outcome(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> StepOutput:
        x_adv = self.as_input(x_adv)
        logits = logits_of(model, x_adv, y)
        return StepOutput(self._smoothed(logits, y), x_adv, logits)

    def _update_generator(self, learner: _Learner, model: nn.Module, x: Tensor, y: Tensor, inputs: Tensor) -> None:
        """One step of the generator up the loss. inputs: of the generator, (n, 2c, h, w)."""
        generator = learner.generator.train()
        with torch.enable_grad():
            x_adv = self._attack(generator, model, x, y, inputs)
            loss = self._smoothed(logits_of(model, x_adv if self.as_published else x_adv.clamp(0, 1), y), y).mean()
            check_finite(loss)
            loss.backward(inputs=list(generator.parameters()))
        average_gradients(generator, len(x))
        average_buffers(generator)
        learner.adam.step()
        learner.adam.zero_grad()

    def _attack(self, generator: nn.Module, model: nn.Module, x: Tensor, y: Tensor, inputs: Tensor) -> Tensor:
        """x + delta, not clipped to [0, 1], with a graph to the generator where gradients are on."""
        start = generator(inputs).to(x.dtype) * (self.threat.eps / self._pixels(x))
        move = self._direction(self._gradient(model, x + start, y)) * min(self.step_size, self.threat.eps)
        return x + self._clip(start + move)

    def _gradient(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        grad, losses, _ = input_grad(CheckedModel(model, y), x, partial(cross_entropy, y=y))
        check_finite(losses, grad)
        return grad

    def _direction(self, grad: Tensor) -> Tensor:
        return grad.sign() if self.threat.norm == "linf" else unit(grad)

    def _pixels(self, x: Tensor) -> float:
        """The norm of a perturbation of 1 everywhere."""
        return 1.0 if self.threat.norm == "linf" else math.sqrt(x[0].numel())

    def _clip(self, delta: Tensor) -> Tensor:
        """delta projected to the ball around 0."""
        eps = self.threat.eps
        if self.threat.norm == "linf":
            return delta.clamp(-eps, eps)
        norms = torch.linalg.vector_norm(delta, dim=tuple(range(1, delta.dim())), keepdim=True)
        return delta * (eps / norms.clamp(min=eps or 1.0))

    def _smoothed(self, logits: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy (n,) with labels that give 1 - smoothing to y."""
        classes = logits.shape[1]
        share = 1 - 1 / classes
        if self.smoothing >= share:
            raise ConfigError(f"smoothing is {self.smoothing}; expected less than {share:.4g} for {classes} classes")
        return cross_entropy(logits, y, self.smoothing / share)

    def _build(self, channels: int, seed: int, device: torch.device | str) -> _Learner:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # the CPU's alone
            generator = Generator(channels).to(device)
        adam = torch.optim.Adam(generator.parameters(), self.generator_lr, weight_decay=self.decay, maximize=True)
        return _Learner(generator, adam)

    def extra_state(self) -> dict[str, Any]:
        if self._learner is None:
            return {"batches": self.batches}
        return {
            "batches": self.batches,
            "generator": dict(self._learner.generator.state_dict()),
            "adam": self._learner.adam.state_dict(),
        }

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        self.batches = state["batches"]
        if "generator" not in state:
            return
        if self._learner is None:
            last = state["generator"]["last.weight"]
            self._learner = self._build(len(last), 0, last.device)
        try:
            self._learner.generator.load_state_dict(state["generator"])
        except RuntimeError as error:
            raise CheckpointError(f"the state is of a generator for other images: {error}") from error
        self._learner.adam.load_state_dict(state["adam"])


class Generator(nn.Module):
    """Maps images and signs (n, 2c, h, w) to (n, c, h, w) in (-1, 1): a convolution, a residual block, a convolution.

    Args:
        channels: c, the channels of the images.
        width: The channels of the hidden layers.
    """

    def __init__(self, channels: int, width: int = 64):
        super().__init__()
        self.first = nn.Conv2d(2 * channels, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width, eps=1e-3)
        self.residual = nn.Sequential(*self._half(width), *self._half(width))
        self.last_norm = nn.BatchNorm2d(width, affine=False)
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    @staticmethod
    def _half(width: int) -> list[nn.Module]:
        convolution = nn.Conv2d(width, width, 3, padding=1)
        nn.init.xavier_uniform_(convolution.weight, gain=math.sqrt(2))
        return [nn.BatchNorm2d(width, affine=False), nn.PReLU(), convolution]

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        return self.last(self.last_norm(x + self.residual(x))).tanh()
