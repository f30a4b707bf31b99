"""
Accuracy against the radius
===========================

Natural and adversarial training under attacks of growing radius. A curve that does not fall to zero would be a sign
that the attack fails, and not that the model is robust.
"""

import matplotlib.pyplot as plt
import torch
from torch.utils.data import DataLoader

import pyengm
from pyengm.attacks import ThreatModel
from pyengm.evaluation import curves_of, evaluate
from pyengm.examples.problem import digits

# %%
# Two models, which differ in the method alone.

methods = {"natural": pyengm.methods.Natural(), "PGD-AT": pyengm.methods.PGDAT(eps=0.15, steps=3)}
models = {}
for label, method in methods.items():
    torch.manual_seed(0)
    model = pyengm.models.build("cnn4", width=8, image_size=8, in_channels=1)
    opt = pyengm.ENGM(model.parameters(), lr=0.05, momentum=0.9, alpha=5.0)
    for _epoch in range(8):
        for x, y in DataLoader(digits(), 64, shuffle=True):
            pyengm.train_step(method, model, opt, x, y)
    models[label] = model.eval()

# %%
# Each radius of the spec is a result of its own, and ``curves_of`` joins them.

test = pyengm.data.load("digits", "test")
data = torch.as_tensor(test.images[:150]).float() / 255, torch.as_tensor(test.labels[:150])
spec = "pgd:steps=20,step_size=eps/5,loss=ce,eps=0.05..0.5..0.05"
_, ax = plt.subplots(figsize=(6, 3.4))
for label, model in models.items():
    results = evaluate(model, data, attacks=[spec], threat=ThreatModel("linf", 0.15))
    (curve,) = curves_of(results).values()
    ax.plot([0, *curve], [results["natural"], *curve.values()], marker="o", markersize=3, label=label)
ax.set(xlabel="eps, L-infinity", ylabel="accuracy under PGD-20", ylim=(0, 1.02))
ax.legend()
plt.show()
