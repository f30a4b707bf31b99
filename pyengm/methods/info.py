"""The facts of a training method, in one record that its class carries as `info`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class PassCounts:
    """The passes through the model that one training image takes in one step of the trainer.

    A forward pass, a gradient in the inputs of all layers and a gradient in the weights count as one each, so that
    natural training takes 1 + 1 + 1. A step of an attack takes a forward pass and an input gradient.

    Args:
        forward: Forward passes, those of the attack's steps not counted.
        input_grad: Input gradients, those of the attack's steps not counted.
        weight_grad: Weight gradients.
        per_step: Whether the attack takes steps that are counted in addition to the numbers above.
        steps: The number of steps of the attack that the table of the documentation and the benchmark assume.
        uncounted: An estimate of what the counts leave out, such as a second network, in the same unit.
        remark: A format string for the table, with `{}` where the three numbers go.
    """

    forward: float = 1
    input_grad: float = 1
    weight_grad: float = 1
    per_step: bool = False
    steps: int = 10
    uncounted: float = 0
    remark: str = "{}"

    def of(self, steps: int | None = None) -> tuple[float, float, float]:
        """The counts of forward passes, input gradients and weight gradients for an attack of so many steps."""
        more = (self.steps if steps is None else steps) if self.per_step else 0
        return self.forward + more, self.input_grad + more, self.weight_grad

    def total(self, steps: int | None = None) -> float:
        """The sum of all passes, with what the counts leave out. steps: see `of`."""
        return sum(self.of(steps)) + self.uncounted

    def __str__(self) -> str:
        """The counts as the table of the documentation has them, such as "11 + 11 + 1"."""
        return self.remark.format(" + ".join(f"{count:g}" for count in self.of()))


@dataclass(frozen=True)
class ShortRun:
    """A run on small images with a large ball, to which a method's published options are scaled.

    Args:
        lr: The learning rate of the data set's recipe.
        epochs: The number of epochs of the run.
        eps: The radius of the threat model, in pixel units.
        threat: The norm of the threat model, "linf" or "l2".
    """

    lr: float
    epochs: int
    eps: float
    threat: str


@dataclass(frozen=True)
class MethodInfo:
    """The facts of a method for other parts of the package; the class attribute `info` of every method.

    Recipes are changes to the recipe of the data set, by the flat names of the options of `TrainConfig`.

    Args:
        name: The name of the method in `METHODS` and of `--method`; empty for methods that are not registered.
        title: What the method is, in a few words.
        reference: Authors and year of the paper.
        passes: The passes that a step takes.
        optimizer: The optimiser of the method's recipe; None takes that of the data set.
        recipe: The authors' options for CIFAR-10; milestones count epochs from 0.
        large_recipe: The authors' options for images of 64 pixels and more; empty where `recipe` holds for them too.
        short_recipe: The options of a short run on the embedded digits, as a function of that run.
        mnist_recipe: The authors' options for MNIST, as a function of the run, for MNIST and FashionMNIST.
        epoch_options: The constructor's arguments that count epochs, and the least value of each.
        pixel_options: The arguments besides eps and step_size that are in pixel units and follow the radius.
        is_pgd: Whether the whole attack is one call of `PGD`, which can be compiled, captured in a CUDA graph, and
            scaled for float16.
        double_backward: Whether the losses contain a gradient, so that their graph holds second derivatives.
        modifies_grads: Whether `before_step` changes the gradients; optimisers with a closure do not support that.
        uses_val_metrics: Whether `finish_epoch` decides by accuracies on held-out images.
        rank_local_state: Whether `extra_state` differs between the processes of a run.
        own_labels: Why the losses take no smoothed labels; empty where they are made by `Method.cross_entropy`.
        needs_class: Why every image must have one class, where the losses take smoothed labels; empty for most.
    """

    name: str = ""
    title: str = ""
    reference: str = ""
    passes: PassCounts = field(default_factory=PassCounts)
    optimizer: str | None = "msgd"
    recipe: Mapping[str, Any] = field(default_factory=dict)
    large_recipe: Mapping[str, Any] = field(default_factory=dict)
    short_recipe: Callable[[ShortRun], Mapping[str, Any]] = lambda run: {}
    mnist_recipe: Callable[[ShortRun], Mapping[str, Any]] = lambda run: {}
    epoch_options: Mapping[str, int] = field(default_factory=dict)
    pixel_options: tuple[str, ...] = ()
    is_pgd: bool = False
    double_backward: bool = False
    modifies_grads: bool = False
    uses_val_metrics: bool = False
    rank_local_state: bool = False
    own_labels: str = ""
    needs_class: str = ""

    @property
    def description(self) -> str:
        """The title with the reference, such as "TRADES (Zhang et al. 2019)"."""
        return f"{self.title} ({self.reference})" if self.reference else self.title
