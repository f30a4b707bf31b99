"""Lightning: training_step returns one loss per example, and automatic optimisation stays.

python -m pyengm.examples.lightning_module
torchrun --nproc-per-node 2 -m pyengm.examples.lightning_module
"""

from typing import Any

import lightning  # pyright: ignore[reportMissingImports]
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pyengm
from pyengm.examples.problem import ALPHA, LR, loader, network, processes
from pyengm.integrations.lightning import PerExampleLosses


class Classifier(PerExampleLosses, lightning.LightningModule):  # pyright: ignore[reportGeneralTypeIssues]
    """A classifier trained by ENGM.

    Args:
        net: Maps images to logits (n, k).
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The losses (n,)."""
        x, y = batch
        losses = F.cross_entropy(self.net(x), y, reduction="none")
        self.log("loss", losses.mean())
        return losses

    def on_train_batch_end(self, *args: Any) -> None:
        """Logs what the optimiser did to the examples."""
        self.log_dict(self.optimizers().statistics())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """ENGM."""
        return pyengm.ENGM(self.parameters(), lr=LR, alpha=ALPHA)


def main(module: type[Classifier] = Classifier, **options: Any) -> nn.Module:
    """Trains for an epoch and returns the network. options: further arguments of lightning.Trainer."""
    net = network()
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=processes(),
        strategy="ddp" if processes() > 1 else "auto",
        use_distributed_sampler=False,  # the loader has its own
        logger=False,
        enable_checkpointing=False,
        **options,
    )
    trainer.fit(module(net), loader())
    print({name: round(value.item(), 3) for name, value in trainer.logged_metrics.items()})
    return net


if __name__ == "__main__":
    main()
