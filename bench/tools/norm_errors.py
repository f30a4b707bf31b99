"""Errors of estimated gradient norms under batch norm in training mode, while a model is trained: a Markdown table.

    python bench/tools/norm_errors.py --model resnet18 --width 16 --data digits

Trains with PGD-5 and clipped gradients. "fresh" estimators are fitted on the batch that they are
measured on, aged ones were fitted that many steps ago during training and are due for the next fit.
"""

import argparse
import copy

import torch
from torch.nn import functional as F

from pyengm.analysis import norm_errors
from pyengm.attacks import PGD
from pyengm.data import load
from pyengm.models import build
from pyengm.ops import clip_weights
from pyengm.pergrad import Estimator

STAGES = (0, 50, 150, 400)  # steps
ALPHA = 5.0
EPS = {"digits": 0.2}  # elsewhere 8 / 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="digits", help="a data set of pyengm, or a folder of images")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--width", type=int)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    data = load(options.data, "train")
    order = torch.randperm(len(data.labels)).tolist()
    held_out, order = order[: options.batch], order[options.batch :]
    model = build(
        options.model, data.num_classes, in_channels=data.channels, image_size=data.image_size, width=options.width
    )
    params = list(model.parameters())
    eps = EPS.get(options.data, 8 / 255)
    attack = PGD(eps=eps, step_size=eps / 4, steps=5)
    optimizer = torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=5e-4)
    live = {kind: Estimator(kind) for kind in ("frozen", "corrected")}

    def losses(indices: list[int]) -> torch.Tensor:
        some = data.subset(indices)
        x = torch.stack([torch.as_tensor(some.images[k]).float() / 255 for k in range(len(indices))])
        y = torch.as_tensor(some.labels)
        return F.cross_entropy(model.train()(attack(model, x, y)), y, reduction="none")

    def show(step: int, fit: str, rows: dict) -> None:
        for name, e in rows.items():
            errors = f"{e.median:.1%} | {e.bias:+.1%} | {e.correlation:.3f} | {e.update:.1%}"
            print(f"| {step} | {name} | {fit} | {errors} |", flush=True)

    print(f"| {options.model} at step | norms | fit | median error | bias | correlation | error of the update |")
    print("|---|---|---|---|---|---|---|", flush=True)
    generator = torch.Generator().manual_seed(1)
    ageing = set()
    for step in range(max(STAGES) + 101):
        if step in STAGES:
            show(step, "fresh", norm_errors(losses(held_out), params))
            ageing = set(live)
        for name in [name for name in ageing if live[name].age and live[name].age == live[name].gap - 1]:
            ageing.remove(name)
            show(
                step,
                f"{live[name].age} steps",
                norm_errors(losses(held_out), params, {name: copy.deepcopy(live[name])}),
            )
        batch = [order[k] for k in torch.randperm(len(order), generator=generator)[: options.batch]]
        of = losses(batch)
        norms = {name: estimator.norms(of, params, estimator.start(of, params)) for name, estimator in live.items()}
        optimizer.zero_grad()
        of.backward(clip_weights(norms["frozen"], ALPHA) / len(of))
        optimizer.step()


if __name__ == "__main__":
    main()
