"""FGSM-SDI: FGSM from a start that a generator learns (Jia et al. 2022)."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyengm.attacks import BN_MODES, Threat, attack_mode
from pyengm.attacks.check import check_batch, check_extras
from pyengm.attacks.finite import check_finite
from pyengm.attacks.gradient import input_gradient
from pyengm.attacks.layout import dense
from pyengm.attacks.losses import cross_entropy
from pyengm.attacks.threat import unit
from pyengm.data import Transform
from pyengm.distributed import average_buffers, average_gradients
from pyengm.errors import CheckpointError, ConfigError
from pyengm.methods.base import AttackMethod, Examples, Outcome
from pyengm.ops import Key


class FGSMSDI(AttackMethod):
    """L_i = CE_s(f(x_i + delta_i), y_i), with CE_s the cross-entropy of smoothed labels; delta from a generator G.

    delta = clip(z + clip(step sign g1)), z = eps tanh(G(x, sign g0)), clips to the ball; g0 is the gradient of the
    cross-entropy at x, g1 that at x + z. In L2, gradients over their norm take the place of signs (times sqrt(d) on
    the way into G, which gives numbers near 1, d the number of pixels), and eps / sqrt(d) that of eps before tanh, so
    that z is in the ball. In every epoch the first batch, and then one of `every`, first moves G up the mean of L by a
    step of Adam, with a delta for which G's batch norm is in training mode; the gradient goes through z alone. For
    the delta that f is trained on, G is in evaluation mode.

    eps, step: in pixel units; step is eps unless given. norm: "linf" or "l2". bn: batch-norm mode of f in all passes
    but the last, "train" as in the authors' code. every: batches per step of G. smoothing: the probability that the
    labels give to other classes than y, in equal parts. rate, decay: Adam's learning rate and weight decay.
    as_published: as in the authors' code, x + delta may lie outside [0, 1]; else it is clipped.
    G begins with numbers of its own that depend on the run's seed, from `prepare` or else from the first key, and draws
    nothing from torch's generator. It is part of the state, with Adam's moments.
    Raises ConfigError for numbers and names out of range. Source: Jia et al. 2022, "Boosting Fast Adversarial Training
    with Learnable Adversarial Initialization", Sec. 3; labels, rates and the layers of G from the authors' code.
    """

    own_labels = "its labels are smoothed by its own option, smoothing"

    def __init__(
        self,
        eps: float,
        step: float | None = None,
        *,
        norm: str = "linf",
        bn: str = "train",
        every: int = 20,
        smoothing: float = 0.5,
        rate: float = 1e-3,
        decay: float = 5e-4,
        as_published: bool = False,
    ):
        self.threat = Threat(norm, eps)
        self.step = eps if step is None else step
        if not (math.isfinite(self.step) and self.step >= 0):
            raise ConfigError(f"step is {step}; expected a finite number >= 0 in pixel units, such as 8/255")
        if bn not in BN_MODES:
            raise ConfigError(f"batch-norm mode is {bn!r}; known modes: {', '.join(BN_MODES)}")
        if every < 1 or not 0 <= smoothing < 1:
            raise ConfigError(f"every and smoothing are {every} and {smoothing}; expected 1 or more, and 0 <= s < 1")
        if not (0 <= rate < math.inf and 0 <= decay < math.inf):
            raise ConfigError(f"rate and decay are {rate} and {decay}; expected finite numbers >= 0")
        self.bn, self.every, self.smoothing, self.as_published = bn, every, smoothing, as_published
        self.rate, self.decay = rate, decay
        self.generator: Generator | None = None
        self.batches = 0  # of this epoch so far

    def prepare(self, examples: Examples) -> None:
        self._build(examples.shape[0], examples.seed, examples.device)

    def start_epoch(self, model: nn.Module, epoch: int) -> None:
        self.batches = 0

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, key: Key, transform: Transform | None = None) -> Tensor:
        check_batch(x, y)
        check_extras(x, None, key, None)
        if self.generator is None:
            self._build(x.shape[1], key.seed, x.device)
        x = x.detach()
        with attack_mode(model, self.bn), torch.no_grad():
            known = torch.cat([x, self._direction(self._gradient(model, x, y)) * self._pixels(x)], dim=1).float()
            if self.batches % self.every == 0:
                self._teach(model, x, y, known)
            self.batches += 1
            self.generator.eval()
            x_adv = self._attacked(model, x, y, known)
        return x_adv if self.as_published else self.threat.project_(dense(x_adv), x)

    def outcome(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Outcome:
        x_adv = self.as_input(x_adv)
        logits = model(x_adv)
        return Outcome(self._smoothed(logits, y), x_adv, logits)

    def _teach(self, model: nn.Module, x: Tensor, y: Tensor, known: Tensor) -> None:
        """One step of the generator up the loss."""
        self.generator.train()
        with torch.enable_grad():
            x_adv = self._attacked(model, x, y, known)
            loss = self._smoothed(model(x_adv if self.as_published else x_adv.clamp(0, 1)), y).mean()
            check_finite(loss)
            loss.backward(inputs=list(self.generator.parameters()))
        average_gradients(self.generator, len(x))
        average_buffers(self.generator)
        self.adam.step()
        self.adam.zero_grad()

    def _attacked(self, model: nn.Module, x: Tensor, y: Tensor, known: Tensor) -> Tensor:
        """x + delta, not clipped to [0, 1], with a graph to the generator where gradients are on."""
        start = self.generator(known).to(x.dtype) * (self.threat.eps / self._pixels(x))
        step = self._direction(self._gradient(model, x + start, y)) * min(self.step, self.threat.eps)
        return x + self._clip(start + step)

    def _gradient(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        grad, losses, _ = input_gradient(model, x, partial(cross_entropy, y=y))
        check_finite(losses, grad)
        return grad

    def _direction(self, grad: Tensor) -> Tensor:
        return grad.sign() if self.threat.norm == "linf" else unit(grad)

    def _pixels(self, x: Tensor) -> float:
        """The norm of a perturbation of 1 everywhere."""
        return 1.0 if self.threat.norm == "linf" else math.sqrt(x[0].numel())

    def _clip(self, delta: Tensor) -> Tensor:
        """Into the ball around 0."""
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
        return F.cross_entropy(logits, y, reduction="none", label_smoothing=self.smoothing / share)

    def _build(self, channels: int, seed: int, device: torch.device | str) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # the CPU's alone
            self.generator = Generator(channels).to(device)
        self.adam = torch.optim.Adam(self.generator.parameters(), self.rate, weight_decay=self.decay, maximize=True)

    def own_state(self) -> dict[str, Any]:
        if self.generator is None:
            return {"batches": self.batches}
        return {
            "batches": self.batches,
            "generator": dict(self.generator.state_dict()),
            "adam": self.adam.state_dict(),
        }

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        self.batches = state["batches"]
        if "generator" not in state:
            return
        if self.generator is None:
            last = state["generator"]["last.weight"]
            self._build(len(last), 0, last.device)
        try:
            self.generator.load_state_dict(state["generator"])
        except RuntimeError as error:
            raise CheckpointError(f"the state is of a generator for other pictures: {error}") from error
        self.adam.load_state_dict(state["adam"])


class Generator(nn.Module):
    """(n, 2c, h, w) pictures and signs to (n, c, h, w) in (-1, 1): a convolution, a residual block, a convolution."""

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
