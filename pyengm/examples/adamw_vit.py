"""Trains a vision transformer by AdamW and clips the gradient of every example.

    python -m pyengm.examples.adamw_vit [steps]

Any torch optimiser works this way: pyengm.clipped_backward fills .grad, and the rest of the loop stays as it is.
The example needs timm and trains on the digits of scikit-learn, for some seconds on a CPU.
"""

import sys

import timm
import torch
from torch.nn import functional as F

import pyengm


def main(steps: int = 60) -> list[float]:
    """Trains for some steps, prints every tenth, and returns the mean loss of each step."""
    torch.manual_seed(0)
    train = pyengm.data.load("digits", "train")
    loader = pyengm.data.Loader(train, 64, device=torch.device("cpu"), seed=0, augment="none", shuffle=True)
    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=8,
        patch_size=4,
        in_chans=train.channels,
        num_classes=train.num_classes,
        embed_dim=64,
        depth=2,
        num_heads=4,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.05)
    history = []
    for step, batch in enumerate(batch for epoch in range(steps) for batch in loader.epoch(epoch)):
        if step == steps:
            break
        losses = F.cross_entropy(model(4 * batch.x - 1), batch.y, reduction="none")
        optimizer.zero_grad()
        stats = pyengm.clipped_backward(losses, model.parameters(), alpha=2.0)
        optimizer.step()
        history.append(losses.mean().item())
        if step % 10 == 0 and stats.norms is not None:
            clipped = (stats.weights < 1).float().mean().item()
            median = stats.norms.median()
            print(f"step {step:3}  loss {history[-1]:.3f}  median norm {median:5.2f}  clipped {clipped:4.0%}")
    return history


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
