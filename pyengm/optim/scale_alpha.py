"""The growth of the clipping norm with the size of the model."""

import math

from torch import nn

REFERENCE_PARAMETERS = 11_173_962  # of the ResNet-18 with 64 channels and 10 classes, for which the paper has alpha = 5


def scale_alpha(model: nn.Module, alpha: float = 5.0) -> float:
    """The clipping norm for a model: alpha sqrt(P / 11.17 million) for P trainable parameters.

    The paper has 10.4 for WRN-34-10, which it counts as 48.2 million parameters; for the 46.2 million of the usual
    WRN-34-10 the rule gives 10.2.

    Args:
        model: The model.
        alpha: The value for ResNet-18 on CIFAR-10: 5 for ENGM and AENGM, 0.5 for NENGM.

    Returns:
        The clipping norm.

    Raises:
        ValueError: The model has no trainable parameters.

    References:
        Dabouei et al. 2022, Sec. 2.4 and 3.3.

    Example:
        >>> pyengm.scale_alpha(torch.nn.Linear(4, 3)) > 0
        True
    """
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if not count:
        raise ValueError("the model has no parameter that requires grad")
    return alpha * math.sqrt(count / REFERENCE_PARAMETERS)
