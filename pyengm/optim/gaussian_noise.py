"""Normal noise whose state can be saved and restored."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class GaussianNoise:
    """Standard normal numbers from a torch.Generator of its own, on the device of the first tensor they are drawn for.

    Args:
        seed: The seed, the same in all processes of a run, so that their weights stay equal.
    """

    def __init__(self, seed: int):
        self.load_state_dict({"seed": seed, "generator": None})

    def like(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """A tensor of random numbers for each of the tensors, in its shape, type and device."""
        device = tensors[0].device
        if self._generator is None:
            self._generator = torch.Generator(device).manual_seed(self._seed)
            if self._saved is not None:
                self._generator.set_state(self._saved.cpu())
        options = {"generator": self._generator, "device": self._generator.device}
        return [torch.randn(t.shape, dtype=t.dtype, **options).to(t.device) for t in tensors]

    def state_dict(self) -> dict[str, Any]:
        """The seed and the state of the generator, None before the first draw."""
        return {
            "seed": self._seed,
            "generator": self._saved if self._generator is None else self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._seed, self._saved, self._generator = state["seed"], state["generator"], None

    __getstate__ = state_dict
    __setstate__ = load_state_dict
