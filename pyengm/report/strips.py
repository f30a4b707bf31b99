"""Clean image, perturbation and adversarial image side by side, with the predictions."""

from dataclasses import dataclass

from torch import Tensor

from pyengm.report.attacked import Attacked, Predicted
from pyengm.report.png import png_data_uri

CONTRAST = 0.4  # from grey, 0.5


@dataclass(frozen=True)
class Verdict:
    """The prediction for an image.

    Args:
        name: The class.
        confidence: Its probability in per cent, as text.
        correct: Whether it is the true class.
    """

    name: str
    confidence: str
    correct: bool


@dataclass(frozen=True)
class Strip:
    """An image under attack.

    Args:
        label: The true class.
        clean, perturbation, adversarial: Data URIs.
        before: The prediction for the clean image.
        after: The prediction for the adversarial one.
    """

    label: str
    clean: str
    perturbation: str
    adversarial: str
    before: Verdict
    after: Verdict


def make_strips(attacked: Attacked) -> tuple[list[Strip], float]:
    """The strips of a run.

    Returns:
        The strips, and the factor by which all perturbations are amplified around grey, so that the largest change
        of a pixel is `CONTRAST`.
    """
    changes = attacked.examples.double() - attacked.images.double()
    largest = changes.abs().max().item()
    factor = CONTRAST / largest if largest > 0 else 1.0
    return [
        Strip(
            label=attacked.classes[int(attacked.labels[position])],
            clean=png_data_uri(attacked.images[i]),
            perturbation=png_data_uri(0.5 + factor * changes[i]),
            adversarial=png_data_uri(attacked.examples[i]),
            before=_verdict(attacked, attacked.clean, position),
            after=_verdict(attacked, attacked.adversarial, position),
        )
        for i, position in enumerate(attacked.shown)
    ], factor


def _verdict(attacked: Attacked, predicted: Predicted, position: Tensor) -> Verdict:
    label = int(predicted.classes[position])
    confidence = f"{100 * predicted.confidence[position].item():.0f}\u00a0%"
    return Verdict(attacked.classes[label], confidence, label == int(attacked.labels[position]))
