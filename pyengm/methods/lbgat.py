"""LBGAT: a natural network, trained along, guides the boundary of the robust one (Cui et al. 2021)."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyengm.attacks import PGD
from pyengm.attacks.logits import logits_of
from pyengm.attacks.losses import kl_divergence, log_softmax
from pyengm.data import Transform
from pyengm.errors import ConfigError
from pyengm.methods.attack_step import check_numbers, checked
from pyengm.methods.base import SinglePassMethod, StepOutput
from pyengm.methods.info import MethodInfo, PassCounts
from pyengm.methods.noise import gaussian_start
from pyengm.methods.registry import register_method
from pyengm.models import build
from pyengm.ops import Key
from pyengm.utils.distributed import average_buffers, average_gradients


@register_method
class LBGAT(SinglePassMethod):
    """L_i = |f(x'_i) - g(x_i)|^2 / k + beta KL(p_f(x_i) || p_f(x'_i)), g the teacher, x' as in TRADES.

    k is the number of classes. The teacher learns from natural images: its losses are |f(x'_i) - g(x_i)|^2 / k +
    CE(g(x_i), y_i), of the same batch. In the authors' code one SGD has the weights of both networks and the sum of
    both losses; here the teacher has an SGD of its own, with the learning rate, momentum and weight decay that the
    optimiser of f has at each step, so that under momentum SGD both are the same. Under another optimiser the teacher
    stays with SGD, and no example of it is weighed. The teacher is part of the state, with its momentum.

    Args:
        eps: Radius of the threat model, in pixel units (the authors': 0.031).
        step_size: Step size of PGD, in pixel units; eps / 4 unless given (the authors': 0.007).
        steps: Steps of PGD.
        beta: Weight of the divergence: 6 in the authors' code, and 0 for their CIFAR-10 models named LBGAT0.
        teacher: The architecture of the teacher, by its name in `pyengm.models.build`, such as the authors' resnet18;
            None takes a copy of the model with other initial weights, which is a ResNet-18 for a ResNet-18.
        norm: Norm of the threat model, "linf" or "l2".
        bn: Batch-norm mode of the attack: "eval" as in the authors' code, "train" or "batch_stats".

    Raises:
        ConfigError: A value or name is out of range.

    References:
        Cui et al. 2021, "Learnable Boundary Guided Adversarial Training", Sec. 3; all numbers from the authors' code,
        whose learning rate is also 0.02 in the first epoch.
    """

    info = MethodInfo(
        name="lbgat",
        title="a natural teacher's boundary",
        reference="Cui et al. 2021",
        passes=PassCounts(3, 2, 2, per_step=True, uncounted=3, remark="{}, teacher aside"),
        recipe={
            "eps": 0.031,
            "step_size": 0.007,
            "weight_decay": 2e-4,
            "epochs": 100,
            "milestones": (75, 90),
        },
        modifies_grads=True,  # before_step updates the teacher, by a learning rate that a closure's steps do not have
    )

    def __init__(
        self,
        eps: float,
        step_size: float | None = None,
        steps: int = 10,
        *,
        beta: float = 6.0,
        teacher: str | None = None,
        norm: str = "linf",
        bn: str = "eval",
    ):
        check_numbers(beta=beta)
        self.attack = PGD(eps, eps / 4 if step_size is None else step_size, steps, norm=norm, loss="kl", bn=bn)
        self.threat, self.beta, self.architecture = self.attack.threat, beta, teacher
        self.teacher: nn.Module | None = None
        self._sgd: torch.optim.SGD | None = None
        self._saved: Mapping[str, Any] = {}  # the state of a teacher that the first batch will build

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, key: Key | None = None, transform: Transform | None = None
    ) -> StepOutput:
        x, y = checked(x, y, key)
        key = Key.fresh(len(x), x.device) if key is None else key
        x_adv = self.attack(model, x, y, start=gaussian_start(x, key))
        x_adv = self.as_input(x_adv)
        logits, natural = logits_of(model, x_adv), logits_of(model, x)
        teacher = self._teacher_for(model, x, logits.shape[1], key.seed)
        guide = logits_of(teacher, x)
        own = mean_square(guide, logits.detach()) + self.cross_entropy(guide, y)
        own.mean().backward(inputs=list(teacher.parameters()))
        average_gradients(teacher, len(x))
        average_buffers(teacher)
        losses = mean_square(logits, guide.detach()) + self.beta * kl_divergence(logits, log_softmax(natural))
        return StepOutput(losses, x_adv, logits)

    def before_step(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        sgd, group = self._sgd, optimizer.param_groups[0]
        assert sgd is not None, "before_step follows a batch, which builds the teacher"
        sgd.param_groups[0] |= {name: group[name] for name in ("lr", "momentum", "weight_decay") if name in group}
        sgd.step()
        sgd.zero_grad()

    def _teacher_for(self, model: nn.Module, x: Tensor, classes: int, seed: int) -> nn.Module:
        if self.teacher is None or self._sgd is None:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)  # the CPU's alone
                teacher = self._new(model, x, classes).train()
            teacher.requires_grad_(True)
            self.teacher, self._sgd = teacher, torch.optim.SGD(teacher.parameters(), lr=0.1)
            if self._saved:
                teacher.load_state_dict(self._saved["teacher"])
                self._sgd.load_state_dict(self._saved["sgd"])
                self._saved = {}
        return self.teacher

    def _new(self, model: nn.Module, x: Tensor, classes: int) -> nn.Module:
        if self.architecture is None:
            return with_new_weights(copy.deepcopy(model))
        return build(self.architecture, classes, x.shape[1], x.shape[2]).to(x.device, x.dtype)

    def extra_state(self) -> dict[str, Any]:
        if self.teacher is None or self._sgd is None:
            return dict(self._saved)
        return {"teacher": dict(self.teacher.state_dict()), "sgd": self._sgd.state_dict()}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        self.teacher = self._sgd = None
        self._saved = copy.deepcopy(dict(state))


def mean_square(first: Tensor, second: Tensor) -> Tensor:
    """The mean square of the difference of logits (n, k) over the classes, (n,), in float32 or better."""
    dtype = torch.promote_types(first.dtype, torch.float32)
    return (first - second).to(dtype).square().mean(dim=1)


def with_new_weights(model: nn.Module) -> nn.Module:
    """The model with all layers drawn anew, in place, by torch's own initial values. Raises ConfigError for none."""
    resets = [getattr(module, "reset_parameters", None) for module in model.modules()]
    if not any(resets):
        raise ConfigError("the model has no layer that can be drawn anew: name an architecture, as teacher=resnet18")
    for reset in filter(None, resets):
        reset()
    return model
