"""The table of an evaluation."""

import io

from rich.console import Console

from pyengm.evaluation import evaluation_tables, results_table
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
    for words, best, last in (  # standard errors by hand: 100 sqrt(p (1 - p) / n) for n = 360 or 100
        (("natural",), "91.23 ± 1.49", "91.23 ± 1.49"),
        (("PGD-20 ", "L-infinity, eps = 0.05"), "50.00 ± 2.64", "40.00 ± 2.58"),
        (("AutoAttack's images", "L-infinity"), "52.00 ± 5.00", "52.00 ± 5.00"),
        (("AutoAttack ", "L-infinity"), "45.67 ± 4.98", "45.67 ± 4.98"),
        (("PGD-20 ", "L2, eps = 0.3"), "25.00 ± 2.28", "25.00 ± 2.28"),
    ):
        assert [[cell.strip() for cell in cells] for cells in row(*words)] == [[best, last]]
    text = "\n".join(lines)
    assert "360 test images, AutoAttack on 100 of them" in text
    assert "20.0 % of the best PGD-20 accuracy lost" in text
    assert "± standard error over the images" in text


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
        ["natural", "", "90.00 ± 1.58"],
        ["transfer PGD-20", linf, "80.00 ± 2.11"],
        ["APGD-CE", linf, "50.00 ± 5.00"],
        ["AutoAttack", linf, "39.00 ± 4.88"],
        ["DeepFool", "mean distance in L2", "rho = 0.8432"],
        ["AutoAttack", l2, "30.00 ± 4.58"],
    ]
    text = " ".join(text.split())
    assert f"AutoAttack ({linf}) is only APGD-CE, FAB-T, Square here" in text
    assert f"AutoAttack ({l2}) is only" not in text


def test_warnings_and_checks_are_in_the_tables():
    check = {
        "name": "noise",
        "title": "random noise is harmless",
        "passed": False,
        "figure": "12.0 % at the worst point",
    }
    warning = {
        "model": "one",
        "threat": {"norm": "l2", "eps": 0.3},
        "attack": "apgd_t",
        "kind": "other",
        "text": "doubt",
    }
    results = {
        "one": {"natural": 0.9},
        "two": {"natural": 0.9},
        "threats": [{"norm": "linf", "eps": 0.05}, {"norm": "l2", "eps": 0.3}],
        "images": {"all": 360, "autoattack": 100},
        "warnings": [warning],
        "trust": {
            "one": {
                "linf": {"images": 100, "checks": [check, check | {"passed": True, "title": "other"}], "curve": {}},
                "l2": {"images": 0, "checks": [], "curve": {}, "reason": "too few images"},
            },
            "two": {
                "linf": {"images": 100, "checks": [check, check | {"passed": True, "title": "other"}], "curve": {}},
                "l2": {"images": 20, "checks": [check | {"passed": True}], "curve": {}},
            },
        },
    }
    console = Console(file=io.StringIO(), width=240)
    console.print(evaluation_tables(results, "one"))
    lines = console.file.getvalue().splitlines()
    assert any("warning: one, APGD-T (L2, eps = 0.3): doubt" in line for line in lines)
    lines = lines[next(i for i, line in enumerate(lines) if "trusted" in line) :]
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.count("│") == 4]
    assert cells == [
        ["one, two", "L-infinity, eps = 0.05", "1 of 2 pass, on 100 images"],
        ["", "", "fails: random noise is harmless (12.0 % at the worst point)"],
        ["one", "L2, eps = 0.3", "none: too few images"],
        ["two", "L2, eps = 0.3", "1 of 1 pass, on 20 images"],
    ]
