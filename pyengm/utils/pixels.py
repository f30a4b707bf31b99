"""Numbers as people write them: fractions, and values in pixel units."""


def parse_number(text: str) -> float:
    """Returns a number that may be written as a fraction: "0.2" or "8/255"."""
    top, _, bottom = text.partition("/")
    return float(top) / float(bottom or 1)


def format_pixels(value: float) -> str:
    """Returns a value in pixel units as people write it: "8/255", or "0.2" where three digits are enough."""
    if f"{value:.3g}" == f"{value:.12g}":
        return f"{value:.3g}"
    levels = 255 * value
    is_fraction = abs(levels - round(levels)) < 1e-9
    return f"{round(levels)}/255" if is_fraction else f"{value:.4g}"
