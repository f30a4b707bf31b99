"""
Weights from norms
==================

The optimisers of the family differ in how a norm becomes a weight. ``weighted_backward`` takes any such function.
"""

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

import pyengm
from pyengm.examples.problem import digits, network

# %%
# Four functions of the norm.

alpha = 4.0
weightings = {
    "clip to alpha (ENGM)": lambda norms: (alpha / norms).clamp(max=1),
    "rescale to alpha (FENGM)": lambda norms: alpha / norms,
    "automatic clipping (Bu et al. 2023)": lambda norms: alpha / (norms + 0.5),
    "no weights (SGD)": torch.ones_like,
}

norms = torch.linspace(0.3, 20, 200)
_, ax = plt.subplots(figsize=(6, 3.4))
for (label, function), style in zip(weightings.items(), ("-", "--", "-.", ":"), strict=True):
    ax.plot(norms, norms * function(norms), style, label=label)
ax.set(xlabel="norm of the gradient of an example", ylabel="what it contributes", ylim=(0, 12))
ax.legend(fontsize="small")
plt.show()

# %%
# The gradients that they give on one batch, by their cosine with that of SGD.

model = network()
x, y = digits()[:128]
gradients = {}
for label, function in weightings.items():
    model.zero_grad()
    pyengm.weighted_backward(F.cross_entropy(model(x), y, reduction="none"), model, function)
    gradients[label] = torch.cat([p.grad.flatten() for p in model.parameters()])
for label, gradient in gradients.items():
    cosine = F.cosine_similarity(gradient, gradients["no weights (SGD)"], dim=0)
    print(f"{label:36} norm {gradient.norm():5.2f}  cosine {cosine:.3f}")
