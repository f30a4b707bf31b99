"""Mixed precision: the model computes in 16 bits; parameters, losses, gradients of images and steps are float32."""

import torch
from torch import Tensor, nn

PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
FIRST_SCALE = 2.0**10  # per-example gradients of the logits reach 1, which torch's own 2**16 takes beyond float16


class Autocast(nn.Module):
    """A model that runs under autocast to dtype and returns its output in float32. Its parameters are the model's own.

    Casts of weights last for one forward pass: nothing is cached over a change of the weights, or in a CUDA graph.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.model, self.dtype = model, dtype
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, self.dtype):
            output = self.model(x)
        return output.float()

    def get_submodule(self, target: str) -> nn.Module:
        """The modules have the names that the model gave them."""
        return self.model.get_submodule(target)


def in_precision(model: nn.Module, precision: str) -> nn.Module:
    """The model as a training step runs it; precision: a name of `PRECISIONS`."""
    dtype = PRECISIONS[precision]
    return model if dtype is None else Autocast(model, dtype)


def scaler_for(precision: str, device: torch.device) -> torch.amp.GradScaler | None:
    """The scaler of losses that float16 needs, None for the others."""
    return torch.amp.GradScaler(device.type, init_scale=FIRST_SCALE) if precision == "fp16" else None
