"""Evaluation of the robustness of models: accuracies, distances, a table and a figure."""

from pyengm.evaluation.accuracy import Predictions, accuracy, correct, predict
from pyengm.evaluation.attack_registry import ATTACKS, ATTACKS_HELP, AttackInfo
from pyengm.evaluation.attack_spec import (
    PROTOCOLS,
    AttackSpec,
    check_attacks,
    create_attack,
    curves_of,
    final_attacks,
    parse_spec,
)
from pyengm.evaluation.autoattack_runs import AutoAttackVerdicts, run_autoattack
from pyengm.evaluation.autoattack_warnings import AutoAttackWarning
from pyengm.evaluation.calibration import expected_calibration_error
from pyengm.evaluation.checkpoints import DETAILS, evaluate_checkpoints
from pyengm.evaluation.curves import plot_curves
from pyengm.evaluation.distance import robustness_distance
from pyengm.evaluation.evaluate import evaluate, robust_overfitting
from pyengm.evaluation.model_sources import ModelSource, find_source
from pyengm.evaluation.progress import evaluate_with_progress
from pyengm.evaluation.standard_errors import standard_error, standard_errors
from pyengm.evaluation.table import results_table
from pyengm.evaluation.trust import trust_block
from pyengm.evaluation.trust_table import evaluation_tables

__all__ = [
    "ATTACKS",
    "ATTACKS_HELP",
    "DETAILS",
    "PROTOCOLS",
    "AttackInfo",
    "AttackSpec",
    "AutoAttackVerdicts",
    "AutoAttackWarning",
    "ModelSource",
    "Predictions",
    "accuracy",
    "check_attacks",
    "correct",
    "create_attack",
    "curves_of",
    "evaluate",
    "evaluate_checkpoints",
    "evaluate_with_progress",
    "evaluation_tables",
    "expected_calibration_error",
    "final_attacks",
    "find_source",
    "parse_spec",
    "plot_curves",
    "predict",
    "results_table",
    "robust_overfitting",
    "robustness_distance",
    "run_autoattack",
    "standard_error",
    "standard_errors",
    "trust_block",
]
