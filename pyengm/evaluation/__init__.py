"""How robust a model is: accuracies, a table and an image."""

from pyengm.evaluation.accuracy import Verdicts, accuracy, correct, predict
from pyengm.evaluation.attack_registry import attack_named, attack_names, check_attacks
from pyengm.evaluation.calibration import expected_calibration_error
from pyengm.evaluation.checkpoints import evaluate_checkpoints
from pyengm.evaluation.curves import plot_curves
from pyengm.evaluation.distance import robustness_distance
from pyengm.evaluation.evaluate import evaluate, robust_overfitting
from pyengm.evaluation.progress import attack_checkpoints
from pyengm.evaluation.table import results_table

__all__ = [
    "Verdicts",
    "accuracy",
    "attack_checkpoints",
    "attack_named",
    "attack_names",
    "check_attacks",
    "correct",
    "evaluate",
    "evaluate_checkpoints",
    "expected_calibration_error",
    "plot_curves",
    "predict",
    "results_table",
    "robust_overfitting",
    "robustness_distance",
]
