"""Transformers: PerExampleTrainer takes the place of Trainer.

python -m pyengm.examples.hf_trainer
torchrun --nproc-per-node 2 -m pyengm.examples.hf_trainer
"""

import tempfile
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import TrainingArguments  # pyright: ignore[reportMissingImports]

import pyengm
from pyengm.examples.problem import ALPHA, BATCH, LR, digits, network, processes
from pyengm.integrations.transformers import PerExampleTrainer


class Classifier(nn.Module):
    """A network with the interface that Trainer expects.

    Args:
        net: Maps images to logits (n, k).
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """The logits, and the mean loss where labels are given, for evaluation."""
        logits = self.net(pixel_values)
        loss = {} if labels is None else {"loss": F.cross_entropy(logits, labels)}
        return loss | {"logits": logits}


def main(trainer: Any = PerExampleTrainer, **options: Any) -> nn.Module:
    """Trains for an epoch and returns the network. options: further arguments of TrainingArguments."""
    net = network()
    with tempfile.TemporaryDirectory() as folder:
        defaults = {
            "num_train_epochs": 1,
            "per_device_train_batch_size": BATCH // processes(),
            "train_sampling_strategy": "sequential",
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0,
            "logging_steps": 4,
            "save_strategy": "no",
            "report_to": [],
            "use_cpu": True,
        }
        run = trainer(
            Classifier(net),
            TrainingArguments(folder, **defaults | options),
            train_dataset=[{"pixel_values": x, "labels": y} for x, y in digits()],
            optimizers=(pyengm.ENGM(net.parameters(), lr=LR, alpha=ALPHA), None),
        )
        run.train()
        print(run.optimizer.optimizer.statistics())
    return net


if __name__ == "__main__":
    main()
