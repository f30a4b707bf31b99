"""Mixed precision: the model computes in 16 bits; parameters, losses, gradients of images and steps are float32."""

import torch
from torch import Tensor, nn

PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
FIRST_SCALE = 2.0**10  # per-example gradients of the logits reach 1: torch's own 2**16 would overflow float16


class Autocast(nn.Module):
    """A model under autocast, with outputs in float32. Its parameters are those of the model.

    Casts of weights last for one forward pass, so none outlives a change of the weights or the capture of a CUDA graph.

    Args:
        model: Any module of one tensor.
        dtype: torch.bfloat16 or torch.float16.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.model, self.dtype = model, dtype
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        """Runs the model on x under autocast to the dtype."""
        with torch.autocast(x.device.type, self.dtype):
            output = self.model(x)
        return output.float()

    def get_submodule(self, target: str) -> nn.Module:
        """Returns a submodule by its name in the model itself."""
        return self.model.get_submodule(target)


def in_precision(model: nn.Module, precision: str) -> nn.Module:
    """Returns the model as a training step runs it.

    Args:
        model: The model in float32.
        precision: A name of `PRECISIONS`.
    """
    dtype = PRECISIONS[precision]
    return model if dtype is None else Autocast(model, dtype)


def scaler_for(precision: str, device: torch.device) -> torch.amp.GradScaler | None:
    """Returns the scaler of losses that fp16 needs, None for other precisions."""
    return torch.amp.GradScaler(device.type, init_scale=FIRST_SCALE) if precision == "fp16" else None
