"""Figures of the papers: their files, and `pyengm reproduce` on one of them end to end."""

import json
import re
from dataclasses import fields
from functools import partial
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.yaml_files import NoDuplicates

from pyengm import analysis, cli
from pyengm.attacks import ThreatModel
from pyengm.cli import reproduce as reproduce_command
from pyengm.cli.analyses import ANALYSES, ANALYSES_ALONE
from pyengm.cli.analysis_attacks import parse_attack
from pyengm.cli.analyze import AnalyzeConfig
from pyengm.errors import ConfigError, Interrupted, NonFiniteError
from pyengm.models import CheckpointInfo, build, save_checkpoint
from pyengm.reproduce import (
    ReproduceConfig,
    figure_names,
    figure_run,
    is_figure,
    load_figure,
    reproduce_figure,
    table_names,
)
from pyengm.reproduce.figure_run import EXAMPLES, finding_of, lines_of, part_options
from pyengm.reproduce.paper_figures import Part
from pyengm.reproduce.paper_sweeps import load_sweep
from pyengm.reproduce.presets import SCALES, full, smoke
from pyengm.reproduce.sweep_plan import plan_sweep
from pyengm.training import RunFolder, multi_run
from pyengm.training.recipes import RECIPES
from pyengm.training.snapshots import scale_snapshots, snapshot_epochs

TABLES, FIGURES = (Path(__file__).parent / kind for kind in ("tables", "figures"))
PAPER = files("pyengm") / "paper_figures"
# The arrays of each analysis: the class of its result, and the prefixes of its names where it has several.
ARRAYS = {
    "gradient_statistics": (analysis.GradientStatistics, ("",)),
    "norm_correlation": (analysis.NormCorrelation, ("",)),
    "weight_errors": (analysis.WeightErrors, ("",)),
    "fosc_trajectory": (analysis.FOSCTrajectory, ("",)),
    "fosc_bins": (analysis.FOSCBins, ("",)),
    "fosc_distribution": (analysis.FOSCDistribution, ("whole ball/", "ball within [0, 1]/")),
    "cross_robustness": (analysis.CrossRobustness, ("",)),
    "accuracy_curve": (analysis.AccuracyCurve, ("eps/", "steps/")),
    "input_plane": (analysis.InputPlane, ("",)),
    "weight_plane": (analysis.WeightPlane, ("line/", "plane/")),
    "instances": (analysis.Instances, ("",)),
    "loss_gap": (analysis.LossGap, ("",)),
    "toy_surface": (
        analysis.ToySurface,
        tuple(f"{kind} {constraint}/" for kind in ("linear", "swish") for constraint in ("nt", "l2", "linf")),
    ),
}


@pytest.fixture(scope="module", params=figure_names())
def figure(request):
    return load_figure(request.param)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory, with the few.txt of toy-1; `pyengm reproduce` finds the figures for tests."""
    (tmp_path / "few.txt").write_text("\n".join(map(str, range(240))))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduce_command, "reproduce_figure", partial(reproduce_figure, folder=FIGURES, tables=TABLES))
    return tmp_path


def test_the_figures_that_there_are():
    assert {"engm-fig2", "engm-fig3", "engm-fig4", "dynamic-fig1b", "dynamic-fig2", "dynamic-fig5"} <= set(
        figure_names()
    )
    assert {"atas-fig2", "atas-fig6", "atas-fig9", "atas-fig10"} <= set(figure_names())
    assert {"smoothness-fig2", "smoothness-fig7", "dynamic-fig4a"} <= set(figure_names())
    assert all(is_figure(name) for name in figure_names())
    assert not any(is_figure(name) for name in table_names())
    assert is_figure("ENGM_Fig2")


def test_the_docs_list_every_figure():
    docs = (Path(__file__).resolve().parents[2] / "docs" / "guides" / "analyses.md").read_text()
    listed = set(re.findall(r"`(\w+-fig[\w-]+)`", docs))
    assert listed == {*figure_names(), *reproduce_command.swept_figures()}


def test_files_say_nothing_twice(figure):
    yaml.load((PAPER / f"{figure.name}.yaml").read_text(), NoDuplicates)


def test_every_part_is_an_analysis_with_its_options(figure):
    for part in figure.parts:
        assert part.analysis in (ANALYSES if part.runs else ANALYSES_ALONE)
        options = AnalyzeConfig(("run", part.analysis), **part_options(part, "full", Path("place")))
        parse_attack(options.attack, ThreatModel("linf", 0.1))
        assert options.checkpoint in ("best", "last", "all")
        if options.checkpoint == "all":
            assert all(row.options["snapshots"] for row in figure.runs if row.name in part.runs)


def test_every_reading_is_of_an_array(figure):
    analyses = {part.name: part.analysis for part in figure.parts}
    for one in figure.look_for:
        for reading in one.of:
            for text in reading if isinstance(reading, list) else [reading]:
                part, _, key = text.partition("|")[0].partition(":")
                kind, prefixes = ARRAYS[analyses[part]]
                assert key in {prefix + f.name for prefix in prefixes for f in fields(kind)}, text


def test_files_of_indices_are_written_by_an_earlier_part(figure):
    names = [part.name for part in figure.parts]
    for number, part in enumerate(figure.parts):
        if "indices" in part.options:
            writer = part.options["indices"].partition("/")[0]
            assert figure.parts[names.index(writer)].analysis == "instances"
            assert names.index(writer) < number


def test_runs_of_one_name_are_one_run():
    """Figures share their folder of runs."""
    seen = {}
    for name in figure_names():
        for run in load_figure(name).runs:
            assert seen.setdefault(run.folder, run.options) == run.options, (name, run.name)


def test_smoke_runs_can_be_configured(figure):
    for run in figure.runs:
        config = smoke(run.options, full(run.options, run.name))
        assert config.data.name == "digits"
        epochs = snapshot_epochs(config.record.snapshots, config.schedule.epochs)
        assert len(epochs) >= min(3, len(run.options.get("snapshots", ())))
        assert config.record.instance_log == run.options.get("instance_log", False)


def test_claims_and_notes_are_sentences(figure):
    for one in (*(look.paper for look in figure.look_for), *figure.notes):
        assert one.endswith("."), one
    assert figure.look_for


def test_snapshots_of_shorter_runs():
    assert scale_snapshots(("10", "60", "100"), 14 / 120) == ("1", "7", "12")
    assert scale_snapshots(("every=25", "1"), 0.1) == ("every=2", "1")
    assert scale_snapshots(("75", "76"), 0.1) == ("8",)


@pytest.mark.parametrize("scale", SCALES)
def test_the_scale_bounds_the_images(scale):
    part = Part("p", "input_plane", ("run",), {"examples": 5000, "indices": "q/rows.txt"})
    found = part_options(part, scale, Path("place"))
    assert found == {"examples": min(5000, EXAMPLES[scale] or 5000), "indices": Path("place/q/rows.txt")}
    weights = part_options(Part("p", "weight_plane", ("run",), {}), scale, Path("place"))
    assert weights == {"examples": {"smoke": 16, "short": 125, "full": 1000}[scale]}
    assert part_options(Part("p", "toy_surface", (), {}), scale, Path("place")) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.pop("parts"), "the figure lacks parts"),
        (lambda f: f["runs"][0].update(row="toy-1/Quoted"), "which is quoted and has no options"),
        (lambda f: f["runs"][0].update(row="toy-1/SGD"), "unknown row 'SGD'"),
        (lambda f: f["runs"][0]["options"].update(seed=1), "has a seed"),
        (lambda f: f["parts"][0].update(runs=["ATTA"]), r"unknown run 'ATTA' \(did you mean ATAS\?\)"),
        (lambda f: f["parts"][0].update(name="gradients"), "two parts have the name 'gradients'"),
        (lambda f: f["look_for"][0].update(rule="at_last"), r"unknown rule 'at_last' \(did you mean at_least\?\)"),
        (lambda f: f["look_for"][0].pop("bound"), "expected a list of 1 readings or more, and bound"),
        (lambda f: f["look_for"][0].update(of=["instance:ratios"]), "expected PART:ARRAY with a part of instances"),
        (lambda f: f["look_for"][0].update(of=["instances:ratios|men"]), "unknown step 'men'"),
        (lambda f: f["look_for"][2].update(run="ATTA"), "unknown run 'ATTA'"),
        (lambda f: f.update(notes="x"), "notes is 'x'; expected a list"),
    ],
)
def test_files_that_are_wrong(change, message, tmp_path):
    content = yaml.safe_load((FIGURES / "toy-fig1.yaml").read_text())
    change(content)
    (tmp_path / "broken-fig1.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=message) as caught:
        load_figure("broken-fig1", tmp_path, TABLES)
    assert "broken-fig1.yaml" in str(caught.value)


def test_the_surfaces_of_two_weights_show_what_the_paper_says():
    """They are formulas: here every claim holds, and with the constraints exchanged those about them do not."""
    figure = load_figure("smoothness-fig2")

    def shown(names):
        kinds = [(kind, constraint) for kind in ("linear", "swish") for constraint in ("nt", "l2", "linf")]
        surfaces = {f"{kind} {names[one]}": vars(analysis.toy_surface(kind, one)) for kind, one in kinds}
        arrays = {f"{name}/{key}": value for name, found in surfaces.items() for key, value in found.items()}
        return [finding_of(one, {"surface": arrays}, {}, 0)["shown"] for one in figure.look_for]

    assert shown({"nt": "nt", "l2": "l2", "linf": "linf"}) == [True] * 6
    assert shown({"nt": "nt", "l2": "linf", "linf": "l2"}) == [True, True, False, False, False, True]
    assert shown({"nt": "linf", "l2": "l2", "linf": "nt"})[0] is False


class TestCommand:
    def test_list(self, monkeypatch, capsys):
        assert cli.main(["reproduce"]) == 0
        text = capsys.readouterr().out
        assert "engm-2 " in text
        assert "engm-fig2 " in text

    def test_a_figure_end_to_end(self, here, monkeypatch, capsys):
        command = ["reproduce", "toy-fig1", "--scale", "full", "--device", "cpu", "--out", "out", "--seeds", "1"]
        assert cli.main(command) == 0
        text = capsys.readouterr().out
        assert "shown: Steps are positive. Here: 0." in text
        assert "NOT shown: Norms are negative. Here: " in text
        assert "note: A note." in text
        report = json.loads(Path("out/toy-fig1/results.json").read_text())
        assert [one["shown"] for one in report["findings"][:2]] == [True, False]
        assert "before the decay" in report["findings"][2]["words"]
        assert report["failed"] == {}
        assert len(list(RunFolder(Path("out/runs/atas/seed-1")).snapshots.iterdir())) == 2
        folder = Path("out/toy-fig1/seed-1")
        subset = np.loadtxt(folder / "instances/instances-subset-10.txt", dtype=int)
        description = json.loads((folder / "gradients/gradient_statistics.json").read_text())
        assert description["data"]["examples"] == min(20, len(subset))
        assert np.load(folder / "gradients/gradient_statistics.npz")["mu"].shape == (2,)
        for suffix in ("svg", "png"):
            assert (folder / f"instances/instances.{suffix}").is_file()
        page = Path("out/toy-fig1/figure.md").read_text()
        assert "![gradients, seed 1](seed-1/gradients/gradient_statistics.png)" in page
        assert all(
            (Path("out/toy-fig1") / one.split("(")[-1][:-1]).is_file()
            for one in page.split("\n\n")[-1].split("\n")
            if one
        )

        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.*")}
        monkeypatch.setattr(multi_run, "train", lambda config: pytest.fail(f"{config.run.out} is complete"))
        assert cli.main(command) == 0
        assert {path: path.stat().st_mtime_ns for path in before} == before
        assert json.loads(Path("out/toy-fig1/results.json").read_text()) == report

    def test_a_run_that_fails_leaves_the_rest(self, here, capsys, monkeypatch):
        content = yaml.safe_load((FIGURES / "toy-fig1.yaml").read_text())
        content["runs"].append({"name": "Diverges", "row": "toy-1/Diverges", "options": {"instance_log": False}})
        content["parts"].append({"name": "other", "analysis": "hessian_top", "runs": ["Diverges"]})
        content["look_for"].append({"paper": "It has one.", "rule": "numbers", "of": ["other:values"]})
        Path("figures").mkdir()
        Path("figures/toy-fig1.yaml").write_text(yaml.safe_dump(content))
        options = ReproduceConfig("toy-fig1", scale="full", device="cpu", out=Path("out"))
        report = reproduce_figure(options, reproduce_command.analyze, Path("figures"), TABLES)
        assert list(report["failed"]) == ["Diverges, seed 0"]
        assert report["findings"][0]["shown"] is True
        assert report["findings"][-1] == {
            "seed": 0,
            "paper": "It has one.",
            "shown": None,
            "words": "part other is missing",
        }
        assert any(line.startswith("FAILED: Diverges, seed 0") for line in lines_of(report))

    @pytest.mark.parametrize(("error", "ends"), [(NonFiniteError, False), (Interrupted, True)])
    def test_parts_that_fail(self, error, ends, tmp_path):
        """A part that fails is reported; an interrupted one ends the call."""

        def analyze(*args):
            raise error("stopped")

        options = ReproduceConfig("smoothness-fig2", out=tmp_path / "out")
        if ends:
            with pytest.raises(Interrupted):
                reproduce_figure(options, analyze)
            return
        report = reproduce_figure(options, analyze)
        assert report["failed"] == {"part surface, seed 0": "stopped"}
        assert {one["shown"] for one in report["findings"]} == {None}

    def test_findings_of_several_seeds_have_their_seed(self):
        finding = {"paper": "It falls.", "words": "2, 1", "shown": True}
        report = dict.fromkeys(("title", "source", "scale"), "x") | {"differences": {}, "notes": [], "failed": {}}
        report["findings"] = [{**finding, "seed": seed} for seed in (0, 1)]
        assert lines_of(report)[2] == "shown, seed 1: It falls. Here: 2, 1."
        report["findings"].pop()
        assert lines_of(report)[1] == "shown: It falls. Here: 2, 1."

    def test_figures_that_are_sweeps(self, monkeypatch, capsys):
        """They go to the command of sweeps with the options of the call."""
        calls = []
        monkeypatch.setattr(reproduce_command, "sweep_command", lambda *args: calls.append(args) or 0)
        command = ["reproduce", "ENGM_fig5", "--scale", "short", "--seeds", "1", "2", "--out", "out", "--data-dir", "d"]
        assert cli.main([*command, "--device", "cpu", "--download"]) == 0
        ((options, words),) = calls
        assert (options.recipe, options.scale, options.seeds) == ("engm-fig5", "short", (1, 2))
        assert (options.out, options.grid, options.parts) == (Path("out"), (), ())
        assert words == ["--device", "cpu", "--download", "--data-dir", "d"]
        assert cli.main([*command, "--rows", "MSGD"]) == 1
        assert "rows has no effect: engm-fig5 is a sweep" in " ".join(capsys.readouterr().err.split())

    @pytest.mark.parametrize("name", reproduce_command.swept_figures())
    def test_sweeps_can_be_planned(self, name, tmp_path):
        sweep = load_sweep(name)
        parts = sweep.pick(())
        plan = plan_sweep(parts, "smoke", tmp_path / "out")
        assert len(plan.points) > 1
        assert set(plan.parts) == {part.name for part in parts}
        assert all(part.shows.endswith(".") for part in parts)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["toy-fig9"], "unknown figure 'toy-fig9'; known: toy-fig1"),
            (["toy-fig1", "--rows", "ATAS"], "is a figure, which needs all of its runs: leave --rows out"),
            (["toy-fig1", "--scale", "full", "--data", "few.txt"], "--data is for tables whose images"),
            (["toy-fig1", "--device", "abacus"], "device 'abacus' is unknown"),
            (["toy-fig1", "--out", "few.txt"], "few.txt exists, holds no runs of a table"),
        ],
    )
    def test_errors_leave_nothing_behind(self, options, message, here, capsys):
        assert cli.main(["reproduce", *options]) == 1
        assert message in " ".join(capsys.readouterr().err.split())
        assert [path.name for path in here.iterdir()] == ["few.txt"]


def untrained(configs, again):
    """In place of `complete_all`: runs with the files that analyses read, of networks that nothing has trained."""
    rng = np.random.default_rng(0)
    for config in configs.values():
        run = RunFolder(config.run.out)
        run.snapshots.mkdir(parents=True, exist_ok=True)
        config.save(run.config)
        epochs = config.schedule.epochs
        paths = {run.best: epochs, run.last: epochs}
        done = snapshot_epochs(config.record.snapshots, epochs)
        paths |= {run.snapshots / f"epoch-{epoch:04}.safetensors": epoch for epoch in done}
        options = {"name": "cnn4", "num_classes": 10, "in_channels": 1, "image_size": 8, "width": 2}
        for path, epoch in paths.items():
            torch.manual_seed(int(rng.integers(1000)))
            info = CheckpointInfo(
                options, "digits", tuple(map(str, range(10))), "linf", config.attack.eps or 0.2, epoch - 1
            )
            save_checkpoint(path, build(**options), info)
        if config.record.instance_log:
            run.instances.mkdir(exist_ok=True)
            for epoch in range(1, epochs + 1):
                log = {name: rng.gamma(2, 0.1, 200) for name in ("grad_norm", "step_size", "delta_l2", "delta_linf")}
                np.savez(run.instances / f"epoch-{epoch:04}.npz", index=np.arange(200), **log)
    return {}, {}


@pytest.mark.slow
@pytest.mark.parametrize("name", figure_names())
def test_every_part_and_check_of_a_figure(name, tmp_path, monkeypatch):
    """Of networks that nothing has trained, on 8 images: every part is made, and no check lacks its numbers."""
    monkeypatch.setattr(figure_run, "complete_all", untrained)
    monkeypatch.setattr(figure_run, "EXAMPLES", {"smoke": 8})
    report = reproduce_figure(ReproduceConfig(name, device="cpu", out=tmp_path / "out"), reproduce_command.analyze)
    assert report["failed"] == {}
    assert len(report["folders"][0]) == len(report["parts"])
    assert not [one for one in report["findings"] if "missing" in one["words"] or "finite" in one["words"]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["atas-fig2", "engm-fig2"])
def test_figures_at_smoke_scale(name, tmp_path, monkeypatch):
    """With runs of four epochs."""
    monkeypatch.setitem(RECIPES["digits"], "epochs", 4)
    monkeypatch.setattr(figure_run, "EXAMPLES", {"smoke": 16})
    report = reproduce_figure(ReproduceConfig(name, device="cpu", out=tmp_path / "out"), reproduce_command.analyze)
    assert report["failed"] == {}
    assert len(report["folders"][0]) == len(report["parts"])
