"""
The loss around an image
========================

``pyengm.analysis`` draws the figures of the papers for any model: here the loss on the plane of an attack and a random
direction, and the convergence of PGD.
"""

import matplotlib.pyplot as plt
import torch
from torch.utils.data import DataLoader

import pyengm
from pyengm.analysis import fosc_trajectory, input_plane
from pyengm.attacks import PGD, ThreatModel
from pyengm.examples.problem import digits

models = {}
for label, method in {"natural": pyengm.methods.Natural(), "PGD-AT": pyengm.methods.PGDAT(0.15, steps=3)}.items():
    torch.manual_seed(0)
    model = pyengm.models.build("cnn4", width=8, image_size=8, in_channels=1)
    opt = pyengm.ENGM(model.parameters(), lr=0.05, momentum=0.9, alpha=5.0)
    for _epoch in range(8):
        for x, y in DataLoader(digits(), 64, shuffle=True):
            pyengm.train_step(method, model, opt, x, y)
    models[label] = model.eval()

x, y = digits()[:32]

# %%
# The mean over 32 images. After adversarial training the loss is flatter by far: compare the scales.

figure, axes = plt.subplots(1, 2, figsize=(9, 3.6))
for ax, (label, model) in zip(axes, models.items(), strict=True):
    input_plane(model, x, y, PGD(0.15, 0.04, 10)).mean().plot(ax)
    ax.set_title(label)
plt.show()

# %%
# FOSC is 0 at a stationary point of the attack (Wang et al. 2019). Here it is taken within [0, 1], along 20 steps of
# PGD.

threat = ThreatModel("linf", 0.15)
figure, axes = plt.subplots(2, 1, figsize=(6, 7))
for ax, (label, model) in zip(axes, models.items(), strict=True):
    fosc_trajectory(model, x, y, threat, step_size=0.02, steps=20, box=True).plot(ax)
    ax.set_title(label, pad=24)
plt.show()
