"""Recipes: the papers' tables, with the options that train each row, against themselves and the papers' prose."""

from importlib.resources import files
from numbers import Real

import pytest
import yaml
from helpers.yaml_files import NoDuplicates
from torch import nn

from pyengm.errors import ConfigError
from pyengm.evaluation import final_attacks
from pyengm.models import list_models
from pyengm.reproduce.further import OF_A_RUN, OF_TWO_RUNS
from pyengm.reproduce.tables import TIMES, load_table
from pyengm.training import TrainConfig
from pyengm.training.builders import build_method, build_optimizer

FILES = {path.name.removesuffix(".yaml"): path for path in (files("pyengm") / "paper_tables").iterdir()}
TABLES = {
    "engm": ["1", "2", "3-cifar10", "3-cifar100", "3-tiny-imagenet", "4", "5"],
    "dynamic": ["1-mnist", "1-cifar10", "2-mnist", "2-cifar10", "3"],
    "atas": [
        *("1a", "1a-wrn", "1b", "1b-wrn", "1c", "1c-resnet50", "2a-cifar10", "2a-cifar100", "2a-imagenet"),
        *("2b-cifar10", "2b-cifar100", "2b-imagenet", "3", "4-gamma", "4-c"),
    ],
    "entropy": ["2", *(f"{i}-{data}" for i in (1, 3) for data in ("cifar10", "cifar10-wrn", "svhn", "cifar100"))],
}
# What a row must say itself, so that its table stays what it is when the recipe of a method changes.
PINNED = {
    *("data", "model", "threat", "method", "optimizer", "lr", "momentum", "weight_decay", "batch_size", "epochs"),
    *("schedule", "augment", "select_on"),
}


def read(name):
    return yaml.load(FILES[name].read_text(), NoDuplicates)


@pytest.fixture(scope="module", params=sorted(FILES))
def table(request):
    return read(request.param)


def configured(table, row):
    """The options of a row as `TrainConfig.from_plain` reads them, options that are not given still None."""
    return TrainConfig.from_plain({**table["common"], **row["options"]}, "row")


def trained(table):
    """The rows with options, and the other runs."""
    return [row for row in (*table["rows"], *table.get("others", [])) if "options" in row]


def figures(name, column):
    """The figures of the paper in a column by row."""
    return {row["name"]: row["paper"][column] for row in read(name)["rows"] if column in row["paper"]}


def test_every_table_has_its_file():
    assert set(FILES) == {f"{paper}-{part}" for paper, parts in TABLES.items() for part in parts} | {"fastat"}


def test_a_key_that_stands_twice_is_seen():
    with pytest.raises(AssertionError, match=r"\['x'\] stand twice"):
        yaml.load("{x: 1, x: 2}", NoDuplicates)


def test_schema(table):
    assert set(table) - {"attacks", "others"} == {"title", "source", "columns", "common", "rows", "notes"}
    assert all(isinstance(text, str) and text for text in (table["title"], table["source"], *table["notes"]))
    columns, rows = table["columns"], table["rows"]
    assert all(set(column) - {"ours"} == {"name"} for column in columns)
    assert all(set(row) - {"options", "beside"} == {"name", "paper"} for row in rows)
    for named in (columns, rows):
        assert len({one["name"] for one in named}) == len(named) > 0
    for row in rows:
        assert set(row["paper"]) <= {column["name"] for column in columns}
        cells = [cell if isinstance(cell, dict) else {"value": cell} for cell in row["paper"].values()]
        cells = [part for cell in cells for part in cell.values()]
        assert all(isinstance(cell, Real) and not isinstance(cell, bool) for cell in cells)


def test_a_run_has_what_columns_show(table):
    needed = {"pgd20", "autoattack"}  # every run has these
    for path in (column["ours"] for column in table["columns"] if "ours" in column):
        if path.partition(".")[0] in (OF_A_RUN | OF_TWO_RUNS):
            group = path.partition(".")[0]
            record = {"probe": "probe", "instances": "instance_log"}.get(group)
            for row in (row for row in table["rows"] if "options" in row):
                assert (record is None) == ("beside" in row and group in OF_TWO_RUNS) or group == "instances"
                assert record is None or (table["common"] | row["options"])[record]
        elif path not in ("robust_overfitting", *TIMES):
            weights, attack = path.split(".")
            assert weights in ("best", "last")
            needed |= {attack} - {"natural"}
    assert needed == set(final_attacks(table.get("attacks", ())))


def test_every_row_can_be_trained(table):
    for row in trained(table):
        given = configured(table, row).drop_idle(keep=())
        config = given.resolve()
        method = build_method(config)
        build_optimizer(config, nn.Linear(2, 2), method)
        assert config.model.name in list_models()
        for name in table["common"] | row["options"]:
            resolved, wanted = config.get(name), given.get(name)
            assert resolved == wanted or (name == "method_options" and set(resolved) >= set(wanted)), (
                row["name"],
                name,
            )


def test_rows_leave_nothing_to_the_recipes_of_methods(table):
    for row in trained(table):
        options = table["common"] | row["options"]
        wanted = set(PINNED)
        wanted |= {"eps"} - ({"eps"} if options["method"] == "natural" else set())
        rises = {"cyclic", "one_cycle"}
        wanted |= {"milestones"} if options["schedule"] == "piecewise" else set()
        wanted |= {"pct_start"} if options["schedule"] in rises else set()
        assert wanted <= set(options), (row["name"], wanted - set(options))


def test_a_row_with_an_unknown_option_is_an_error():
    table = read("engm-2")
    with pytest.raises(ConfigError, match="optimiser"):
        configured(table, {"options": {"optimiser": "engm"}})


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        *(
            (f"engm-{part}", ["Natural", "PGD-20", "AutoAttack"])
            for part in ("3-cifar10", "3-cifar100", "3-tiny-imagenet")
        ),
        ("engm-2", ["Natural", "PGD-20 best", "PGD-20 last"]),
        ("engm-2", ["Natural", "PGD-20 best", "AutoAttack"]),
        ("engm-4", ["Natural", "AutoAttack"]),
        ("dynamic-1-mnist", ["Clean", "FGSM", "PGD-10", "PGD-20"]),
        ("dynamic-1-cifar10", ["Clean", "FGSM", "PGD-10", "PGD-20", "C&W"]),
        ("dynamic-3", ["Clean", "FGSM", "PGD-20"]),
        *((f"atas-{part}", ["Clean", "PGD-10", "PGD-50", "AutoAttack"]) for part in TABLES["atas"][:6]),
    ],
)
def test_stronger_attacks_leave_less(name, columns):
    for row in read(name)["rows"]:
        cells = [row["paper"][column] for column in columns if column in row["paper"]]
        assert cells == sorted(cells, reverse=True), row["name"]


class TestENGM:
    def test_overfitting_follows_from_the_best_and_the_last_accuracy(self):
        """But in two rows, of which the notes tell."""
        wrong = {}
        for row in read("engm-2")["rows"]:
            best, last, printed = (row["paper"][name] for name in ("PGD-20 best", "PGD-20 last", "Overfitting"))
            computed = round(100 * (best - last) / best, 1)
            if computed != printed:
                wrong[row["name"]] = computed, printed
        assert wrong == {"A-ENGM": (5.2, 5.1), "ENGM": (0.5, 3.9)}

    @pytest.mark.parametrize(("data", "points"), [("cifar10", 9.3), ("cifar100", 13.5), ("tiny-imagenet", 16.2)])
    def test_how_much_overfitting_engm_takes_away(self, data, points):
        """Sec. 3.2; the last one is cut, not rounded."""
        overfitting = figures(f"engm-3-{data}", "Overfitting")
        assert 0 <= overfitting["PGD-AT + MSGD"] - overfitting["PGD-AT + ENGM"] - points + 1e-9 < 0.1

    def test_plain_adversarial_training_is_that_of_table_2(self):
        for column, theirs in (("Natural", "Natural"), ("PGD-20", "PGD-20 best"), ("AutoAttack", "AutoAttack")):
            for optimizer in ("MSGD", "ENGM"):
                found = figures("engm-3-cifar10", column)[f"PGD-AT + {optimizer}"]
                assert found == figures("engm-2", theirs)[optimizer]

    def test_gain_over_the_state_of_the_art(self):
        """Sec. 3.3."""
        found = figures("engm-4", "AutoAttack")
        assert round(found["AWP + ENGM"] - found["AWP"], 2) == 1.28
        assert round(found["AWP + N-ENGM"] - found["AWP"], 2) == 0.94

    def test_time_of_a_step(self):
        """A-ENGM is N-ENGM and, every 50 steps, the passes of ENGM: 0.84, printed 0.83."""
        found = figures("engm-1", "s/iteration")
        assert found["N-ENGM"] + (found["ENGM"] - found["MSGD"]) / 50 == pytest.approx(found["A-ENGM"], abs=0.011)

    def test_larger_perturbations(self):
        """Sec. 3.4: gradients grow, and so does what ENGM gains."""
        table = read("engm-5")
        for column in ("mu", "sigma^2"):
            values = list(figures("engm-5", column).values())
            assert values == sorted(values)
            assert len(values) == 6
        rho = [row["paper"]["rho"] for row in table["rows"]]
        gains = [round(engm - msgd, 2) for msgd, engm in zip(rho[:6], rho[6:], strict=True)]
        assert gains == sorted(gains)
        assert gains[0] < 0 < gains[1]


class TestDynamic:
    @pytest.mark.parametrize(
        ("name", "but"),
        [
            ("dynamic-1-mnist", {"Clean", "FGSM"}),
            ("dynamic-1-cifar10", {"Clean"}),
            ("dynamic-2-mnist", set()),
            ("dynamic-2-cifar10", set()),
            ("dynamic-3", {"Clean"}),
        ],
    )
    def test_dynamic_is_the_most_robust(self, name, but):
        """Sec. 5.1, "almost"."""
        behind = set()
        for column in (column["name"] for column in read(name)["columns"]):
            found = figures(name, column)
            if max(found, key=found.get) != "Dynamic":
                behind.add(column)
        assert behind == but

    @pytest.mark.parametrize("data", ["mnist", "cifar10"])
    def test_black_box_attacks_are_on_the_models_of_table_1(self, data):
        """Table 2 attacks the defences of Table 1 by a surrogate with the options of Standard (Sec. 5.1)."""
        first, second = (read(f"dynamic-{number}-{data}") for number in (1, 2))
        rows = {row["name"]: row for row in first["rows"]}
        no_attacks = {"autoattack_examples": None}
        for row in second["rows"]:
            assert configured(second, row).override(**no_attacks) == configured(first, rows[row["name"]])
            assert row["beside"] == "Surrogate"
        (surrogate,) = second["others"]
        model = {"model": "resnet50" if data == "cifar10" else "cnn4"}
        expected = configured(first, rows["Standard"]).override(**model)
        assert configured(second, surrogate).override(**no_attacks) == expected
        assert surrogate["apart"]

    @pytest.mark.parametrize("data", ["mnist", "cifar10"])
    def test_black_box_attacks_are_weaker(self, data):
        """Sec. 5.1."""
        for column in ("FGSM", "PGD-10", "PGD-20", "C&W"):
            white, black = (figures(f"dynamic-{table}-{data}", column) for table in (1, 2))
            assert all(black[method] > white[method] for method in black)
            assert len(black) == 3


class TestATAS:
    @pytest.mark.parametrize(
        ("one", "two", "eps"),
        [
            ("1a", "2a-cifar10", 8),
            ("1a-wrn", "2b-cifar10", 8),
            ("1b", "2a-cifar100", 8),
            ("1b-wrn", "2b-cifar100", 8),
            ("1c", "2a-imagenet", 2),
            ("1c-resnet50", "2b-imagenet", 2),
        ],
    )
    def test_tables_1_and_2_agree(self, one, two, eps):
        """Figures and options."""
        first, second = read(f"atas-{one}"), read(f"atas-{two}")
        twins = {row["name"]: row for row in second["rows"]}
        for row in first["rows"]:
            twin = twins[f"{row['name']} at {eps}/255"]
            assert row["paper"].get("AutoAttack") == twin["paper"].get("AutoAttack")
            assert ("options" in row) == ("options" in twin)
            if "options" in row:
                assert configured(first, row) == configured(second, twin)

    def test_against_fgsm_sdi(self):
        """Sec. V-B: 13 of 16 experiments."""
        wins = []
        for part in (f"2{size}-{data}" for size in "ab" for data in ("cifar10", "cifar100", "imagenet")):
            found = figures(f"atas-{part}", "AutoAttack")
            for name in (name for name in found if name.startswith("ATAS at")):
                wins.append(found[name] > found[name.replace("ATAS", "FGSM-SDI")])
        assert (sum(wins), len(wins)) == (13, 16)

    def test_table_3_compares_rows_of_table_2(self):
        third, second = read("atas-3"), read("atas-2a-cifar10")
        cells = {row["name"]: row for row in second["rows"]}
        records = {"instance_log": False, "autoattack_examples": None}
        for row, eps in zip(third["rows"], (8, 12, 16), strict=True):
            assert row["name"] == f"eps = {eps}/255"
            assert row["beside"] == f"ATTA at {eps}/255"
            (other,) = (one for one in third["others"] if one["name"] == row["beside"])
            for own, twin in ((row, f"ATAS at {eps}/255"), (other, f"ATTA at {eps}/255")):
                assert configured(third, own).override(**records) == configured(second, cells[twin])

    @pytest.mark.parametrize(("part", "middle"), [("gamma", "gamma / c = 16/255"), ("c", "c = 0.01")])
    def test_the_middle_of_table_4_is_atas(self, part, middle):
        ablation, table = read(f"atas-4-{part}"), read("atas-2a-cifar10")
        cells = {row["name"]: row for row in ablation["rows"]}
        assert len(cells) == 15
        for eps in (8, 12, 16):
            cell = cells[f"{middle} at {eps}/255"]
            row = next(row for row in table["rows"] if row["name"] == f"ATAS at {eps}/255")
            assert cell["paper"] == row["paper"]
            assert configured(ablation, cell) == configured(table, row)


class TestFastAT:
    def test_rows_differ_by_their_method_alone(self):
        """But FreeAT's passes, the average that PGD-AT lacks, and the labels of methods that have their own."""
        table = read("fastat")
        apart = {"method", "method_options", "step_size", "attack_steps", "attack_bn", "label_smoothing"}
        for row in trained(table):
            expected = {"Free-AT": {"epochs"}, "PGD-AT": {"average"}}.get(row["name"], set())
            assert set(row["options"]) - apart == expected, row["name"]
            unsmoothed = {"FGSM-PGI", "FGSM-MEP-CS", "FGSM-RS-CS", "LIET"}
            assert (row["options"].get("label_smoothing") == 0) == (row["name"] in unsmoothed)
        assert len(trained(table)) == 16

    def test_stronger_attacks_leave_less(self):
        for row in load_table("fastat").rows:
            cells = [row.paper[column].value for column in ("Clean", "PGD-10", "PGD-50", "AutoAttack")]
            assert cells == sorted(cells, reverse=True), row.name
