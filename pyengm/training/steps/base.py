"""What a training step is, whichever way it runs."""

from collections.abc import Callable, Sequence
from typing import Protocol

from pyengm.data import Batch
from pyengm.methods import StepOutput
from pyengm.ops import Key
from pyengm.pergrad import PerExampleStats

StepStats = list[tuple[StepOutput, PerExampleStats | None]]
"""For every pass of a step: the output of the method, and the norms and weights that the optimiser used.

The second is None where all weights are 1 and no norms were needed.
"""

AverageGradients = Callable[[int], None]
"""Makes the gradients of this process, the mean over that many images, the mean over the images of all processes."""


class Step(Protocol):
    """The way from batches to an update of the weights. `build_step` chooses it once for a run."""

    @property
    def batches_per_update(self) -> int:
        """The number of batches that an update takes in the current epoch."""
        ...

    def __call__(self, batches: Sequence[Batch], keys: Sequence[Key]) -> StepStats:
        """Updates the weights once, or as often as the method does for a batch.

        Args:
            batches: The next `batches_per_update` batches; fewer at the end of an epoch.
            keys: Select the random numbers of each batch and identify its images.

        Returns:
            What the passes gave, in order; their graphs are freed.

        Raises:
            PyengmError: What the method and the optimiser raise. The parameters are then those of the last update.
        """
        ...
