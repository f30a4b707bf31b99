"""
A robust classifier in seconds
==============================

Adversarial training of a small network with ENGM, and what an attack does to its images.
"""

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

import pyengm
from pyengm.examples.problem import digits

# %%
# Training: PGD makes the examples, and ENGM clips the gradient of each to norm alpha.

model = pyengm.models.build("cnn4", width=8, image_size=8, in_channels=1)
opt = pyengm.ENGM(model.parameters(), lr=0.05, momentum=0.9, alpha=5.0)
attack = pyengm.attacks.PGD(eps=0.15, step_size=0.04, steps=5)
test = pyengm.data.load("digits", "test")
x_test, y_test = torch.as_tensor(test.images[:200]).float() / 255, torch.as_tensor(test.labels[:200])


def accuracy(images):
    with torch.no_grad():
        return (model(images).argmax(1) == y_test).float().mean().item()


history = []
for _epoch in range(10):
    model.train()
    for x, y in DataLoader(digits(), 64, shuffle=True):
        losses = F.cross_entropy(model(attack(model, x, y)), y, reduction="none")
        opt.zero_grad()
        opt.backward(losses)
        opt.step()
    model.eval()
    clipped = opt.statistics()["clipped"]
    history.append((accuracy(x_test), accuracy(attack(model, x_test, y_test)), clipped))

# %%
# Accuracy by epoch, and the share of examples that ENGM clips in the last batch.

_, ax = plt.subplots(figsize=(6, 3.2))
for values, label in zip(zip(*history, strict=True), ("natural", "under PGD-5", "clipped"), strict=True):
    ax.plot(range(1, len(values) + 1), values, label=label, linestyle=":" if label == "clipped" else "-")
ax.set(xlabel="epoch", ylabel="share", ylim=(0, 1.02))
ax.legend()
plt.show()

# %%
# Images, their adversarial examples, and the labels that the model gives them.

x_adv = attack(model, x_test, y_test)
found = model(x_adv).argmax(1)
_, axes = plt.subplots(2, 8, figsize=(8, 2.4))
for i in range(8):
    for row, image in enumerate((x_test[i, 0], x_adv[i, 0])):
        axes[row, i].imshow(image, cmap="gray", vmin=0, vmax=1)
        axes[row, i].axis("off")
    axes[0, i].set_title(f"{y_test[i]}", fontsize=9)
    axes[1, i].set_title(f"{found[i]}", fontsize=9)
plt.show()
