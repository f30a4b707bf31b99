"""Confidence intervals of accuracies."""

Z = 1.959963984540054  # of the standard normal distribution, 97.5 %


def wilson_interval(accuracy: float, images: float) -> tuple[float, float]:
    """The 95 % score interval of a share, which stays within [0, 1] and has a width at 0 and 1.

    Args:
        accuracy: Share p in [0, 1] that was measured.
        images: Number n > 0 of images that it was measured on.

    Returns:
        (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n).

    References:
        Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference".
    """
    scale = 1 + Z**2 / images
    middle = accuracy + Z**2 / (2 * images)
    half = Z * (accuracy * (1 - accuracy) / images + Z**2 / (4 * images**2)) ** 0.5
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)
