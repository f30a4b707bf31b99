"""Evaluations that SIGKILL ends in the middle: python -m helpers.killed_evaluation FOLDER ATTACK=LIMIT..."""

import os
import signal
import sys
from pathlib import Path

import torch
from helpers.evaluation import CPU, data_for, network

from pyengm.attacks import ThreatModel
from pyengm.evaluation import evaluate, resumable

OPTIONS = {"threat": ThreatModel("l2", 0.4), "device": CPU, "seed": 3}


class Counted(torch.nn.Module):
    """A model that counts its images, and kills its process after `limit` of them."""

    def __init__(self, limit=None):
        super().__init__()
        self.net, self.limit, self.images = network(), limit, 0

    def forward(self, x):
        self.images += len(x)
        if self.limit is not None and self.images > self.limit:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.net(x)


def run(attack, state, limit=None):
    """Results of an evaluation, and the number of images that passed."""
    options = OPTIONS | ({"surrogate": network(seed=1)} if "surrogate" in attack else {})
    model = Counted(limit)
    return evaluate(model, data_for(network()), attacks=[attack], state=state, **options), model.images


def main(folder, *attacks):
    torch.set_num_threads(1)  # a process with threads cannot fork
    for name in ("accuracy", "distance"):
        sys.modules[f"pyengm.evaluation.{name}"].BATCH_SIZE = 8
    resumable.SECONDS = 0.0  # every batch is written
    for number, text in enumerate(attacks):
        attack, _, limit = text.rpartition("=")
        child = os.fork()
        if child == 0:
            run(attack, Path(folder) / str(number), int(limit))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            raise SystemExit(f"{attack}: was not killed, status {status}")


if __name__ == "__main__":
    main(*sys.argv[1:])
