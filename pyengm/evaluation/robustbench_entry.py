"""A result as an entry of RobustBench's leaderboard."""

from typing import Any

from pyengm.attacks import ThreatModel
from pyengm.errors import ConfigError
from pyengm.utils.pixels import format_pixels


def robustbench_entry(
    results: dict[str, Any], model: str, threat: ThreatModel, *, architecture: str, data: str
) -> dict[str, Any]:
    """The content of a JSON file of RobustBench's model_info for the accuracies of one model.

    Title, link, authors and venue of the paper, and whether additional data was used, are for the author to fill in:
    their values are None, and RobustBench's own check refuses them until then.

    Args:
        results: results of `evaluate_checkpoints` with AutoAttack under `threat` on all test images.
        model: the name of the model among them.
        threat: the threat model of the entry.
        architecture: the name of the architecture.
        data: the name of the data set.

    Raises:
        ConfigError: AutoAttack has not attacked all test images under this threat model.

    References:
        Croce et al. 2021, "RobustBench: a standardized adversarial robustness benchmark".
    """
    first = results["threats"][0]["norm"] == threat.norm
    key = "autoattack" if first else f"autoattack_{threat.norm}"
    counts = results["images"]
    if key not in results[model] or counts["autoattack"] < counts["all"]:
        raise ConfigError(
            f"a leaderboard entry needs AutoAttack on all {counts['all']} test images under {threat}; give "
            f"--autoattack-examples {counts['all']}, without --no-autoattack"
        )
    accuracy = f"{100 * results[model][key]:.2f}"
    warned = [
        one for one in results.get("warnings", ()) if one["model"] == model and one["threat"]["norm"] == threat.norm
    ]
    checks = results.get("trust", {}).get(model, {}).get(threat.norm, {}).get("checks", ())
    return {
        "link": None,
        "name": None,
        "authors": None,
        "additional_data": None,
        "number_forward_passes": 1,
        "dataset": data,
        "venue": None,
        "architecture": architecture,
        "eps": format_pixels(threat.eps),
        "clean_acc": f"{100 * results[model]['natural']:.2f}",
        "reported": accuracy,
        "autoattack_acc": accuracy,
        "unreliable": bool(warned) or not all(check["passed"] for check in checks),
    }
