"""Recipes of figures against the papers' prose, and the runs that the scales make of them."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml

from pyengm.comparison.options import training_options
from pyengm.data import ImageDataset
from pyengm.errors import ConfigError
from pyengm.reproduce import load_table, sweep_plan
from pyengm.reproduce.paper_sweeps import PAPER_SWEEPS, list_sweeps, load_sweep, sweep_names
from pyengm.reproduce.sweep_plan import plan_sweep, write_indices_of_short_runs
from pyengm.training import TrainConfig
from pyengm.training.builders import build_method

NAMES = [f"atas-fig{i}" for i in (1, 3, 4, 5, 7, 8)] + [f"dynamic-fig{i}" for i in ("2", "3b", "4b")]
NAMES += ["engm-fig1", "engm-fig5", "smoothness-fig3"]
# What a run must say itself, so that it stays what it is when the recipe of a method changes.
PINNED = {"data", "model", "threat", "method", "optimizer", "lr", "momentum", "weight_decay", "batch_size", "epochs"}
PINNED |= {"schedule", "augment", "select_on"}


def full(name):
    return plan_sweep(load_sweep(name).pick(()), "full", PAPER_SWEEPS)


def values(name, part, option, **others):
    """The values of an option in a part, at full scale, of the runs that have these other options."""
    plan = full(name)
    configs = [plan.points[point] for point in plan.parts[part]]
    configs = [one for one in configs if all(one.get(key) == value for key, value in others.items())]
    return sorted({one.get(option) for one in configs})


def per_255(numbers):
    return pytest.approx([number / 255 for number in numbers])


def test_there_is_a_recipe_for_each_figure(capsys):
    assert sweep_names() == NAMES
    list_sweeps()
    printed = " ".join(capsys.readouterr().out.split())
    assert "engm-fig5 ENGM, ablations" in printed
    assert "alpha (13), tau (7)" in printed


def test_the_docs_list_them():
    text = (Path(__file__).parents[2] / "docs/guides/compare.md").read_text()
    assert sorted(re.findall(r"^\| `([a-z]+-fig\w+)` \|", text, re.MULTILINE)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_run_says_what_it_is(name):
    sweep = load_sweep(name)
    assert all(isinstance(text, str) and text for text in (sweep.title, sweep.source, *sweep.notes))
    for part in sweep.parts.values():
        assert part.figure
        assert part.shows.endswith(".")
        for run in part.runs:
            assert run.options.keys() >= PINNED, PINNED - run.options.keys()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", ["full", "smoke"])
def test_runs_are_different_at_every_scale(name, scale, tmp_path):
    """A sweep whose option the recipe of the digits replaces would compare equal runs."""
    sweep = load_sweep(name)
    plan = plan_sweep(sweep.pick(()), scale, tmp_path)
    for part, points in plan.parts.items():
        assert len(points) == len(sweep.parts[part].runs)
        for first, second in pairwise(points):
            assert training_options(plan.points[first]) != training_options(plan.points[second])
    for config in plan.points.values():
        build_method(config)
    assert bool(plan.differences) == (scale == "smoke")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_swept_stays_in_a_smoke_run(name, tmp_path):
    sweep = load_sweep(name)
    whole, smoke = (plan_sweep(sweep.pick(()), scale, tmp_path) for scale in ("full", "smoke"))
    for part in sweep.parts.values():
        names = {option for run in part.runs for option in run.swept} - {"method_options"}
        for option in names:
            found = [[plan.points[point].get(option) for point in plan.parts[part.name]] for plan in (whole, smoke)]
            scaled = 0.2 / (8 / 255) if option in ("eps", "step_size") else 1  # radii of the digits and of CIFAR-10
            expected = [None if value is None else pytest.approx(scaled * value) for value in found[0]]
            assert found[1] == expected


class TestENGM:
    """Dabouei et al. 2022, Sec. 3, 3.1 and 3.4."""

    def test_settings_are_those_of_table_2(self):
        row = load_table("engm-2").pick(("ENGM",)).rows[0]
        plan = full("engm-fig5")
        table = TrainConfig.from_plain(row.options, "row").drop_idle(keep=()).resolve()
        for point in (one for one in plan.parts["curves"] if "engm, alpha=5" in one and "tau" not in one):
            changed = plan.points[point].differing(table)
            assert set(changed) <= {"eval_both_threats"}
        assert load_sweep("engm-fig5").seeds == (0, 1, 2)  # "the average of three independent runs"

    def test_tau(self):
        assert values("engm-fig5", "tau", "tau", optimizer="aengm") == [1, 10, 50, 100, 300]
        assert values("engm-fig5", "tau", "alpha", optimizer="aengm") == [5]

    def test_the_optima_of_alpha_are_in_the_middle(self):
        for optimizer, best in (("engm", 5), ("nengm", 0.5)):
            found = values("engm-fig5", "alpha", "alpha", optimizer=optimizer)
            assert found[0] < best < found[-1]
            assert best in found

    def test_trades_and_weight_decay_surround_the_settings(self):
        plan = full("engm-fig5")
        betas = {plan.points[point].method.options for point in plan.parts["trades"]}
        assert {("beta=6",)} < betas
        for optimizer in ("msgd", "engm"):
            found = values("engm-fig5", "weight_decay", "weight_decay", optimizer=optimizer)
            assert found[0] < 5e-4 < found[-1]
            assert 5e-4 in found

    def test_the_optimisers_of_the_learning_curves(self):
        names = values("engm-fig5", "curves", "optimizer")
        assert names == sorted(["msgd", "mgnc", "sngm", "fengm", "nengm", "aengm", "engm"])


class TestDynamic:
    """Wang et al. 2019, Sec. 3.2, 5.1 and 5.2."""

    @pytest.mark.parametrize("name", ["dynamic-fig2", "dynamic-fig3b", "dynamic-fig4b"])
    def test_settings(self, name):
        for config in full(name).points.values():
            assert (config.data.name, config.model.name, config.schedule.epochs) == ("cifar10", "cnn8", 120)
            assert config.schedule.milestones == (60, 100)
            assert (config.optimizer.lr, config.optimizer.momentum) == (0.01, 0.9)
            assert config.optimizer.weight_decay == 1e-4

    def test_step_sizes_and_steps(self):
        assert values("dynamic-fig2", "step_size", "step_size") == per_255([1, 2, 4, 8])  # eps/8, /4, /2, eps
        assert values("dynamic-fig2", "step_size", "attack_steps") == [20]
        found = values("dynamic-fig2", "steps", "attack_steps")
        assert (found[0], found[-1]) == (10, 40)
        assert values("dynamic-fig2", "steps", "step_size") == per_255([8 / 6])
        assert {part.analysis for part in load_sweep("dynamic-fig2").parts.values()} == {"cross_robustness"}

    def test_fgsm_first(self):
        weak = full("dynamic-fig3b").points["fgsm_then_pgd"]
        assert build_method(weak).fgsm_epochs == 20
        assert values("dynamic-fig3b", "robustness", "attack_steps") == [10]
        assert values("dynamic-fig3b", "robustness", "step_size") == per_255([2])  # eps/4

    def test_radii(self):
        for method in ("pgd_at", "curriculum", "dynamic"):
            found = values("dynamic-fig4b", "eps", "eps", method=method)
            assert (found[0], found[-1]) == (2 / 255, 8 / 255)
            assert 4 / 255 in found
        assert values("dynamic-fig4b", "eps", "method") == ["curriculum", "dynamic", "pgd_at"]
        for point, config in full("dynamic-fig4b").points.items():
            if "curriculum" not in point:
                assert build_method(config).attack.step_size == pytest.approx(config.attack.eps / 4)


class TestATAS:
    """Huang et al. 2022, Sec. III to V and Appendix B."""

    @pytest.mark.parametrize("name", ["atas-fig3", "atas-fig4", "atas-fig5", "atas-fig8"])
    def test_settings(self, name):
        plan = full(name)
        for point, config in plan.points.items():
            assert config.schedule.epochs == 30 or point in plan.subsets
            assert (config.schedule.batch_size, config.optimizer.weight_decay) == (128, 5e-4)
            if config.method.name in ("atta", "atas") and point not in plan.subsets:
                assert (config.schedule.milestones, config.optimizer.lr) == ((24, 28), 0.1)
            assert config.model.name == ("wrn_28_10" if name in ("atas-fig5", "atas-fig8") else "preact_resnet18")

    def test_subsets(self):
        """D_1^2, D_1^3, D_1^4 and D_7^10, D_8^10, D_9^10, with as many steps as on all images, in five runs."""
        sweep, plan = load_sweep("atas-fig3"), full("atas-fig3")
        assert len(sweep.seeds) == 5
        found = {(one.first, one.last) for one in plan.subsets.values()}
        assert found == {(1, 2), (1, 3), (1, 4), (7, 10), (8, 10), (9, 10)}
        assert values("atas-fig3", "ranks", "step_size") == per_255([10])
        for point, subset in plan.subsets.items():
            config = plan.points[point]
            assert config.schedule.epochs * (subset.last - subset.first + 1) == 10 * 30
            ranking = plan.points[subset.ranked_by]
            assert ranking.record.instance_log
            assert ranking.method.name == config.method.name
            assert ranking.schedule.epochs == 30
            assert subset.file == config.data.train_indices
            if config.method.name == "atta":
                tenths = (subset.last - subset.first + 1) / 10
                assert config.schedule.milestones == pytest.approx(
                    (24 / tenths, 28 / tenths), abs=0.005
                )  # of two decimals

    def test_steps(self):
        for part, method in (("fgsm_rs", "fgsm_rs"), ("atta", "atta")):
            found = values("atas-fig4", part, "step_size", method=method)
            assert (found[0], found[-1]) == (pytest.approx(2 / 255), pytest.approx(10 / 255))
        assert values("atas-fig5", "fgsm_rs", "step_size")[0] == pytest.approx(8 / 255)
        assert values("atas-fig5", "atta", "step_size", method="atta") == per_255([8])
        assert values("atas-fig8", "repetitions", "eps") == per_255([8, 16])
        assert len(load_sweep("atas-fig8").seeds) == 5

    def test_atas_is_that_of_the_tables(self):
        row = load_table("atas-1a-wrn").pick(("ATAS",)).rows[0]
        own = TrainConfig.from_plain(row.options, "row").resolve()
        ours = full("atas-fig5").points["atas"]
        assert {*ours.method.options} == {*own.method.options}


def test_parts_bring_those_that_rank_for_them():
    sweep = load_sweep("atas-fig3")
    assert [part.name for part in sweep.pick(("atta_12",))] == ["ranks", "atta_12"]
    assert [part.name for part in load_sweep("engm-fig5").pick(("tau", "alpha"))] == ["alpha", "tau"]
    with pytest.raises(ConfigError, match="unknown part 'tua'"):
        load_sweep("engm-fig5").pick(("tua",))


def test_overrides_hold_for_all_runs(tmp_path):
    plan = plan_sweep(load_sweep("atas-fig3").pick(()), "smoke", tmp_path, {"epochs": 4, "device": "cpu"})
    assert {plan.points[point].schedule.epochs for point in plan.parts["ranks"]} == {4}
    assert {config.machine.device for config in plan.points.values()} == {"cpu"}
    assert {config.schedule.epochs for config in plan.points.values()} == {4, 20, 13, 10}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("source"), "the sweep lacks source"),
        (lambda s: s.update(grid={}), "unknown entry 'grid'"),
        (lambda s: s["parts"]["eps"].pop("figure"), "part eps lacks figure"),
        (lambda s: s["parts"]["eps"].update(analysis="fosc"), "has the analysis 'fosc'; known: cross_robustness"),
        (lambda s: s["parts"]["eps"].update(ranked_by="no"), "ranked by 'no'; its parts: eps"),
        (lambda s: s["common"].update(optimiser="msgd"), "unknown option 'optimiser'"),
        (lambda s: s["parts"]["eps"]["runs"][0]["grid"].update(subset=["0-2"]), "has the subset '0-2'"),
        (lambda s: s["parts"]["eps"]["runs"][0]["grid"].update(eps=["x"]), "eps is 'x'; expected"),
    ],
)
def test_files_that_are_wrong(change, message, tmp_path):
    content = yaml.safe_load((PAPER_SWEEPS / "dynamic-fig4b.yaml").read_text())
    change(content)
    (tmp_path / "broken.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=message):
        load_sweep("broken", tmp_path)


def test_short_runs(tmp_path, monkeypatch):
    """On a part of CIFAR-10, which is not needed to make the plan: 50,000 images without values take its place."""
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8).expand(50_000, -1, -1, -1)
    data = ImageDataset(images, torch.arange(50_000) % 10, tuple("0123456789"), "cifar10", "train")
    monkeypatch.setattr(sweep_plan, "load_data", lambda papers: {"cifar10": data})
    plan = plan_sweep(load_sweep("dynamic-fig2").pick(()), "short", tmp_path)
    assert len(plan.points) == 8
    assert {one.data.train_indices for one in plan.points.values()} == {(tmp_path / "indices-cifar10.txt").resolve()}
    assert "10,000 of 50,000 training images" in plan.differences
    write_indices_of_short_runs(plan, tmp_path)
    assert len((tmp_path / "indices-cifar10.txt").read_text().split()) == 10_000
    with pytest.raises(ConfigError, match="subsets by gradient norm are of all training images"):
        plan_sweep(load_sweep("atas-fig3").pick(()), "short", tmp_path)
