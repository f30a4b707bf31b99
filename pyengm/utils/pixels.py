"""Values in pixel units as people write them."""


def format_pixels(value: float) -> str:
    """Returns a value in pixel units as people write it: "8/255", or "0.2" where three digits are enough."""
    if f"{value:.3g}" == f"{value:.12g}":
        return f"{value:.3g}"
    levels = 255 * value
    is_fraction = abs(levels - round(levels)) < 1e-9
    return f"{round(levels)}/255" if is_fraction else f"{value:.4g}"
