"""
Norms of per-example gradients
==============================

Why clip? The norms of the examples of one batch span several powers of ten, and an attack makes them larger.
"""

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

import pyengm
from pyengm.examples.problem import digits

# %%
# A network after six epochs of adversarial training.

model = pyengm.models.build("cnn4", width=8, image_size=8, in_channels=1)
opt = pyengm.ENGM(model.parameters(), lr=0.05, momentum=0.9, alpha=5.0)
method = pyengm.methods.PGDAT(eps=0.15, steps=3)
for _epoch in range(6):
    for x, y in DataLoader(digits(), 64, shuffle=True):
        pyengm.train_step(method, model, opt, x, y)

# %%
# The norms take one backward pass.

x, y = digits()[:512]
model.eval()
x_adv = pyengm.attacks.PGD(eps=0.15, step_size=0.05, steps=10)(model, x, y)
norms = {}
for label, images in {"natural": x, "under PGD-10": x_adv}.items():
    losses = F.cross_entropy(model(images), y, reduction="none")
    norms[label] = pyengm.per_example_grad_norms(losses, model)

# %%
# Everything to the right of the line is clipped to it.

bins = torch.logspace(-4, 2, 49)
_, ax = plt.subplots(figsize=(6, 3.2))
for label, values in norms.items():
    ax.hist(values.clamp(min=2e-4), bins=bins, alpha=0.6, label=label)
ax.axvline(5.0, color="#808080", linestyle="--")
ax.text(5.6, 0.92, "alpha", transform=ax.get_xaxis_transform())
ax.set(xscale="log", xlabel="norm of the gradient of one example", ylabel="examples")
ax.legend(loc="upper left")
plt.show()

# %%
# The share of the sum of all norms that the largest tenth of the examples has:

for label, values in norms.items():
    top = values.sort(descending=True).values[: len(values) // 10]
    print(f"{label}: {top.sum() / values.sum():.0%}")
