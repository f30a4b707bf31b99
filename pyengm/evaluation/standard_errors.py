"""Standard errors of accuracies, which are means over images."""

from typing import Any

from pyengm.evaluation.attack_registry import AUTOATTACKS, DISTANCES, NATURAL, SAME_EXAMPLES
from pyengm.evaluation.attack_spec import parse_spec
from pyengm.evaluation.one_threat import AFTER


def standard_error(accuracy: float, images: int) -> float:
    """Standard error sqrt(p (1 - p) / n) of an accuracy p in [0, 1] that was measured on n images."""
    return (accuracy * (1 - accuracy) / images) ** 0.5


def image_count(key: str, results: dict[str, Any]) -> int:
    """The number of images that a result was measured on.

    Args:
        key: its name among the results of a model.
        results: results of `evaluate_checkpoints`.
    """
    if ":" in key:
        return results["images"]["autoattack" if parse_spec(key).name in AUTOATTACKS else "all"]
    name = key.removeprefix(AFTER)
    for threat in results["threats"][1:]:
        name = name.removesuffix(f"_{threat['norm']}")
    return results["images"]["autoattack" if name in (*AUTOATTACKS, SAME_EXAMPLES) else "all"]


def standard_errors(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The standard error of every accuracy, by model and name.

    Args:
        results: results of `evaluate_checkpoints`.
    """
    models = {name: values for name, values in results.items() if isinstance(values, dict) and NATURAL in values}
    return {
        model: {
            key: standard_error(value, image_count(key, results))
            for key, value in values.items()
            if key.partition(":")[0] not in DISTANCES
        }
        for model, values in models.items()
    }
