"""Evaluation of the robustness of models: accuracies, distances, a table and a figure."""

from pyengm.evaluation.accuracy import Predictions, accuracy, correct, predict
from pyengm.evaluation.adversarial_file import AdversarialImages, load_adversarial, save_adversarial
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
from pyengm.evaluation.checkpoints import DETAILS, as_source, evaluate_checkpoints
from pyengm.evaluation.corruptions import evaluate_corruptions
from pyengm.evaluation.curves import plot_curves
from pyengm.evaluation.distance import robustness_distance
from pyengm.evaluation.evaluate import evaluate, robust_overfitting
from pyengm.evaluation.further import FURTHER, further_results, further_tables
from pyengm.evaluation.model_sources import ModelSource, find_source
from pyengm.evaluation.progress import evaluate_with_progress
from pyengm.evaluation.robustbench_entry import robustbench_entry
from pyengm.evaluation.standard_errors import standard_error, standard_errors
from pyengm.evaluation.table import results_table
from pyengm.evaluation.trust import trust_block
from pyengm.evaluation.trust_table import evaluation_tables

__all__ = [
    "ATTACKS",
    "ATTACKS_HELP",
    "DETAILS",
    "FURTHER",
    "PROTOCOLS",
    "AdversarialImages",
    "AttackInfo",
    "AttackSpec",
    "AutoAttackVerdicts",
    "AutoAttackWarning",
    "ModelSource",
    "Predictions",
    "accuracy",
    "as_source",
    "check_attacks",
    "correct",
    "create_attack",
    "curves_of",
    "evaluate",
    "evaluate_checkpoints",
    "evaluate_corruptions",
    "evaluate_with_progress",
    "evaluation_tables",
    "expected_calibration_error",
    "final_attacks",
    "find_source",
    "further_results",
    "further_tables",
    "load_adversarial",
    "parse_spec",
    "plot_curves",
    "predict",
    "results_table",
    "robust_overfitting",
    "robustbench_entry",
    "robustness_distance",
    "run_autoattack",
    "save_adversarial",
    "standard_error",
    "standard_errors",
    "trust_block",
]
