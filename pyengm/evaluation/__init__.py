"""How robust a model is: accuracies, a table and a picture."""

from pyengm.evaluation.accuracy import Verdicts, accuracy, correct, judge
from pyengm.evaluation.calibration import expected_calibration_error
from pyengm.evaluation.checkpoints import evaluate_checkpoints
from pyengm.evaluation.curves import plot_curves
from pyengm.evaluation.distance import robustness_distance
from pyengm.evaluation.evaluate import evaluate, robust_overfitting
from pyengm.evaluation.shown import attack_checkpoints
from pyengm.evaluation.suite import attack_named, attack_names, check_attacks
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
    "judge",
    "plot_curves",
    "results_table",
    "robust_overfitting",
    "robustness_distance",
]
