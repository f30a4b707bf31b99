"""Tables of papers: their files, what the scales make of a row, the report, and `pyengm reproduce` end to end."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional as F

from pyengm import cli
from pyengm.attacks import FGSM, PGD
from pyengm.cli import reproduce as reproduce_command
from pyengm.comparison.times import times_of
from pyengm.data import ImageDataset
from pyengm.errors import ConfigError, DataError
from pyengm.methods import METHODS
from pyengm.models import load_checkpoint
from pyengm.ops import Key
from pyengm.reproduce import ReproduceConfig, further, list_tables, load_table, reproduce, table_names
from pyengm.reproduce.flops import epoch_flops, forward_flops
from pyengm.reproduce.presets import (
    differences,
    full,
    short,
    short_indices,
    shorter,
    smoke,
)
from pyengm.reproduce.render import as_markdown
from pyengm.reproduce.report import compare_orders, look_up, make_report
from pyengm.reproduce.run import collapses
from pyengm.reproduce.tables import Column, Figure, PaperTable, Row
from pyengm.training import Interrupted, RunFolder, TrainConfig, load_split, multi_run, train
from pyengm.training.builders import build_method
from pyengm.training.config_groups import ALL_OPTIMIZERS
from pyengm.training.option_parsing import own_arguments

TABLES = Path(__file__).parent / "tables"


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The working directory, with the few.txt of toy-1; `pyengm reproduce` finds the tables for tests."""
    (tmp_path / "few.txt").write_text("\n".join(map(str, range(240))))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduce_command, "reproduce", partial(reproduce, folder=TABLES))
    monkeypatch.setattr(reproduce_command, "list_tables", partial(list_tables, folder=TABLES))
    return tmp_path


def fail(*args: str) -> None:
    """Runs a command that must end with an error: 1 from us, 2 where the options themselves do not parse."""
    try:
        code = cli.main(args)
    except SystemExit as stop:
        code = stop.code
    assert code in (1, 2)


def make_images(count: int, channels: int = 3, size: int = 32) -> ImageDataset:
    images = torch.zeros(1, channels, size, size, dtype=torch.uint8).expand(count, -1, -1, -1)
    return ImageDataset(images, torch.arange(count) % 10, tuple("0123456789"), "images", "train")


class TestTables:
    def test_a_table(self):
        table = load_table("toy-1", TABLES)
        assert (table.name, table.title, table.notes) == ("toy-1", "A table for tests", ("A note.",))
        assert table.columns[0] == Column("Natural", "best.natural")
        assert table.columns[-1] == Column("Elsewhere", None)
        assert [row.name for row in table.rows] == ["MSGD", "Diverges", "ENGM", "Quoted"]
        assert table.rows[0].paper["PGD-20"] == Figure(20.1, 0.3)
        assert table.rows[0].paper["Natural"] == Figure(30.5, None)
        assert table.rows[2].options["alpha"] == 2
        assert table.rows[2].options["attacks"] == ["deepfool"]
        assert table.rows[2].options["data"] == "digits"
        assert table.rows[3].options is None

    def test_names_and_rows(self):
        assert table_names(TABLES) == ["toy-1", "toy-2", "toy-3"]
        assert [row.name for row in load_table("toy-1", TABLES).pick(("ENGM", "Quoted")).rows] == ["ENGM", "Quoted"]
        with pytest.raises(ConfigError, match=r"unknown table 'toy-4'; known: toy-1, toy-2, toy-3 \(did you mean"):
            load_table("toy-4", TABLES)
        with pytest.raises(ConfigError, match=r"unknown row 'ENMG'; known: MSGD, .* \(did you mean ENGM\?\)"):
            load_table("toy-1", TABLES).pick(("ENMG",))

    @pytest.mark.parametrize(
        ("name", "folder"), [("AWP + N-ENGM", "awp-n-engm"), ("C&W at 8/255", "c-w-at-8-255"), ("c = 0.5", "c-0.5")]
    )
    def test_folders_of_rows(self, name, folder):
        assert Row(name, None, {}).folder == folder

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: t.pop("source"), "the table lacks source"),
            (lambda t: t.update(colums=[]), r"unknown entry 'colums' \(did you mean columns\?\)"),
            (lambda t: t["columns"][0].update(ours="natural"), "has ours: 'natural'; expected a path such as best"),
            (lambda t: t["columns"][1].update(name="Natural"), "two columns have the name 'Natural'"),
            (lambda t: t["rows"][2].update(name="MSGD"), "two rows have the name 'MSGD'"),
            (lambda t: t["rows"][2].update(name="msgd"), "two folders of rows have the name 'msgd'"),
            (lambda t: t["rows"][2].update(name="&"), "row '&' has no letter or digit"),
            (lambda t: t["rows"][2].pop("paper"), "a row lacks paper"),
            (lambda t: t["rows"][2].update(paper=[1]), "row 'ENGM' has the figures"),
            (lambda t: t.update(columns=None), "columns is None; expected a list"),
            (lambda t: t.update(common=["epochs"]), "common is .*; expected names and values"),
            (
                lambda t: t["rows"][3]["paper"].update(FGSM=3),
                "row 'Quoted' has a figure for 'FGSM'; the columns: Natural",
            ),
            (lambda t: t["rows"][3]["paper"].update(Natural="50"), "'Quoted', Natural is '50'; expected a number"),
            (lambda t: t["rows"][3]["paper"].update(Natural={"spread": 1}), "'Quoted', Natural lacks value"),
            (
                lambda t: t["rows"][0]["options"].update(optimiser="msgd"),
                "row 'MSGD' has the unknown option 'optimiser'",
            ),
            (
                lambda t: t["rows"][0]["options"].update(epochs="many"),
                "row 'MSGD': epochs is 'many'; expected an integer",
            ),
            (lambda t: t["rows"][0]["options"].update(beta=6), "unknown option 'beta'"),
            (lambda t: t["rows"][0]["options"].update(seed=6), "row 'MSGD' has a seed"),
            (lambda t: t["columns"][0].update(ours="transfer.fgms"), "expected a path such as best"),
            (lambda t: t["rows"][0].update(beside="ATTA"), "'MSGD' is beside 'ATTA', which is none of the others"),
            (lambda t: t.update(others=[{"name": "ENGM", "options": {}}]), "two rows have the name 'ENGM'"),
        ],
    )
    def test_files_that_are_wrong(self, change, message, tmp_path):
        content = yaml.safe_load((TABLES / "toy-1.yaml").read_text())
        change(content)
        (tmp_path / "broken.yaml").write_text(yaml.safe_dump(content))
        with pytest.raises(ConfigError, match=message) as caught:
            load_table("broken", tmp_path)
        assert "broken.yaml" in str(caught.value)

    def test_no_yaml(self, tmp_path):
        (tmp_path / "broken.yaml").write_text("rows: [")
        with pytest.raises(ConfigError, match="cannot read the table"):
            load_table("broken", tmp_path)


PAPER = {
    "data": "cifar10",
    "model": "resnet18",
    "method": "pgd_at",
    "optimizer": "engm",
    "alpha": 5,
    "attack_steps": 10,
}
PAPER |= {
    "step_size": "2/255",
    "eps": "8/255",
    "epochs": 120,
    "milestones": [75, 90],
    "select_on": "val",
    "attacks": ["fgsm"],
}


class TestShort:
    def test_a_row_of_pgd(self, tmp_path):
        paper = full(PAPER, "row")
        train = make_images(50_000)
        config = short(paper, train, tmp_path / "indices.txt")
        # The budget by hand: 10,000 images of 23 passes and 1,000 of 41, 1.11 GFLOP each.
        assert config.schedule.epochs == pytest.approx(1.5e16 / ((10_000 * 23 + 1_000 * 41) * 1.11e9), rel=0.05)
        assert config.schedule.milestones == tuple(round(m / 120 * config.schedule.epochs, 2) for m in (75, 90))
        assert (config.evaluation.autoattack_examples, config.data.train_indices) == (1000, tmp_path / "indices.txt")
        kept = (
            "method",
            "optimizer",
            "alpha",
            "eps",
            "step_size",
            "attack_steps",
            "batch_size",
            "model",
            "lr",
            "attacks",
        )
        assert all(config.get(name) == paper.get(name) for name in kept)

    def test_rows_that_cost_less_stay_as_long(self):
        paper = full(
            PAPER | {"method": "atas", "step_size": None, "attack_steps": None, "epochs": 30, "milestones": []}, "row"
        )
        assert short(paper, make_images(50_000), Path("p")).schedule.epochs == 30

    @pytest.mark.parametrize("select", ["none", "val", "test"])
    def test_a_budget_for_every_row(self, select):
        paper = full(PAPER | {"select_on": select, "model": "wrn_34_10", "epochs": 200}, "row")
        train = make_images(50_000)
        config = short(paper, train, Path("p"))
        held_out = {"none": 0, "val": 1_000, "test": 10_000}[select]
        assert 2 <= config.schedule.epochs < 20
        assert (
            config.schedule.epochs == 2
            or config.schedule.epochs * epoch_flops(config, train, 10_000, held_out) <= 1.5e16
        )

    @pytest.mark.parametrize("length", [1437, 10_000, 50_000, 73_257])
    def test_indices(self, length):
        indices = short_indices(length)
        assert len(indices) == min(length, 10_000)
        gaps = np.diff(indices)
        assert (indices[0], gaps.max() - gaps.min() <= 1) == (0, True)
        assert length - indices[-1] <= gaps.max()

    def test_defaults_counted_in_epochs_shrink_too(self):
        options = {"data": "cifar10", "method": "trades_awp", "model": "wrn_34_10", "epochs": 200, "select_on": "none"}
        paper = full(options, "row")
        config = short(paper, make_images(50_000), Path("p"))
        share = config.schedule.epochs / 200
        assert build_method(paper).warmup == 10
        assert build_method(config).warmup == round(10 * share)


# Every option of a method is here or in its record as one that counts epochs: a new one has to be put on one side.
NOT_IN_EPOCHS = {
    *(
        "beta",
        "gamma",
        "c",
        "c_max",
        "weight",
        "max_lambda",
        "divisor",
        "accuracy",
        "confidence",
        "reg_weight",
        "decay",
        "smoothing",
        "targets",
        "noise",
        "quantile",
        "ce_weight",
        "variation_weight",
        "sensitivity",
        "l2_weight",
        "factor",
        "jitter",
        "least_loss",
        "min_share",
        "max_share",
        "band",
        "first_gap",
        "last_gap",
    ),
    *(
        "step_scale",
        "min_step",
        "max_step",
        "dtype",
        "resolution",
        "dimension",
        "checkpoints",
        "replays",
        "outer",
        "inner",
        "generator_interval",
        "samples",
        "kappa",
        "ascents",
        "interval",
        "layers",
    ),
    *(
        "as_published",
        "as_printed",
        "adaptive",
        "batch_mixing",
        "random_start",
        "first_layer",
        "loss",
        "generator_lr",
        "projected",
        "teacher",
    ),
}


def test_options_counted_in_epochs_are_all_known():
    options = {name for kind in METHODS.values() for name in own_arguments(kind)}
    in_epochs = {name for kind in METHODS.values() for name in kind.info.epoch_options}
    assert options == NOT_IN_EPOCHS | in_epochs
    assert not NOT_IN_EPOCHS & in_epochs
    for kind in METHODS.values():
        assert {*kind.info.epoch_options, *kind.info.pixel_options} <= own_arguments(kind).keys()


def test_options_of_optimizers_counted_in_epochs_are_all_known():
    options = {name for kind in ALL_OPTIMIZERS.values() for name in own_arguments(kind)}
    in_epochs = {name for kind in ALL_OPTIMIZERS.values() for name in kind.info.epoch_options}
    assert in_epochs == {"from_epoch", "until_epoch"}
    assert {name for name in options if "epoch" in name} == in_epochs | {"epoch"}  # the current one, a state


@pytest.mark.parametrize(
    ("epochs", "span"), [(200, (10, 150)), (20, (1, 15)), (14, (1, 11)), (3, (0, 2)), (2, (0, 2)), (1, (0, 1))]
)
def test_the_epochs_of_an_optimizer_shrink_too(epochs, span):
    options = ["inner_steps=30", "from_epoch=10", "until_epoch=150"]
    row = PAPER | {"optimizer": "entropy_sgd", "optimizer_options": options, "alpha": None, "epochs": 200}
    words = shorter(full(row, "row"), epochs)["optimizer_options"]
    assert words == ("inner_steps=30", f"from_epoch={span[0]}", f"until_epoch={span[1]}")
    assert shorter(full(row | {"optimizer_options": ["inner_steps=3"]}, "row"), epochs)["optimizer_options"] == (
        "inner_steps=3",
    )
    for given, kept in (
        (["until_epoch=1"], ("until_epoch=1",)),
        (["from_epoch=199", "until_epoch=none"], (f"from_epoch={epochs - 1}",)),
    ):
        row["optimizer_options"] = given
        assert shorter(full(row, "row"), epochs)["optimizer_options"] == kept


@pytest.mark.parametrize("optimizer", ["entropy_sgd", "entropy_sgd2"])
@pytest.mark.parametrize(("given", "batches", "inner_steps"), [(20, 0.2, 4), (20, 0.01, 2), (1, 0.5, 1), (0, 0.5, 0)])
def test_inner_steps_shrink_with_an_epoch(optimizer, given, batches, inner_steps):
    """An epoch keeps its number of outer steps, and an outer step two batches where it had as many."""
    row = PAPER | {"optimizer": optimizer, "optimizer_options": [f"inner_steps={given}"], "alpha": None}
    assert shorter(full(row, "row"), 5, batches)["optimizer_options"] == (f"inner_steps={inner_steps}",)
    assert shorter(full(row, "row"), 5)["optimizer_options"] == (f"inner_steps={given}",)
    row["optimizer_options"] = []
    assert shorter(full(row, "row"), 5, 0.5)["optimizer_options"] == ("inner_steps=10",)  # of the default


class TestSmoke:
    @pytest.mark.parametrize("method", METHODS)
    def test_every_method(self, method):
        options = {"data": "cifar10", "model": "wrn_34_10", "method": method, "eps": "8/255", "epochs": 40}
        config = smoke(options, full(options, "row"))
        assert (config.data.name, config.model.name, config.method.name) == ("digits", "cnn8", method)
        assert config.attack.eps == pytest.approx(0.2)
        assert config.schedule.epochs == 14
        own = build_method(config)
        for name in ("warmup", "fgsm_epochs", "sampling_epochs", "decay_epochs"):
            assert getattr(own, name, 0) < config.schedule.epochs

    def test_knobs_stay(self):
        config = smoke(PAPER, full(PAPER, "row"))
        assert (config.optimizer.name, config.optimizer.alpha, config.attack.steps, config.evaluation.attacks) == (
            "engm",
            5,
            10,
            ("fgsm",),
        )
        assert config.attack.step_size == pytest.approx(0.05)  # 2/255 of 8/255, of 0.2
        options = PAPER | {"optimizer": "entropy_sgd", "optimizer_options": ["inner_steps=30"], "alpha": None}
        assert smoke(options, full(options, "row")).optimizer.options == ("inner_steps=5",)  # 30 of 391 batches, of 60

    def test_sizes_keep_their_share_of_eps(self):
        options = {"data": "cifar10", "method": "atas", "eps": "12/255", "epochs": 30}
        options["method_options"] = ["step_scale=18/255", "c=0.64", "reset=10", "warmup=5"]
        method = build_method(smoke(options, full(options, "row")))
        assert (method.threat.eps, method.rule["step_scale"]) == pytest.approx((0.3, 0.45))
        assert (method.rule["c"], method.reset, method.warmup) == (0.64, 5, 2)

    def test_pixels_of_digits_are_their_own(self):
        options = PAPER | {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
        paper = full(options, "row")
        config = smoke(options, paper)
        assert config.model.mean is config.model.std is None
        assert "mean none in place of 0.5, 0.5, 0.5" in differences(paper, config)
        assert short(paper, make_images(50_000), Path("p")).model.std == (0.25, 0.25, 0.25)

    def test_short_rows_stay_short(self):
        options = PAPER | {"epochs": 1, "milestones": []}
        assert smoke(options, full(options, "row")).schedule.epochs == 1


class TestDifferences:
    def test_none_at_full_scale(self):
        paper = full(PAPER, "row")
        assert differences(paper, paper) == []

    def test_in_words(self):
        options = PAPER | {"method": "trades_awp", "epochs": 200, "milestones": [100, 150]}
        paper = full(options, "row")
        ours = paper.override(epochs=20, milestones=(10, 15), method_options=("warmup=1",), eps=4 / 255)
        assert differences(paper, ours.override(autoattack_examples=1000), (10_000, 50_000)) == [
            "10,000 of 50,000 training images",
            "eps 4/255 in place of 8/255",
            "epochs 20 in place of 200",
            "milestones 10, 15 in place of 100, 150",
            "autoattack_examples 1000 in place of all",
            "trades_awp's warmup 1 in place of 10",
        ]

    def test_what_decides_nothing_is_not_told(self):
        paper = full(PAPER, "row")
        cyclic = paper.override(schedule="cyclic", milestones=(), seed=3, device="cpu", data_dir=Path("there"))
        assert differences(paper, cyclic) == ["schedule cyclic in place of piecewise"]


class TestCost:
    @pytest.mark.parametrize(("model", "multiplications"), [("resnet18", 0.56e9), ("wrn_28_10", 5.25e9)])
    def test_forward_pass(self, model, multiplications):
        """Counts of multiplications that are commonly given for images of 32 pixels, to two digits."""
        found = forward_flops(TrainConfig.from_flat(data="cifar10", model=model).resolve(), make_images(10))
        assert found == pytest.approx(2 * multiplications, rel=0.03)

    @pytest.mark.parametrize(
        ("method", "passes"),
        [("pgd_at", 23), ("trades", 27), ("mart_awp", 32), ("natural", 3), ("atas", 5), ("nuat", 8.5)],
    )
    def test_passes_of_an_epoch(self, method, passes):
        """The sums of F + D + W in the documentation's table of methods."""
        config = TrainConfig.from_flat(data="cifar10", model="cnn4", method=method).resolve()
        data = make_images(10)
        assert epoch_flops(config, data, 100, 0) == passes * 100 * forward_flops(config, data)


class TestReport:
    COLUMNS = (
        Column("PGD", "best.pgd20"),
        Column("rho", "best.deepfool"),
        Column("Hours", "hours"),
        Column("Alone", None),
    )

    def report(self, results, paper, **options):
        rows = tuple(Row(name, {}, {"PGD": Figure(value)}) for name, value in paper.items())
        table = PaperTable("t", "T", "S", self.COLUMNS, (*rows, Row("Quoted", None, {"PGD": Figure(9.0, 0.5)})), ("N",))
        words = (options.get(name, {}) for name in ("failed", "differences", "collapsed"))
        return make_report(table, "full", results, *words)

    def test_figures_differences_and_order(self):
        def run(pgd):
            return {"best": {"pgd20": pgd, "deepfool": 0.5}}

        results = {"A": {0: run(0.5), 1: run(0.54)}, "B": {0: run(0.6), 1: run(0.6)}, "C": {0: run(0.55)}}
        report = self.report(results, {"A": 51.0, "B": 49.0, "C": 49.0}, failed={"C, seed 1": "nan"})
        a, b, _, quoted = report["rows"]
        assert a["ours"]["PGD"] == pytest.approx({"value": 52.0, "spread": 8**0.5})
        assert a["ours"]["rho"] == {"value": 0.5, "spread": 0.0}
        assert a["difference"] == {"PGD": pytest.approx(1.0)}
        assert b["difference"] == {"PGD": pytest.approx(11.0)}
        assert quoted["ours"] == {}
        (order,) = report["orders"]
        assert order == {
            "column": "PGD",
            "paper": [["A"], ["B", "C"]],
            "ours": [["B"], ["C"], ["A"]],
            "pairs": 2,  # B and C are equal in print
            "pairs_in_the_same_order": 0,
        }
        assert report["missing"] == {"Hours": "the runs have no hours"}
        text = as_markdown(report)
        assert "| A | 52.00 ± 2.83<br>(51.00)<br>+1.00 | 0.50 ± 0.00 |" in text
        assert "| Quoted | (9.00 ± 0.50) |" in text
        assert "order by PGD, highest first: paper A > B = C; ours B > C > A; 0 of 2 pairs in the same order" in text
        assert "FAILED: C, seed 1: nan" in text
        assert json.loads(json.dumps(report)) == report

    def test_shared_and_own_differences(self):
        found = self.report({}, {"A": 1.0, "B": 1.0}, differences={"A": ["x", "y"], "B": ["x", "z"]})["differences"]
        assert found == {"all rows": ["x"], "A": ["y"], "B": ["z"]}

    def test_collapses_are_named(self):
        first, second = ({"epoch": epoch, "before": 0.5, "after": 0.12, "last": 0.6} for epoch in (3, 9))
        report = self.report({}, {"A": 1.0, "B": 1.0}, collapsed={"B": {0: [first], 2: [first, second]}})
        assert (
            "B: seed 0, 50.0 to 12.0 % in epoch 3, 60.0 % at the end; "
            "seed 2, 50.0 to 12.0 % in epoch 3, 50.0 to 12.0 % in epoch 9, 60.0 % at the end\n"
        ) in as_markdown(report)
        assert json.loads(json.dumps(report)) == report

    def test_collapses_of_a_run(self, tmp_path):
        accuracies = (0.1, 0.2, 0.3, 0.5, 0.2, 0.4)
        rows = [
            {"epoch": epoch, "train_pgd": accuracy, "catastrophic_overfitting": epoch == 4}
            for epoch, accuracy in enumerate(accuracies)
        ]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"epoch": 6}]))
        assert collapses(RunFolder(tmp_path)) == [{"epoch": 5, "before": 0.5, "after": 0.2, "last": 0.4}]

    def test_look_up(self):
        results = {"best": {"pgd20": 0.5, "deepfool": 0.7}, "robust_overfitting": 3.0, "hours": 1.5}
        found = [look_up(results, path) for path in ("best.pgd20", "best.deepfool", "robust_overfitting", "hours")]
        assert found == [50.0, 0.7, 3.0, 1.5]
        assert look_up(results, "best.cw") is None
        assert look_up(results, "last.pgd20") is None

    def test_order_of_fewer_than_two_rows(self):
        rows = [{"name": "A", "paper": {"c": {"value": 1}}, "ours": {"c": {"value": 2}}, "difference": {"c": 1}}]
        assert compare_orders("c", rows) is None


class TestTimes:
    def test_two_epochs(self, tmp_path):
        rows = [
            {"images_per_second": 1000.0, "seconds_training": 10.0},
            {"images_per_second": 500.0, "seconds_training": 4.0},  # of an epoch that was interrupted
        ]
        (tmp_path / "timing.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        times = times_of(tmp_path, batch_size=100)
        assert times["seconds_per_step"] == pytest.approx(0.15)  # mean of 0.1 and 0.2
        assert times["seconds"] == pytest.approx(10 + 20)
        assert times["hours"] == pytest.approx((10 + 20) / 3600)

    def test_a_run_that_was_not_timed(self, tmp_path):
        assert times_of(tmp_path, 100) == {}
        (tmp_path / "timing.jsonl").write_text('{"images_per_second": null, "seconds_training": 0.0}\n')
        assert times_of(tmp_path, 100) == {}


class TestCommand:
    def test_list(self, here, capsys):
        assert cli.main(["reproduce"]) == 0
        text = capsys.readouterr().out
        assert "toy-1" in text
        assert "A table for tests; rows to train: 3" in text

    def test_a_table_of_which_one_row_fails(self, here, monkeypatch, capsys):
        command = ["reproduce", "toy-1", "--scale", "full", "--seeds", "0", "1"]
        assert cli.main(command) == 1
        text = capsys.readouterr().out
        out = Path("runs/reproduce/toy-1-full")
        report = json.loads((out / "results.json").read_text())
        assert report["failed"].keys() == {"Diverges, seed 0", "Diverges, seed 1"}
        assert all("epoch 1" in why for why in report["failed"].values())
        assert "FAILED: Diverges, seed 0" in text
        msgd, diverges, engm, quoted = report["rows"]
        runs = [json.loads((out / f"msgd/seed-{seed}/results.json").read_text()) for seed in (0, 1)]
        assert TrainConfig.load(out / "msgd/seed-1/config.yaml").run.seed == 1
        natural = [100 * run["best"]["natural"] for run in runs]
        assert msgd["ours"]["Natural"]["value"] == pytest.approx(np.mean(natural))
        assert msgd["ours"]["Natural"]["spread"] == pytest.approx(np.std(natural, ddof=1))
        assert msgd["difference"]["Natural"] == pytest.approx(np.mean(natural) - 30.5)
        assert msgd["ours"]["rho"]["value"] == pytest.approx(np.mean([run["best"]["deepfool"] for run in runs]))
        assert diverges["ours"] == quoted["ours"] == {}
        assert engm["seeds"] == [0, 1]
        assert [order["column"] for order in report["orders"]] == ["Natural", "PGD-20"]
        assert report["orders"][0]["paper"] == [["ENGM"], ["MSGD"]]
        assert (out / "table.md").read_text().startswith("# A table for tests (Nobody 2020, Table 1), scale full")

        monkeypatch.setattr(multi_run, "train", lambda config: pytest.fail(f"{config.run.out} is complete"))
        assert cli.main([*command, "--rows", "MSGD", "ENGM", "Quoted"]) == 0
        again = json.loads((out / "results.json").read_text())
        assert again["rows"] == [msgd, engm, quoted]
        assert "complete: runs/reproduce/toy-1-full/engm/seed-1" in capsys.readouterr().out

    def test_rows_beside_another_run(self, here, monkeypatch):
        """Values of two runs against the functions they are of; a second call reads them."""
        options = ReproduceConfig("toy-3", scale="full", seeds=(3,), device="cpu", out=Path("out"))
        report = reproduce(options, TABLES)
        assert report["failed"] == {}
        (row,) = report["rows"]
        assert (row["name"], row["seeds"]) == ("ATAS", [3])
        ours = {name: cell["value"] for name, cell in row["ours"].items()}
        run, other = RunFolder(Path("out/atas/seed-3")), RunFolder(Path("out/atta/seed-1003"))
        assert TrainConfig.load(other.config).run.seed == 1003
        metrics = run.read_metrics()
        assert ours["mu"] == pytest.approx(np.mean([one["probe_mu"] for one in metrics]))
        assert ours["sigma^2"] == pytest.approx(np.mean([one["probe_sigma2"] for one in metrics]))
        largest = np.max([np.load(path)["grad_norm"] for path in run.instances.iterdir()], axis=0).astype(float)
        assert ours["Ratio"] == pytest.approx(np.mean(largest**2) / np.mean(largest) ** 2)

        config = TrainConfig.load(run.config)
        model, surrogate = (load_checkpoint(one.last)[0] for one in (run, other))
        train, test = (load_split(config, split) for split in ("train", "test"))
        images, key = train.images.float() / 255, Key(0, 0, torch.arange(len(train)))
        attack = PGD(0.2, 0.05, 10)
        losses = [
            F.cross_entropy(net(attack(net, images, train.labels, key=key)), train.labels).item()
            for net in (surrogate, model)
        ]
        # Batches of other sizes in float32.
        assert ours["Difference"] == pytest.approx(losses[0] - losses[1], abs=1e-4)
        assert ours["Quotient"] == pytest.approx(losses[0] / losses[1], rel=1e-4)
        x_adv = FGSM(0.2)(surrogate, test.images.float() / 255, test.labels)
        with torch.no_grad():
            right = model(x_adv).argmax(1) == test.labels
        # One image at the boundary may fall to either side with other batches.
        assert ours["FGSM"] == pytest.approx(100 * right.double().mean().item(), abs=100 / len(test) + 1e-9)
        assert ours["C&W"] >= 0

        monkeypatch.setattr(further, "cross_robustness", lambda *args, **options: pytest.fail("the values are there"))
        assert reproduce(options, TABLES)["rows"] == report["rows"]

    def test_a_row_whose_other_run_fails_has_its_own_values(self, here):
        shutil.copytree(TABLES, "tables")
        text = Path("tables/toy-3.yaml").read_text()
        Path("tables/toy-3.yaml").write_text(text.replace("{method: atta}", "{method: atta, lr: 1.0e+38}"))
        report = reproduce(ReproduceConfig("toy-3", scale="full", device="cpu", out=Path("out")), Path("tables"))
        assert list(report["failed"]) == ["ATTA, seed 0"]
        assert report["rows"][0]["ours"].keys() == {"mu", "sigma^2", "Ratio"}
        assert report["missing"]["FGSM"] == "the runs have no transfer.fgsm"

    def test_short(self, here, capsys):
        options = ["--rows", "MSGD", "--scale", "short", "--out", "short", "--device", "cpu"]
        assert cli.main(["reproduce", "toy-1", *options]) == 0
        indices = np.loadtxt("short/indices-digits.txt", dtype=int)
        assert indices.tolist() == list(range(1437))
        config = TrainConfig.load(Path("short/msgd/seed-0/config.yaml"))
        assert (config.data.train_indices, config.machine.precision) == (here / "short/indices-digits.txt", "bf16")
        report = json.loads(Path("short/results.json").read_text())
        precision, made_on = report["differences"]["all rows"]
        assert precision == "precision bf16 in place of float32"
        assert made_on.startswith("made on ")
        assert made_on.endswith(", 1 process(es)")

        Path("short/indices-digits.txt").write_text("3\n")
        assert cli.main(["reproduce", "toy-1", *options]) == 1
        assert "holds other indices" in capsys.readouterr().err

    def test_an_interrupted_call_resumes(self, here, monkeypatch, capsys):
        stopped = []

        def stops_once(config):
            if not stopped and config.optimizer.name == "engm":
                stopped.append(RunFolder.create(config))
                raise Interrupted("stopped after batch 1")
            return train(config)

        monkeypatch.setattr(multi_run, "train", stops_once)
        command = ["reproduce", "toy-1", "--scale", "full", "--rows", "MSGD", "ENGM"]
        assert cli.main(command) == Interrupted.exit_status
        text = capsys.readouterr().err
        assert "stopped in ENGM, seed 0; 1 of 2 runs are complete; the same command resumes where it stopped" in text
        assert not Path("runs/reproduce/toy-1-full/results.json").exists()
        assert cli.main(command) == 0
        report = json.loads(Path("runs/reproduce/toy-1-full/results.json").read_text())
        assert [row["seeds"] for row in report["rows"]] == [[0], [0]]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["toy-2", "--scale", "full"], "needs the images of imagenet in a folder: give --data FOLDER"),
            (["toy-2", "--scale", "full", "--data", "nowhere"], "unknown data set 'nowhere'"),
            (["toy-1", "--scale", "full", "--data", "few.txt"], "--data is for tables whose images"),
            (["toy-1", "--rows", "Quoted"], "none of the rows Quoted can be trained"),
            (["toy-1", "--rows", "SGD"], "unknown row 'SGD'; known: MSGD"),
            (["toy-9"], "unknown table 'toy-9'"),
            (["toy-1", "--device", "abacus"], "device 'abacus' is unknown"),
            (["toy-1", "--seeds", "1", "1"], "seeds are (1, 1)"),
            (["toy-1", "--out", "few.txt"], "few.txt exists, holds no runs of a table"),
        ],
    )
    def test_errors_leave_nothing_behind(self, options, message, here, capsys):
        fail("reproduce", *options)
        assert message in " ".join(capsys.readouterr().err.split())
        assert [path.name for path in here.iterdir()] == ["few.txt"]

    def test_folders_of_something_else(self, here, monkeypatch):
        monkeypatch.setattr(multi_run, "train", lambda config: pytest.fail("nothing is to be trained"))
        Path("run").mkdir()
        Path("run/results.json").write_text("{}")
        with pytest.raises(ConfigError, match="holds no runs of a table, and is not written into"):
            reproduce(ReproduceConfig("toy-1", out=Path("run")), TABLES)
        assert Path("run/results.json").read_text() == "{}"
        Path("other").mkdir()
        Path("other/reproduce.yaml").write_text("{table: toy-1, scale: full}")
        with pytest.raises(ConfigError, match=r"holds the runs of .*'full'.*, not of .*'smoke'"):
            reproduce(ReproduceConfig("toy-1", out=Path("other")), TABLES)

    def test_a_table_that_has_changed_since(self, here, capsys):
        """Runs of other options are neither read nor resumed: the row fails with a reason."""
        shutil.copytree(TABLES, "tables")
        options = ReproduceConfig("toy-1", scale="full", rows=("MSGD",), out=Path("out"))
        assert reproduce(options, Path("tables"))["failed"] == {}
        text = Path("tables/toy-1.yaml").read_text()
        Path("tables/toy-1.yaml").write_text(text.replace("batch_size: 60", "batch_size: 30"))
        (why,) = reproduce(options, Path("tables"))["failed"].values()
        assert "batch_size differ from out/msgd/seed-0/config.yaml" in why

    def test_missing_data_are_missed_at_once(self, here):
        content = yaml.safe_load((TABLES / "toy-2.yaml").read_text())
        content["common"]["data"] = "cifar10"
        del content["common"]["image_size"]
        Path("tables").mkdir()
        Path("tables/cifar.yaml").write_text(yaml.safe_dump(content))
        with pytest.raises(DataError, match="download"):
            reproduce(ReproduceConfig("cifar", scale="short", data_dir=Path("empty"), out=Path("out")), Path("tables"))
        assert not Path("out").exists()

    def test_help(self, capsys):
        with pytest.raises(SystemExit) as stop:
            cli.main(["reproduce", "--help"])
        assert stop.value.code == 0
        assert "smoke" in capsys.readouterr().out


@pytest.mark.slow
def test_a_smoke_table(here):
    """A row of the digits' own recipe learns something: the accuracy is far above that of guessing."""
    report = reproduce(ReproduceConfig("toy-2", out=Path("smoke"), device="cpu"), TABLES)
    assert report["failed"] == {}
    assert report["rows"][0]["ours"]["Natural"]["value"] > 80
