"""The table of an evaluation."""

import io

from rich.console import Console

from pyengm.evaluation import results_table
from pyengm.evaluation.attack_registry import SAME_EXAMPLES


def test_table_has_the_values():
    accuracies = {"natural": 0.9123, "pgd20": 0.5, SAME_EXAMPLES: 0.52, "autoattack": 0.4567, "pgd20_l2": 0.25}
    results = {
        "best": accuracies,
        "last": accuracies | {"pgd20": 0.4},
        "robust_overfitting": 20.0,
        "threats": [{"norm": "linf", "eps": 0.05}, {"norm": "l2", "eps": 0.3}],
        "images": {"all": 360, "autoattack": 100},
    }
    console = Console(file=io.StringIO(), width=160)
    console.print(results_table(results, "runs/one"))
    lines = console.file.getvalue().splitlines()

    def row(*words):
        return [line.split("│")[-3:-1] for line in lines if all(word in line for word in words)]

    assert "runs/one" in lines[0]
    for words, best, last in (
        (("natural",), "91.23", "91.23"),
        (("PGD-20 ", "L-infinity, eps = 0.05"), "50.00", "40.00"),
        (("AutoAttack's images", "L-infinity"), "52.00", "52.00"),
        (("AutoAttack ", "L-infinity"), "45.67", "45.67"),
        (("PGD-20 ", "L2, eps = 0.3"), "25.00", "25.00"),
    ):
        assert [[cell.strip() for cell in cells] for cells in row(*words)] == [[best, last]]
    text = "\n".join(lines)
    assert "360 test images, AutoAttack on 100 of them" in text
    assert "20.0 % of the best PGD-20 accuracy lost" in text


def test_table_of_distances_members_and_transfers():
    accuracies = {"natural": 0.9, "transfer_pgd20": 0.8, "apgd_ce": 0.5, "after_apgd_ce": 0.45, "after_fab_t": 0.4}
    accuracies |= {"after_square": 0.39, "autoattack": 0.39, "deepfool": 0.84321, "after_apgd_ce_l2": 0.3}
    accuracies |= {"after_apgd_t_l2": 0.3, "after_fab_t_l2": 0.3, "after_square_l2": 0.3, "autoattack_l2": 0.3}
    results = {
        "one": accuracies,
        "threats": [{"norm": "linf", "eps": 0.05}, {"norm": "l2", "eps": 0.3}],
        "images": {"all": 360, "autoattack": 100},
    }
    console = Console(file=io.StringIO(), width=160)
    console.print(results_table(results, "one"))
    text = console.file.getvalue()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]
    linf, l2 = "L-infinity, eps = 0.05", "L2, eps = 0.3"
    assert rows == [
        ["natural", "", "90.00"],
        ["transfer PGD-20", linf, "80.00"],
        ["APGD-CE", linf, "50.00"],
        ["AutoAttack", linf, "39.00"],
        ["DeepFool", "mean distance in L2", "rho = 0.8432"],
        ["AutoAttack", l2, "30.00"],
    ]
    text = " ".join(text.split())
    assert f"AutoAttack ({linf}) is only APGD-CE, FAB-T, Square here" in text
    assert f"AutoAttack ({l2}) is only" not in text
