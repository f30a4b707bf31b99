"""Weightings of examples, for any method: by the geometry of attacks (GAIRAT) and by margins (MAIL)."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from pyengm.attacks.losses import log_softmax
from pyengm.data import Transform
from pyengm.errors import ConfigError
from pyengm.methods.attack_step import check_numbers
from pyengm.methods.awp import pgd_of
from pyengm.methods.base import Method, StepOutput
from pyengm.methods.wrapper import Wrapper
from pyengm.ops import Key
from pyengm.utils.distributed import all_reduce_sum


class ExampleWeights(ABC):
    """Weights (n,) of the examples of a batch, constant in the gradient, from epoch `begin` on.

    Args:
        begin: The first epoch with weights, counted from 0; before it all are 1.
    """

    def __init__(self, begin: int):
        if begin < 0:
            raise ConfigError(f"begin is {begin}; expected an epoch, counted from 0")
        self.begin = begin

    def attach(self, method: Method) -> None:
        """Prepares the method whose examples are weighed. Raises ConfigError where it lacks what the weights need."""

    @abstractmethod
    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        """The weights (n,) for logits (n, k) of the adversarial images and labels (n,)."""


class GAIRAT(ExampleWeights):
    """w_i proportional to 1 + tanh(lam + 5 (1 - 2 kappa_i / K)), with mean 1 over the batch.

    kappa_i counts the points at which PGD takes a gradient, K of them, and at which the example is classified right:
    examples that are easily fooled weigh more. It is for methods whose attack is one call of PGD.

    Args:
        epochs: Length of the run in epochs.
        lam: Lambda; infinity weighs all examples equally.
        begin: First epoch with weights, counted from 0; unless given that at 59/120 of the run, the authors' 59 of 120.

    Raises:
        ConfigError: A value is out of range, or the method has another attack.

    References:
        Zhang et al. 2021, "Geometry-aware Instance-reweighted Adversarial Training", Eq. 6; numbers from the authors'
        code for its wide network.
    """

    def __init__(self, *, epochs: int, lam: float = -1.0, begin: int | None = None):
        super().__init__(epochs * 59 // 120 if begin is None else begin)
        self.lam = lam

    def attach(self, method: Method) -> None:
        attack = pgd_of(method)
        if attack is None or attack.targeted:
            raise ConfigError(
                f"the weights of GAIRAT count the steps of PGD, and {type(method).__name__} has another attack, or one "
                "with targets; give it to a method whose attack is PGD alone, such as pgd_at or trades, or use mail"
            )
        attack.counts_correct = True
        self.attack = attack

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        assert self.attack.correct is not None, "the attack counts from `attach` on"
        kappa = self.attack.correct.to(torch.promote_types(logits.dtype, torch.float32))
        weights = torch.tanh(self.lam + 5 * (1 - 2 * kappa / self.attack.steps)) + 1
        total, n = all_reduce_sum(torch.stack([weights.sum(), torch.ones_like(weights).sum()]))
        return weights * (n / total)


class MAIL(ExampleWeights):
    """w_i = 3 sigmoid(slope (m_i + bias)), m_i = max_{k != y_i} p_k - p_{y_i}, p the probabilities on x'_i.

    Args:
        epochs: Length of the run in epochs.
        slope: Slope of the sigmoid; the authors' 10 for PGD adversarial training, and 2 for TRADES.
        bias: Shift of the margins; the authors' -0.5 for PGD adversarial training, and 0 for TRADES.
        begin: First epoch with weights, counted from 0; unless given that at 75/120 of the run, the authors' 75 of 120.

    Raises:
        ConfigError: A value is out of range.

    References:
        Wang et al. 2021, "Probabilistic Margins for Instance Reweighting in Adversarial Training"; the factor 3 and all
        numbers from the authors' code.
    """

    def __init__(self, *, epochs: int, slope: float = 10.0, bias: float = -0.5, begin: int | None = None):
        super().__init__(epochs * 75 // 120 if begin is None else begin)
        check_numbers(slope=slope)
        self.slope, self.bias = slope, bias

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        p = log_softmax(logits.detach()).exp()
        own = y[:, None]
        other = p.scatter(1, own, -torch.inf).amax(dim=1)
        return 3 * torch.sigmoid(self.slope * (other - p.gather(1, own).squeeze(1) + self.bias))


EXAMPLE_WEIGHTS: dict[str, type[GAIRAT] | type[MAIL]] = {"gairat": GAIRAT, "mail": MAIL}
"""The weightings of examples by the names of `--example-weights`."""


class Reweighted(Wrapper[Method]):
    """The losses of `base` with weights: L_i = rest_i + w_i part_i.

    part_i is the part of the base's losses that its authors weigh, `StepOutput.weighed`: all of L_i for most, the
    divergence of TRADES and the boosted cross-entropy of MART. The weights are constant in the gradient, so that the
    optimiser, which may clip each example, sees the gradients of weighted losses.

    Args:
        base: The method.
        weights: The weighting.

    Raises:
        ConfigError: The method lacks what the weights need.

    References:
        Zhang et al. 2021 and Wang et al. 2021, see `GAIRAT` and `MAIL`.
    """

    def __init__(self, base: Method, weights: ExampleWeights):
        weights.attach(base)
        super().__init__(base)
        self.weights, self.info, self.single_pass = weights, base.info, base.single_pass

    def passes(
        self, model: nn.Module, x: Tensor, y: Tensor, key: Key | None = None, transform: Transform | None = None
    ) -> Iterator[StepOutput]:
        self.follow(key)
        labels = y.argmax(dim=1) if y.is_floating_point() else y
        for output in self.base.passes(model, x, y, key, transform):
            yield output if self.epoch < self.weights.begin else self._weigh(output, labels)

    @torch.no_grad()
    def _weights_of(self, output: StepOutput, y: Tensor) -> Tensor:
        if output.logits is None:
            kind = type(self.base).__name__
            raise ConfigError(f"{type(self.weights).__name__} needs logits, and {kind} has passes without them")
        return self.weights(output.logits, y)

    def _weigh(self, output: StepOutput, y: Tensor) -> StepOutput:
        weights, part = self._weights_of(output, y), output.weighed
        if part is None:
            return replace(output, losses=weights * output.losses)
        return replace(output, losses=output.losses + (weights - 1) * part)
