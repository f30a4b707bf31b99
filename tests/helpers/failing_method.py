"""A method that fails at one of the weights at which AWP and SAM take its losses."""

import torch

from pyengm.methods import PGDAT, StepOutput


class Failing(PGDAT):
    """Fails, or gives nan, in the outcome of that number: the first is at the weights, the second where they moved."""

    def __init__(self, fails, how):
        super().__init__(0.1, 0.03, 1)
        self.fails, self.how, self.calls = fails, how, 0

    def outcome(self, model, x, x_adv, y):
        self.calls += 1
        outcome = super().outcome(model, x, x_adv, y)
        if self.calls != self.fails:
            return outcome
        if self.how == "error":
            raise RuntimeError("out of memory")
        return StepOutput(outcome.losses * torch.nan, outcome.x_adv, outcome.logits)
