"""All checks on one model under one threat model."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from pyengm.attacks import ThreatModel
from pyengm.data import ImageDataset
from pyengm.evaluation.autoattack_warnings import AutoAttackWarning
from pyengm.evaluation.trust.black_box import check_black_box
from pyengm.evaluation.trust.check import Check
from pyengm.evaluation.trust.gradients import check_gradients
from pyengm.evaluation.trust.noise import check_noise
from pyengm.evaluation.trust.probe import Probe
from pyengm.evaluation.trust.radii import check_accuracy_falls, check_reaches_zero, eps_curve
from pyengm.evaluation.trust.randomness import check_outputs_repeat, check_verdicts_repeat
from pyengm.evaluation.trust.resolution import check_resolution
from pyengm.evaluation.trust.steps import check_more_steps, check_single_step

MIN_IMAGES = 20


@torch.inference_mode(False)
def trust_block(
    model: nn.Module,
    data: ImageDataset,
    threat: ThreatModel,
    *,
    device: torch.device,
    seed: int = 0,
    warnings: Sequence[AutoAttackWarning] | None = None,
) -> dict[str, Any]:
    """Checks whether a robust accuracy can be trusted: attacks fail on models that hide their gradients.

    Args:
        model: Classifier of images in [0, 1], on `device`; restored afterwards.
        data: The images that AutoAttack gets, of which at most 100 are used, spread evenly.
        threat: The threat model.
        device: Device of the model.
        seed: Seed of the random starts.
        warnings: Those of AutoAttack under the threat model; None where it did not run.

    Returns:
        Plain values for JSON: "images", their number; "checks", a dict with name, title, passed and figure for each
        check, see `Check`; "curve", accuracies in [0, 1] under PGD by eps. There are no checks for eps = 0, nor on
        fewer than MIN_IMAGES images, whose differences are chance: "reason" says so.

    Raises:
        NonFiniteError: Outputs of the model are not finite.

    References:
        Carlini et al. 2019, "On Evaluating Adversarial Robustness", Sec. 4 and 5; Athalye et al. 2018, "Obfuscated
        Gradients Give a False Sense of Security", Sec. 3.1.
    """
    if reason := _reason_against(data, threat):
        return {"images": 0, "checks": [], "curve": {"eps": [], "accuracy": []}, "reason": reason}
    probe = Probe.of(model, data, threat, seed=seed, device=device)
    curve = eps_curve(probe)
    found = [
        check_accuracy_falls(curve),
        check_reaches_zero(curve),
        check_more_steps(probe),
        check_single_step(probe),
        check_black_box(probe),
        check_gradients(probe),
        check_noise(probe),
        check_outputs_repeat(probe),
        check_verdicts_repeat(probe),
        check_resolution(probe),
        None if warnings is None else check_autoattack(warnings),
    ]
    checks = [asdict(check) for check in found if check is not None]
    return {"images": len(probe.y), "checks": checks, "curve": curve.as_json()}


def _reason_against(data: ImageDataset, threat: ThreatModel) -> str:
    """Why the checks would say nothing; empty where they do."""
    if threat.eps == 0:
        return "eps = 0 leaves nothing to attack"
    few = f"AutoAttack has {len(data)} images here, and the checks need at least {MIN_IMAGES}"
    return few if len(data) < MIN_IMAGES else ""


def check_autoattack(warnings: Sequence[AutoAttackWarning]) -> Check:
    """AutoAttack's package warns of nothing."""
    figure = "; ".join(dict.fromkeys(warning.text for warning in warnings)) or "no warnings"
    return Check("autoattack", "AutoAttack has no doubts", not warnings, figure)
