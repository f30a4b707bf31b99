"""The facts of an optimiser, in one record that its class carries as `info`."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class OptimizerInfo:
    """The facts of an optimiser for other parts of the package; the class attribute `info` of every optimiser.

    Args:
        name: The name of the optimiser in `OPTIMIZERS` or `CLOSURE_OPTIMIZERS` and of `--optimizer`; empty for those
            that are not registered.
        title: What the optimiser is, in a few words.
        reference: Authors and year of the paper.
        weighs_examples: Whether the examples of a batch get weights of their own.
        needs_inputs: Whether `backward` needs inputs that require grad, or their gradient.
        takes_closure: Whether `step(closure)` draws the mini-batches; else each mini-batch takes one `backward` and one
            `step`.
        epoch_options: The constructor's arguments that count epochs, and the least value of each.
    """

    name: str = ""
    title: str = ""
    reference: str = ""
    weighs_examples: bool = False
    needs_inputs: bool = False
    takes_closure: bool = False
    epoch_options: Mapping[str, int] = field(default_factory=dict)

    @property
    def description(self) -> str:
        """The title with the reference, such as "ENGM (Dabouei et al. 2022)"."""
        return f"{self.title} ({self.reference})" if self.reference else self.title
