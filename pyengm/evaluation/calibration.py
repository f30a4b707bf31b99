"""Calibration: the difference between a classifier's confidence and its accuracy."""

import torch
from torch import Tensor

BINS = 15


def expected_calibration_error(confidence: Tensor, correct: Tensor, bins: int = BINS) -> float:
    """sum_b |B_b| / N |accuracy of B_b - mean confidence of B_b| over the bins ((b-1)/bins, b/bins].

    Args:
        confidence: (N,) probabilities of the predicted classes.
        correct: (N,) bool, whether these classes are the true ones.
        bins: number of equal parts of the range from 0 to 1.

    Returns:
        The error, from 0 to 1.

    Raises:
        ValueError: shapes do not fit, there are no examples, or a confidence is outside [0, 1].

    References:
        Guo et al. 2017, "On calibration of modern neural networks", Eq. 3.
    """
    if confidence.dim() != 1 or confidence.shape != correct.shape or not len(confidence):
        raise ValueError(
            f"expected confidences and correctness of N >= 1 examples, got shapes {tuple(confidence.shape)} and "
            f"{tuple(correct.shape)}"
        )
    if not ((confidence >= 0) & (confidence <= 1)).all():  # nan is neither
        raise ValueError("expected confidences from 0 to 1; give probabilities, such as logits.softmax(dim=1)")
    confidence = confidence.double()
    index = (confidence * bins).ceil().long().sub(1).clamp(min=0)
    gaps = torch.zeros(bins, dtype=torch.float64, device=confidence.device)
    gaps.index_add_(0, index, correct.double() - confidence)
    return (gaps.abs().sum() / len(confidence)).item()
