"""Comparisons of runs: their groups and names, numbers against the files, and runs that are refused."""

import json
import math
import re

import numpy as np
import pytest
from helpers.run_folders import write_lines, write_run

from pyengm.cli.comparison_files import save_comparison
from pyengm.comparison import compare
from pyengm.errors import ConfigError


def change_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture
def runs(tmp_path):
    """msgd with three seeds, engm with two alphas and two seeds."""
    found = [write_run(tmp_path / f"msgd-{seed}", seed, optimizer="msgd") for seed in (2, 0, 1)]
    return found + [write_run(tmp_path / f"engm-{a}-{s}", s, alpha=a) for a in (1, 5) for s in (0, 1)]


def column(comparison, title, row):
    titles = [one.title for one in comparison.table.columns]
    return comparison.table.rows[row].values[titles.index(title)]


def test_runs_that_differ_only_in_their_seed_are_one_entry(runs):
    found = compare(runs)
    assert [(entry.name, entry.seeds) for entry in found.entries] == [
        ("msgd", [0, 1, 2]),
        ("engm, alpha=1", [0, 1]),
        ("engm, alpha=5", [0, 1]),
    ]
    assert found.table.options == ("optimizer", "alpha")
    assert [row.options for row in found.table.rows] == [("msgd", None), ("engm", 1), ("engm", 5)]
    assert not found.table.has_names


def test_numbers_of_the_table(runs):
    found = compare(runs)
    contents = [json.loads((run / "results.json").read_text()) for run in runs[:3]]
    for title, model, key in (("AutoAttack best", "best", "autoattack"), ("PGD-20 last", "last", "pgd20")):
        values = [100 * content[model][key] for content in contents]
        got = column(found, title, 0)
        # Sums of the same three numbers in another order.
        assert (got.mean, got.spread) == pytest.approx((np.mean(values), np.std(values, ddof=1)), rel=1e-12)
    values = [content["robust_overfitting"] for content in contents]
    got = column(found, "robust overfitting", 0)
    assert (got.mean, got.spread) == pytest.approx((np.mean(values), np.std(values, ddof=1)), rel=1e-12)
    # Three epochs; the images of an epoch are the rate times two seconds, so each takes two seconds.
    assert column(found, "time", 0).mean == pytest.approx(6.0)
    assert [one.unit for one in found.table.columns][-1] == "seconds"


def test_curves_against_metrics(runs):
    curves = compare(runs).curves["msgd"]
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs[:3]]
    values = np.array([[row["robust"] for row in one] for one in rows])
    mean, spread = curves.band("robust")
    np.testing.assert_allclose(mean, values.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(spread, values.std(axis=0, ddof=1), rtol=1e-12)
    assert curves.seeds.tolist() == [0, 1, 2]
    assert curves.epochs.tolist() == [1, 2, 3]
    np.testing.assert_allclose(curves.seconds, [[2, 4, 6]] * 3)


def test_the_band_of_one_seed_is_none(runs):
    _, spread = compare(runs[:1]).curves["msgd-2"].band("loss")
    assert np.isnan(spread).all()


def test_overfitting_bars(runs):
    found = compare(runs).overfitting["engm, alpha=5"]
    np.testing.assert_allclose(found.difference, [0.05, 0.05])
    contents = [json.loads((run / "results.json").read_text()) for run in runs[5:]]
    np.testing.assert_allclose(found.relative, [content["robust_overfitting"] for content in contents])


def test_lines_where_one_option_alone_differs(runs):
    lines = compare(runs).sensitivity
    assert {line.option for line in lines} == {"alpha"}
    (natural,) = (line for line in lines if line.what.startswith("natural"))
    assert natural.values.tolist() == [1, 5]
    np.testing.assert_allclose(natural.mean, [100 * (0.305 + 0.02 * alpha) for alpha in (1, 5)])
    assert natural.seeds.tolist() == [2, 2]


def test_lines_by_the_other_options(tmp_path):
    runs = [
        write_run(tmp_path / f"{optimizer}-{decay}", optimizer=optimizer, weight_decay=decay)
        for optimizer in ("msgd", "engm")
        for decay in (1e-4, 1e-3)
    ]
    found = {(line.option, line.of) for line in compare(runs).sensitivity}
    assert found == {("weight_decay", "msgd"), ("weight_decay", "engm")}


def test_two_options_that_differ_together_make_no_line(tmp_path):
    runs = [write_run(tmp_path / f"{i}", lr=lr, weight_decay=decay) for i, (lr, decay) in enumerate([(1, 0), (2, 1)])]
    assert compare(runs).sensitivity == ()


def test_names(runs, tmp_path):
    found = compare([f"Ours={runs[3]},{runs[4]}", *map(str, runs[:3])])
    assert [entry.name for entry in found.entries] == ["Ours", "msgd"]
    assert found.table.has_names
    assert [entry.name for entry in compare({"a = b": [runs[0]], "c": runs[3:5]}).entries] == ["a = b", "c"]
    odd = write_run(tmp_path / "x=1", 7, optimizer="msgd")  # a folder, and no name
    assert compare([odd, runs[0]]).entries[0].seeds == [2, 7]


def test_folders_of_several_seeds(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / "many" / f"seed-{seed}", seed)
    (entry,) = compare([tmp_path / "many"]).entries
    assert (entry.name, entry.seeds) == ("many", [0, 1])


def test_options_of_methods_and_defaults(tmp_path):
    plain = write_run(tmp_path / "plain", 0, method="trades")
    six = write_run(tmp_path / "six", 1, method="trades", method_options=("beta=6",))
    three = write_run(tmp_path / "three", 0, method="trades", method_options=("beta=3",))
    found = compare([plain, six, three])
    assert [entry.name for entry in found.entries] == ["beta=6", "beta=3"]  # six is the default
    assert found.table.options == ("trades.beta",)
    assert {line.option for line in found.sensitivity} == {"trades.beta"}


def test_epochs_and_the_milestones_that_follow(tmp_path):
    options = {"schedule": "piecewise", "lr_decay": 0.1}
    runs = [write_run(tmp_path / str(epochs), done=3, epochs=epochs, **options) for epochs in (16, 32)]
    assert compare(runs).table.options == ("epochs",)


def test_runs_without_held_out_images(tmp_path, runs):
    none = write_run(tmp_path / "none", 0, optimizer="msgd", select_on="none")
    found = compare([runs[1], none])
    assert column(found, "natural best", 1) is None
    assert column(found, "natural last", 1).mean == pytest.approx(40)
    assert list(found.overfitting) == ["select_on=val"]
    assert np.isnan(found.curves["select_on=none"].robust).all()
    assert any("no held-out images" in remark for remark in found.remarks)
    alone = compare([none])
    assert "overfitting" not in alone.figures()
    assert all("best" not in one.title for one in alone.table.columns)


def test_runs_that_stopped_at_different_epochs(tmp_path):
    runs = [write_run(tmp_path / str(seed), seed, done=3 - seed, patience=1) for seed in (0, 1)]
    found = compare(runs)
    (curves,) = found.curves.values()
    mean, _ = curves.band("loss")
    assert np.isfinite(mean).tolist() == [True, True, False]
    assert any("ended after 3, 2 epochs" in remark for remark in found.remarks)


def test_radii_are_not_mixed(tmp_path):
    runs = [write_run(tmp_path / str(eps), eps=eps) for eps in (0.1, 0.2)]
    found = compare(runs)
    details = {one.title: one.details for one in found.table.columns}
    assert details["PGD-20 best"] == "L-infinity, eps of the training, 360 images"
    assert details["natural best"] == "360 images"
    assert column(found, "PGD-20 best", 0) is not None
    assert column(found, "PGD-20 best", 1) is not None
    assert any("own radius" in remark for remark in found.remarks)


def test_numbers_of_images_are_not_mixed(runs):
    change_json(runs[3] / "results.json", lambda content: content["images"].update(autoattack=360))
    change_json(runs[4] / "results.json", lambda content: content["images"].update(autoattack=360))
    found = compare(runs[3:])
    columns = [one for one in found.table.columns if one.title == "AutoAttack best"]
    assert [one.details for one in columns] == ["L-infinity, eps = 0.2, 360 images", "L-infinity, eps = 0.2, 50 images"]
    values = [[row.values[found.table.columns.index(one)] is None for one in columns] for row in found.table.rows]
    assert values == [[False, True], [True, False]]
    assert not any("AutoAttack" in line.what for line in found.sensitivity)


def add_evaluation(run, number, results, **about):
    (run / "evaluations").mkdir(exist_ok=True)
    content = {"threats": [{"norm": "linf", "eps": 0.2}], "images": {"all": 360, "autoattack": 360}, **results}
    content["evaluation"] = {"data": "digits", "split": "test", **about}
    (run / "evaluations" / f"{number:03}.json").write_text(json.dumps(content))


def test_further_evaluations_add_what_the_run_lacks(runs):
    results = {"best": {"natural": 0.9, "pgd50": 0.2}, "last": {"natural": 0.9, "pgd50": 0.1}}
    for run in runs[:3]:
        add_evaluation(run, 1, results)
        add_evaluation(run, 2, results, split="train")
    found = compare(runs[:4])
    assert column(found, "PGD-50 best", 0).mean == pytest.approx(20)
    assert column(found, "PGD-50 best", 1) is None
    assert column(found, "natural best", 0).mean == pytest.approx(31)  # that of the run, not the 90 of the evaluation
    assert sum("left out: it is of the train split" in remark for remark in found.remarks) == 3


def test_what_curves_over_training_images_need(runs, tmp_path):
    other = write_run(tmp_path / "other", 0, lr=0.3, train_attack="pgd10")
    found = compare([runs[0], other])
    assert "train_pgd" not in found.figures()["curves"].panels
    assert any("their attacks differ: pgd10, pgd5" in remark for remark in found.remarks)


def test_code_and_machines_are_told(runs):
    change = lambda starts: starts[0].update(git={"pyengm": {"commit": "1" * 40}}, machine={"cpu": "d"})  # noqa: E731
    change_json(runs[3] / "environment.json", change)
    remarks = " ".join(compare(runs).remarks)
    assert "commit 000000000000" in remarks
    assert "commit 111111111111: 'engm, alpha=1'" in remarks
    assert "different machines: c: 'msgd'" in remarks


@pytest.mark.parametrize("x", ["epoch", "time"])
def test_all_figures_can_be_drawn(runs, x):
    from pyengm.utils.figures import axes_or_new

    figures = compare(runs).figures(x)
    assert list(figures) == ["curves", "overfitting", "sensitivity"]
    for figure in figures.values():
        for draw in figure.panels.values():
            ax = axes_or_new(None)
            draw(ax)
            ax.figure.canvas.draw()
    curves = axes_or_new(None)
    figures["curves"].panels["robust"](curves)
    assert curves.get_xlabel() == ("epoch" if x == "epoch" else "time of training (seconds)")
    assert len(curves.lines) == 3
    assert len(curves.collections) == 3  # a band for each


@pytest.mark.parametrize("alphas", [(1.0, 5.0, math.inf), (1.0, 100.0, math.inf), (5.0, math.inf)])
def test_an_infinite_value_is_drawn_at_the_right_end(tmp_path, alphas):
    """Such as the alpha of Muon without clipping."""
    from pyengm.utils.figures import axes_or_new

    runs = [write_run(tmp_path / f"{alpha}", optimizer="muon", alpha=alpha) for alpha in alphas]
    found = compare(runs)
    assert {tuple(line.values) for line in found.sensitivity} == {alphas}
    ax = axes_or_new(None)
    next(iter(found.figures()["sensitivity"].panels.values()))(ax)
    ax.figure.canvas.draw()
    at = ax.lines[0].get_xdata()
    assert np.isfinite(at).all()
    assert (np.diff(at) > 0).all()
    assert [label.get_text() for label in ax.get_xticklabels()] == [f"{alpha:g}" for alpha in alphas]
    np.testing.assert_allclose(ax.get_xticks(), at)
    save_comparison(tmp_path / "out", found, "epoch")
    table = (tmp_path / "out" / "table.json").read_text()
    assert not {"Infinity", "NaN"} & set(re.findall(r"\w+", table))


class TestRefusals:
    def refused(self, runs, message):
        with pytest.raises(ConfigError, match=message):
            compare(runs)

    def test_words(self, runs, tmp_path):
        self.refused([], "nothing to compare")
        self.refused([tmp_path / "nowhere"], "no run folder")
        self.refused([f"={runs[0]}"], "expected a folder, or NAME=FOLDER,FOLDER")
        self.refused([f"a={runs[0]}", f"a={runs[1]}"], "'a' comes twice")
        self.refused([runs[0] / "results.json"], "is a file; expected a run folder")

    def test_an_unfinished_run(self, runs):
        (runs[0] / "results.json").unlink()
        self.refused(runs, "is not finished.*--resume completes it")

    def test_the_same_run_or_seed_twice(self, runs, tmp_path):
        self.refused([runs[0], runs[0].parent / "." / runs[0].name], "comes twice")
        self.refused([*runs, write_run(tmp_path / "again", 1, optimizer="msgd")], "the same options and the seed 1")

    def test_a_name_for_runs_of_different_options(self, runs):
        self.refused([f"a={runs[0]},{runs[3]}"], "the runs of 'a' differ in optimizer, alpha")

    def test_other_data(self, runs, tmp_path):
        self.refused([runs[0], write_run(tmp_path / "mnist", data="mnist")], "different data, digits, mnist")
        change_json(runs[1] / "environment.json", lambda starts: starts[0]["data"]["test"].update(labels="c", images=9))
        self.refused(runs, r"different images of digits \(360 and 9\)")

    def test_other_training_images_under_the_same_options(self, runs):
        change_json(runs[1] / "environment.json", lambda starts: starts[0]["data"]["train"].update(labels="c"))
        self.refused(runs, "the same options and other training images")

    def test_seeds_that_were_evaluated_in_different_ways(self, runs):
        change_json(runs[1] / "results.json", lambda content: content["best"].update(pgd50=0.1))
        self.refused(runs, "not evaluated in the same way: PGD-50 .* is there for the seeds 0 alone")

    def test_a_damaged_file(self, runs):
        write_lines(runs[0] / "metrics.jsonl", [{"loss": 1}])
        with pytest.raises(Exception, match="damaged"):
            compare(runs)
