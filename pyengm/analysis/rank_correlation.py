"""Spearman's rank correlation."""

import numpy as np


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation of the ranks of two sequences (N,), those of equal values averaged; nan for constants."""
    ranks = [_average_ranks(values) for values in (a, b)]
    if any(np.ptp(values) == 0 for values in ranks):
        return float("nan")
    return float(np.corrcoef(np.stack(ranks))[0, 1])


def _average_ranks(values: np.ndarray) -> np.ndarray:
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[group]
