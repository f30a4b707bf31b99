"""What is logged of every training image in an epoch: its gradient, its step size and its perturbation."""

from dataclasses import replace

import torch
from torch import Tensor

from pyengm.methods.dataset_spec import DatasetSpec
from pyengm.methods.per_example_buffer import BufferSlot, PerExampleBuffer
from pyengm.ops import row_norms

# The L2 norm of the gradient that the last step of the attack followed, of the image's own loss; the size of that step;
# the norms of the perturbation that the image was trained with.
FIELDS = ("grad_norm", "step_size", "delta_l2", "delta_linf")


class LogsInstances:
    """A method that can keep `FIELDS` of the last attack on every training image, for one step of the attack or more.

    The values follow their images to other processes, and into checkpoints, as those of any buffer do.
    """

    instances = BufferSlot()

    def log_instances(self, dataset: DatasetSpec) -> None:
        """Logs from now on.

        Args:
            dataset: The training images, as for `Method.prepare`.
        """
        self.instances = PerExampleBuffer(replace(dataset, shape=(len(FIELDS), 1, 1), padding=0))

    @property
    def logs_instances(self) -> bool:
        """Whether `log_instances` was called."""
        return "instances" in vars(self)

    def note_instances(self, index: Tensor, grad: Tensor, step_size: Tensor | float, delta: Tensor) -> None:
        """Keeps the values of a batch, where they are logged.

        Args:
            index: (n,) identities of the images.
            grad: (n, ...) gradients of their losses.
            step_size: (n,) or one number.
            delta: (n, ...) their perturbations.
        """
        if not self.logs_instances:
            return
        norms = row_norms(grad)
        sizes = torch.as_tensor(step_size, dtype=norms.dtype, device=norms.device).expand_as(norms)
        values = [norms, sizes, row_norms(delta), delta.flatten(1).abs().amax(dim=1)]
        rows = self.instances.rows(index)
        self.instances.values[rows] = torch.stack(values, dim=1)[:, :, None, None].to(self.instances.values)
