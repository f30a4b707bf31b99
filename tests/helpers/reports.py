"""Results of evaluations, for tests of reports."""

from copy import deepcopy
from typing import Any


def with_details(content: dict[str, Any]) -> dict[str, Any]:
    """The results with several radii, a distance, standard errors, checks of trust and warnings."""
    content = deepcopy(content)
    block = {
        "images": 50,
        "checks": [
            {"name": "steps", "title": "more steps are not weaker", "passed": True, "figure": "41.0 % and 40.0 %"},
            {"name": "zero", "title": "accuracy reaches 0", "passed": False, "figure": "12.0 % at eps = 0.5"},
        ],
        "curve": {"eps": [0.0, 0.1, 0.2], "accuracy": [0.9, 0.6, 0.3]},
    }
    empty = {"images": 0, "checks": [], "curve": {"eps": [], "accuracy": []}, "reason": "too few images"}
    natural = content["best"]["natural"]
    for model in ("best", "last"):
        content[model] |= {
            f"pgd:steps=5,loss=ce,norm=linf,eps={eps}": natural * (1 - 2 * eps) for eps in (0.05, 0.1, 0.15)
        }
        content[model]["deepfool"] = 0.8421
    content["standard_errors"] = {"best": {"natural": (natural * (1 - natural) / 90) ** 0.5}}
    content["trust"] = {"best": {"linf": block, "l2": empty}}
    warning = {"model": "best", "threat": {"norm": "linf", "eps": 0.2}, "attack": "AutoAttack"}
    content["warnings"] = [{**warning, "kind": "softmax_output", "text": "the outputs are <probabilities>"}]
    return content
