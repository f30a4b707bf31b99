"""Transformers: a Trainer that takes one loss per example."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer  # pyright: ignore[reportMissingImports]

from pyengm.errors import ConfigError
from pyengm.integrations.accelerate import backward
from pyengm.pergrad import PerExampleStats


class PerExampleTrainer(Trainer):  # pyright: ignore[reportGeneralTypeIssues]
    """A Trainer whose optimiser gets one loss per example: `PerExampleTrainer(..., optimizers=(ENGM(...), None))`.

    `optimizer_cls_and_kwargs=(ENGM, {"lr": 0.1, "alpha": 5.0})` is another way to give it. All else is Trainer's,
    such as max_grad_norm, by which it clips the whole gradient unless that is 0.

    Attributes:
        alpha: Largest norm of an example's gradient under an optimiser that is not of pyengm.optim, such as
            torch.optim.AdamW; None takes the mean gradient.
        example_stats: The norms and weights of the last batch, None where there are none.
    """

    alpha: float | None = None
    example_stats: PerExampleStats | None = None

    def compute_losses(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """The losses (n,) of a batch: the cross-entropy of one label per example, with args.label_smoothing_factor.

        Override it for other losses.

        Args:
            model: The model, in training mode.
            inputs: The batch, with "labels" (n,).
        """
        labels = inputs["labels"]
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        smoothing = self.args.label_smoothing_factor
        return F.cross_entropy(logits.float(), labels, reduction="none", label_smoothing=smoothing)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Trainer's step, with the backward pass of the losses of `compute_losses`.

        Args:
            model: The model.
            inputs: The batch.
            num_items_in_batch: Not used, as every loss is that of one example.

        Returns:
            The mean loss, divided by the number of batches of an update.

        Raises:
            ConfigError: Trainer was given compute_loss_func, or runs DataParallel or an engine of its own.
        """
        if self.compute_loss_func is not None:
            raise ConfigError("compute_loss_func returns one loss for a batch: override compute_losses instead")
        if self.args.n_gpu > 1:
            raise ConfigError("DataParallel hides the examples' gradients: start one process per GPU, by torchrun")
        model.train()
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            losses = self.compute_losses(model, inputs)
        accumulate = self.current_gradient_accumulation_steps
        self.example_stats = backward(self.accelerator, self.optimizer, losses, alpha=self.alpha, accumulate=accumulate)
        return losses.detach().mean() / accumulate
