"""Standard errors of accuracies, which are means over images."""

from typing import Any

from pyengm.attacks import ThreatModel
from pyengm.evaluation.attack_registry import NATURAL
from pyengm.evaluation.one_threat import AFTER
from pyengm.evaluation.result_key import read_key


def standard_error(accuracy: float, images: int) -> float:
    """Standard error sqrt(p (1 - p) / n) of an accuracy p in [0, 1] that was measured on n images.

    Example:
        >>> round(pyengm.evaluation.standard_error(0.5, 100), 6)
        0.05
    """
    return (accuracy * (1 - accuracy) / images) ** 0.5


def standard_errors(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The standard error of every accuracy, by model and name.

    Args:
        results: results of `evaluate_checkpoints`.
    """
    models = {name: values for name, values in results.items() if isinstance(values, dict) and NATURAL in values}
    threats = [ThreatModel(**threat) for threat in results["threats"]]
    all_images, few = results["images"]["all"], results["images"]["autoattack"]

    def errors(values: dict[str, float]) -> dict[str, float]:
        read = {key: read_key(key.removeprefix(AFTER), threats) for key in values}
        return {
            key: standard_error(value, few if key.startswith(AFTER) or read[key].on_few else all_images)
            for key, value in values.items()
            if not read[key].is_distance
        }

    return {model: errors(values) for model, values in models.items()}
