"""The look of the gallery's figures: no background, and a grey that can be read on white and on black."""

from pathlib import Path
from typing import Any

GREY = "#808080"
TEXTS = ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color")
BACKGROUNDS = ("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor")


def reset(gallery: dict[str, Any], file: str | Path) -> None:
    """Sets the style and the seed before each script; called by sphinx-gallery."""
    import matplotlib as mpl
    import torch

    mpl.rcdefaults()
    mpl.use("agg")
    mpl.rcParams |= dict.fromkeys(TEXTS, GREY) | dict.fromkeys(BACKGROUNDS, "none")
    mpl.rcParams |= {"figure.dpi": 110, "figure.constrained_layout.use": True, "legend.frameon": False}
    torch.manual_seed(0)
