"""Evaluation: accuracies, what results hold, the table and the image, and checkpoints on disk."""

import io
import json
import warnings

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import nn

from pyengm.attacks import CW, FGSM, PGD, AutoAttack, ThreatModel
from pyengm.attacks.autoattack import MEMBERS
from pyengm.attacks.deepfool import DeepFool
from pyengm.attacks.transfer import Transfer
from pyengm.data import ImageDataset
from pyengm.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from pyengm.evaluation import (
    accuracy,
    attack_named,
    attack_names,
    check_attacks,
    checkpoints,
    correct,
    evaluate,
    evaluate_checkpoints,
    expected_calibration_error,
    plot_curves,
    predict,
    results_table,
    robust_overfitting,
    robustness_distance,
)
from pyengm.evaluation.checkpoints import check_fit
from pyengm.evaluation.evaluate import SAME_EXAMPLES, evenly_spread
from pyengm.models import CheckpointInfo, build, load_checkpoint, load_weights, read_info, save_checkpoint
from pyengm.ops import Key
from pyengm.utils.io import atomic_write

CPU = torch.device("cpu")
LINF, L2 = ThreatModel("linf", 0.1), ThreatModel("l2", 0.6)
TRANSFERS = ("transfer_pgd20", "transfer_pgd20_l2")
OPTIONS = {"name": "cnn4", "num_classes": 10, "in_channels": 1, "image_size": 8, "norm_layer": "bn", "width": 4}


def network(seed=0):
    torch.manual_seed(seed)
    model = build(**OPTIONS)
    model(torch.rand(32, 1, 8, 8))  # running statistics
    return model.eval()


def make_images(n=40, classes=10, side=8):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (n, 1, side, side), generator=generator).to(torch.uint8)
    labels = torch.randint(0, classes, (n,), generator=generator)
    return ImageDataset(images, labels, tuple(map(str, range(classes))), "made", "test", torch.arange(n) + 1000)


def data_for(model, n=40):
    """Images with the labels that the model gives, one in four made wrong."""
    data = make_images(n)
    data.labels = model(data.images / 255).argmax(dim=1)
    data.labels[::4] = (data.labels[::4] + 1) % 10
    return data


def info(epoch=3, **changes):
    return CheckpointInfo(OPTIONS | changes, "made", tuple("0123456789"), "linf", 0.05, epoch)


# Accuracy


class ByFirstPixel(nn.Module):
    """Class 1 where the first pixel is above one half."""

    def forward(self, x):
        pixel = x.flatten(1)[:, :1]
        return torch.cat([0.5 - pixel, pixel - 0.5], dim=1)


def test_accuracy_of_a_model_made_by_hand():
    images = torch.full((4, 1, 2, 2), 128, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor([0, 255, 140, 120])
    data = ImageDataset(images, torch.tensor([0, 1, 1, 1]), ("low", "high"), "made", "test")
    assert correct(ByFirstPixel(), data, None, seed=0, device=CPU).tolist() == [True, True, True, False]
    assert accuracy(ByFirstPixel(), data, None, seed=0, device=CPU) == 0.75
    weak, strong = FGSM(10 / 255), FGSM(20 / 255)
    assert correct(ByFirstPixel(), data, weak, seed=0, device=CPU).tolist() == [True, True, True, False]
    assert correct(ByFirstPixel(), data, strong, seed=0, device=CPU).tolist() == [True, True, False, False]


def test_attacked_accuracy_depends_on_seed_and_image_only():
    model = network().train()
    data = data_for(network(), 600)  # more than two batches
    attack = PGD(0.2, 0.1, 3, restarts=2)
    whole = correct(model, data, attack, seed=3, device=CPU)
    assert model.training
    assert 0 < whole.sum() < 450
    order = torch.randperm(600, generator=torch.Generator().manual_seed(0))
    # An image on the very edge may fall to either side: sums are taken in another order in other batches.
    assert (correct(model, data.subset(order), attack, seed=3, device=CPU) != whole[order]).sum() <= 1
    x_adv = attack(model, data.images / 255, data.labels, key=Key(3, 0, data.index))
    assert ((model.eval()(x_adv).argmax(dim=1) == data.labels) != whole).sum() <= 1


def test_a_model_that_is_not_finite():
    model = network()
    with torch.no_grad():
        model.head.bias[0] = torch.nan
    for attack in (None, FGSM(0.1)):
        with pytest.raises(NonFiniteError, match="nan"):
            correct(model, make_images(), attack, seed=0, device=CPU)


@pytest.mark.parametrize("attack", [None, FGSM(0.1)])
def test_verdicts_are_those_of_the_logits(attack):
    model = network()
    data = data_for(model, 600)
    x = data.images / 255
    logits = model(x if attack is None else attack(model, x, data.labels)).detach()
    found = predict(model, data, attack, seed=0, device=CPU)
    losses = nn.functional.cross_entropy(logits, data.labels, reduction="none")
    torch.testing.assert_close(found.confidence, logits.softmax(1).max(1).values, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.loss, losses, rtol=1e-5, atol=1e-5)
    assert found.correct.equal(logits.argmax(1) == data.labels)
    summary = found.summary("it")
    assert summary.keys() == {"it", "it_loss", "it_ece"}
    assert summary["it"] == accuracy(model, data, attack, seed=0, device=CPU)
    assert summary["it_loss"] == pytest.approx(losses.mean().item(), rel=1e-5)
    assert summary["it_ece"] == expected_calibration_error(found.confidence, found.correct)


# Calibration


def ece_bin_by_bin(confidence, correct, bins):
    """Guo et al. 2017, Eq. 3, as it stands."""
    total = 0.0
    for b in range(1, bins + 1):
        members = [i for i, p in enumerate(confidence.tolist()) if (b - 1) / bins < p <= b / bins]
        if members:
            right = sum(correct[i].item() for i in members) / len(members)
            sure = sum(confidence[i].item() for i in members) / len(members)
            total += len(members) / len(confidence) * abs(right - sure)
    return total


@pytest.mark.parametrize("bins", [1, 4, 15])
@pytest.mark.parametrize("n", [1, 7, 500])
def test_calibration_error_is_that_of_the_formula(n, bins):
    generator = torch.Generator().manual_seed(n)
    confidence, right = torch.rand(n, generator=generator), torch.rand(n, generator=generator) < 0.7
    expected = ece_bin_by_bin(confidence, right, bins)
    assert expected_calibration_error(confidence, right, bins) == pytest.approx(expected, rel=1e-9)


def test_calibration_error_of_a_few():
    right = torch.tensor([True, True, True, False])
    assert expected_calibration_error(torch.full((4,), 0.75), right) == 0
    assert expected_calibration_error(torch.ones(4), right) == 0.25
    edges = torch.tensor([0.5, 0.5, 0.75, 1.0], dtype=torch.float64)  # the first two belong to the lower half
    assert expected_calibration_error(edges, right, bins=2) == pytest.approx((1.0 + 0.75) / 4)
    assert expected_calibration_error(torch.zeros(2), torch.zeros(2, dtype=torch.bool)) == 0


@pytest.mark.parametrize(
    ("confidence", "right", "message"),
    [
        (torch.rand(3), torch.ones(2).bool(), r"got shapes \(3,\) and \(2,\)"),
        (torch.rand(3, 2), torch.ones(3, 2).bool(), "N >= 1 examples"),
        (torch.rand(0), torch.ones(0).bool(), "N >= 1 examples"),
        (torch.tensor([0.2, 3.0]), torch.ones(2).bool(), "from 0 to 1; give probabilities"),
        (torch.tensor([0.2, torch.nan]), torch.ones(2).bool(), "from 0 to 1"),
    ],
)
def test_calibration_error_of_other_things(confidence, right, message):
    with pytest.raises(ValueError, match=message):
        expected_calibration_error(confidence, right)


@pytest.mark.parametrize(
    ("size", "count", "expected"),
    [(10, None, list(range(10))), (10, 20, list(range(10))), (10, 5, [0, 2, 4, 6, 8]), (10, 3, [0, 3, 6]), (7, 1, [0])],
)
def test_evenly_spread(size, count, expected):
    assert evenly_spread(size, count).tolist() == expected


def test_robust_overfitting():
    assert robust_overfitting(0.5, 0.4) == pytest.approx(20)
    assert robust_overfitting(0.5, 0.5) == 0
    assert robust_overfitting(0.0, 0.0) == 0
    assert robust_overfitting(0.4, 0.5) == pytest.approx(-25)


# The suite


def test_attacks_by_name():
    pgd20 = attack_named("pgd20", LINF)
    assert (pgd20.steps, pgd20.step_size, pgd20.threat) == (20, pytest.approx(0.01), LINF)
    for name, steps, step in (("pgd10", 10, 0.6 / 4), ("pgd50", 50, 0.6 / 20)):
        attack = attack_named(name, L2)
        assert (attack.steps, attack.step_size, attack.threat) == (steps, pytest.approx(step), L2)
        assert attack.loss is pgd20.loss is PGD(0, 0, 1, loss="margin").loss
    assert isinstance(attack_named("fgsm", L2), FGSM)
    assert isinstance(attack_named("cw", L2), CW)
    for name, members in (("apgd_ce", ("apgd-ce",)), ("fab_t", ("fab-t",)), ("autoattack", MEMBERS)):
        attack = attack_named(name, L2, seed=7)
        assert isinstance(attack, AutoAttack)
        assert (attack.threat, attack.attacks, attack.seed) == (L2, members, 7)
    assert isinstance(attack_named("deepfool", L2), DeepFool)


def test_unknown_attacks_are_named_with_the_known_ones():
    known = "known: fgsm, pgd10, pgd20, pgd50, cw, apgd_ce, apgd_t, fab_t, square, autoattack, deepfool"
    for call in (
        lambda: attack_named("pgd7", LINF),
        lambda: attack_names(["pgd7"]),
        lambda: check_attacks(["pgd7"], make_images(), [LINF]),
        lambda: evaluate(network(), make_images(), [LINF], ["pgd7"], device=CPU),
    ):
        with pytest.raises(ConfigError, match=f"'pgd7'; {known}"):
            call()


def test_attacks_come_weak_to_strong():
    assert attack_names([]) == ["pgd20", "autoattack"]
    assert attack_names(["cw", "pgd50", "fgsm", "pgd20", "cw"]) == ["fgsm", "pgd20", "pgd50", "cw", "autoattack"]
    assert attack_names(["deepfool", "square", "apgd_t"]) == ["pgd20", "apgd_t", "square", "autoattack", "deepfool"]


def test_attacks_that_cannot_run_on_the_data():
    few, odd = make_images(classes=3), make_images(side=12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_attacks(["autoattack", "apgd_t", "square"], make_images(), [LINF, L2])
        check_attacks(["autoattack", "square"], odd, [LINF])
    with pytest.warns(UserWarning, match=r"L2, eps = 0\.6\) runs without square: .*12x12"):
        check_attacks(["pgd20", "autoattack"], odd, [LINF, L2])
    with pytest.warns(UserWarning, match="without apgd-t"):
        check_attacks(["pgd20", "autoattack"], few, [LINF])
    for names, data in ((["apgd_t"], few), (["fab_t", "square"], odd)):
        with pytest.raises(ConfigError, match=r"(apgd-t|square) cannot run"):
            check_attacks(names, data, [LINF, L2])
        with pytest.raises(ConfigError, match=r"(apgd-t|square) cannot run"):
            evaluate(network(), data, [LINF, L2], names, device=CPU)


def test_evaluate_names_and_orders_its_results():
    model = network()
    data, titles = data_for(model), []
    attacks = ["fgsm", "pgd20", "pgd50"]
    results = evaluate(model, data, [LINF, L2], attacks, device=CPU, on_attack=titles.append)
    assert list(results) == ["natural", *attacks, *(f"{name}_l2" for name in attacks)]
    assert results["natural"] == 0.75
    for suffix in ("", "_l2"):
        assert 0.75 >= results["fgsm" + suffix] > results["pgd20" + suffix] >= results["pgd50" + suffix]
    for norm, suffix in ((LINF, ""), (L2, "_l2")):
        attack = attack_named("pgd20", norm)
        assert results["pgd20" + suffix] == accuracy(model, data, attack, seed=0, device=CPU)
    assert titles[:2] == ["natural", "FGSM (L-infinity, eps = 0.1)"]
    assert titles[-1] == "PGD-50 (L2, eps = 0.6)"
    first_l2 = evaluate(model, data, [L2], ["pgd20"], device=CPU)
    assert first_l2 == {"natural": 0.75, "pgd20": results["pgd20_l2"]}


def test_evaluate_shows_pgd20_on_the_images_of_autoattack():
    model = network()
    data = data_for(model)
    weak = ThreatModel("linf", 0.001)
    # The five images are 0, 8, ..., 32, all misclassified: AutoAttack has nothing to do.
    results = evaluate(model, data, [weak], ["pgd20", "autoattack"], device=CPU, autoattack_examples=5)
    after = ["after_apgd_ce", "after_apgd_t", "after_fab_t", "after_square"]
    assert list(results) == ["natural", "pgd20", SAME_EXAMPLES, *after, "autoattack"]
    assert results == {"natural": 0.75, "pgd20": 0.75, SAME_EXAMPLES: 0, "autoattack": 0} | dict.fromkeys(after, 0)
    few = data.subset(evenly_spread(40, 5))
    assert SAME_EXAMPLES not in evaluate(model, few, [weak], ["pgd20", "autoattack"], device=CPU)


def test_members_of_autoattack_by_name():
    model, threat = network(), ThreatModel("l2", 0.05)
    data, told = data_for(model), []
    results = evaluate(
        model,
        data,
        [threat],
        ["pgd20", "apgd_ce"],
        device=CPU,
        autoattack_examples=11,
        on_pass=lambda *message: told.append(message),
    )
    assert list(results) == ["natural", "pgd20", SAME_EXAMPLES, "apgd_ce"]
    attack = AutoAttack(0.05, norm="l2", attacks=["apgd-ce"])
    verdicts = attack.run(model, data.subset(evenly_spread(40, 11)), device=CPU)
    assert results["apgd_ce"] == verdicts.accuracies()["apgd-ce"] <= results[SAME_EXAMPLES]
    assert told == [("APGD-CE (L2, eps = 0.05)", 1, 1, results["apgd_ce"])]


def test_few_classes_leave_a_member_out():
    torch.manual_seed(0)
    model = build(**OPTIONS | {"num_classes": 3, "norm_layer": "gn"}).eval()
    data = make_images(12, classes=3)
    data.labels = (model(data.images / 255).argmax(dim=1) + 1) % 3  # nothing to do
    with pytest.warns(UserWarning, match="without apgd-t") as warned:
        results = evaluate(model, data, [LINF, L2], ["autoattack"], device=CPU)
    assert len(warned) == 2  # one for each threat model
    after = ["after_apgd_ce", "after_fab_t", "after_square"]
    assert list(results) == ["natural", *after, "autoattack", *(f"{name}_l2" for name in [*after, "autoattack"])]


def test_evaluate_gives_the_distance_once():
    model = network()
    data, titles = data_for(model), []
    results = evaluate(model, data, [L2, LINF], ["fgsm", "deepfool"], device=CPU, on_attack=titles.append)
    assert list(results) == ["natural", "fgsm", "deepfool", "fgsm_linf"]
    assert results["deepfool"] == robustness_distance(model, data, device=CPU) > 0
    assert titles[2] == "DeepFool"


def test_evaluate_with_a_surrogate():
    model, surrogate = network(), network(seed=1)
    data = data_for(model)
    results = evaluate(model, data, [LINF, L2], ["pgd20"], device=CPU, seed=2, surrogate=surrogate)
    assert list(results) == ["natural", TRANSFERS[0], "pgd20", TRANSFERS[1], "pgd20_l2"]
    for threat, name in zip((LINF, L2), TRANSFERS, strict=True):
        black_box = Transfer(attack_named("pgd20", threat), surrogate)
        assert results[name] == accuracy(model, data, black_box, seed=2, device=CPU)


def test_evaluate_takes_one_threat_model_per_norm():
    with pytest.raises(ConfigError, match=r"one threat model per norm.*0\.1.*0\.2"):
        evaluate(network(), make_images(), [LINF, ThreatModel("linf", 0.2)], ["fgsm"], device=CPU)


# Checkpoints and results


@pytest.fixture
def files(tmp_path):
    model = network()
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("best", "last", "other")}
    save_checkpoint(paths["best"], model, info(epoch=3))
    save_checkpoint(paths["last"], model, info(epoch=3))
    save_checkpoint(paths["other"], network(seed=1), info(epoch=3))
    return paths


@pytest.mark.parametrize("processes", [1, 2])
def test_results_of_checkpoints(files, processes, monkeypatch):
    monkeypatch.setattr(checkpoints, "cores", lambda: processes * torch.get_num_threads())
    data = data_for(network())
    seen = []
    options = {"device": CPU, "on_attack": seen.append, "autoattack_examples": 5}
    results = evaluate_checkpoints(files, data, [LINF, L2], ["pgd20"], **options)
    assert list(results) == ["best", "last", "other", "robust_overfitting", "threats", "images"]
    assert results["best"] == results["last"] == evaluate(network(), data, [LINF, L2], ["pgd20"], device=CPU)
    # Another model of the same epoch is another model.
    assert results["other"] == evaluate(network(seed=1), data, [LINF, L2], ["pgd20"], device=CPU)
    assert results["other"] != results["best"]
    assert results["robust_overfitting"] == 0
    assert results["threats"] == [{"norm": "linf", "eps": 0.1}, {"norm": "l2", "eps": 0.6}]
    assert results["images"] == {"all": 40, "autoattack": 5}
    # Identical files are evaluated once: two models, under two threat models each.
    assert sum("natural" in title for title in seen) == 4 or seen[-1].startswith("4 jobs")
    assert json.loads(json.dumps(results)) == results


@pytest.mark.parametrize("processes", [1, 2])
def test_checkpoints_go_on_where_they_stopped(processes, files, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "cores", lambda: processes * torch.get_num_threads())
    data, told = data_for(network()), []
    weak = [ThreatModel("linf", 0.01), ThreatModel("l2", 0.05)]
    options = {"device": CPU, "state": tmp_path / "state", "on_pass": lambda *message: told.append(message)}
    first = evaluate_checkpoints(files, data, weak, ["apgd_ce", "fab_t"], **options)
    # best and last are one model; a file for each model, threat model and attack.
    assert len(list((tmp_path / "state").iterdir())) == 2 * 2 * 2
    titles = {f"{name}: {attack} ({threat})" for name in ("best", "other") for attack in ("APGD-CE", "FAB-T")
              for threat in weak}  # fmt: skip
    assert {title for title, *_ in told} == titles
    assert all((done, total) == (1, 1) for _, done, total, _ in told)
    accuracies = {title: robust for title, _, _, robust in told}
    assert accuracies[f"best: APGD-CE ({weak[0]})"] == first["last"]["apgd_ce"]
    told.clear()
    monkeypatch.setattr(checkpoints, "cores", lambda: 1)
    second = evaluate_checkpoints(files, data, weak, ["apgd_ce", "fab_t"], **options, surrogate=files["other"])
    assert second["other"] == first["other"] | {name: second["other"][name] for name in TRANSFERS}
    black_box = evaluate(network(), data, weak, [], device=CPU, surrogate=network(seed=1))
    assert {name: second["best"][name] for name in TRANSFERS} == {name: black_box[name] for name in TRANSFERS}
    assert told == []


def test_a_surrogate_that_does_not_fit(files, tmp_path):
    path = tmp_path / "three.safetensors"
    torch.manual_seed(0)
    save_checkpoint(path, build(**OPTIONS | {"num_classes": 3}), info(num_classes=3))
    with pytest.raises(DataError, match=r"three.safetensors was trained on made: 3 classes.*; made has 10 classes"):
        evaluate_checkpoints(files, make_images(), [LINF], ["pgd20"], device=CPU, surrogate=path)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        evaluate_checkpoints(files, make_images(), [LINF], ["pgd20"], device=CPU, surrogate=tmp_path / "none")


def test_an_error_in_a_worker_is_raised(files, monkeypatch):
    monkeypatch.setattr(checkpoints, "cores", lambda: 2 * torch.get_num_threads())
    model = network()
    with torch.no_grad():
        model.head.bias[0] = torch.nan
    save_checkpoint(files["other"], model, info())
    with pytest.raises(NonFiniteError):
        evaluate_checkpoints(files, make_images(), [LINF], ["fgsm"], device=CPU)


def test_no_overfitting_without_pgd20(files, monkeypatch):
    monkeypatch.setattr(checkpoints, "cores", lambda: 1)
    results = evaluate_checkpoints(files, data_for(network(), 8), [LINF], ["fgsm"], device=CPU)
    assert "robust_overfitting" not in results
    assert "fgsm" in results["last"]


def test_table_has_the_numbers():
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


def test_check_fit(files):
    check_fit(info(), make_images(), files["best"])
    for data in (make_images(classes=9), make_images(side=9)):
        with pytest.raises(DataError, match=r"best.safetensors was trained on made: 10 classes.*\(1, 8, 8\); made has"):
            check_fit(info(), data, files["best"])
        with pytest.raises(DataError, match="was trained on"):
            evaluate_checkpoints(files, data, [LINF], ["fgsm"], device=CPU)


ROWS = [
    {"epoch": i, "loss": 2.0 - i, "train_robust": 0.1, "clipped": 0.5, "natural": 0.3, "robust": 0.2, "best": i == 1}
    for i in range(3)
]


@pytest.mark.parametrize(
    "rows",
    [
        ROWS,
        [row | {"robust_loss": 1.5} for row in ROWS],
        ROWS[:1],
        [{k: v for k, v in row.items() if k not in ("natural", "robust")} for row in ROWS],
        [{k: v for k, v in row.items() if k not in ("clipped", "best")} for row in ROWS],
        [],
    ],
)
def test_curves_are_a_png(rows, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_curves(rows, tmp_path / "curves.png", "a run")
    image = (tmp_path / "curves.png").read_bytes()
    assert image.startswith(b"\x89PNG\r\n\x1a\n")
    assert image.rstrip().endswith(b"IEND\xaeB`\x82")


def test_checkpoint_round_trip(tmp_path):
    path, model = tmp_path / "a.safetensors", network().to(memory_format=torch.channels_last)
    save_checkpoint(path, model, info())
    loaded, found = load_checkpoint(path)
    assert found == read_info(path) == info()
    assert not loaded.training
    state = loaded.state_dict()
    assert all(t.equal(state[name]) for name, t in model.state_dict().items())
    save_checkpoint(path, network(seed=1), info(epoch=4))  # replaces it
    assert read_info(path).epoch == 4
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_failed_save_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, network(), info())
    before = path.read_bytes()

    def die_half_way(temporary):
        temporary.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        atomic_write(path, die_half_way)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("size", [0, 4, 100, -100])
def test_truncated_checkpoint(size, files):
    files["best"].write_bytes(files["best"].read_bytes()[:size])
    for load in (load_checkpoint, read_info, lambda path: load_weights(network(), path)):
        with pytest.raises(CheckpointError, match=r"best.safetensors is damaged"):
            load(files["best"])


def test_missing_and_foreign_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_checkpoint(tmp_path / "none.safetensors")
    path, model = tmp_path / "foreign.safetensors", network()
    save_file(model.state_dict(), path)
    with pytest.raises(CheckpointError, match="load_weights"):
        load_checkpoint(path)
    other = network(seed=1)
    assert load_weights(other, path) is other
    assert all(t.equal(other.state_dict()[name]) for name, t in model.state_dict().items())
    for metadata in ("{", "[]", '{"model": 1}'):
        save_file(model.state_dict(), path, {"pyengm": metadata})
        with pytest.raises(CheckpointError):
            load_checkpoint(path)


def test_checkpoint_of_another_architecture(tmp_path):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, network(), info(width=8))
    with pytest.raises(CheckpointError, match=r"another architecture.*shape.* and \d+ more"):
        load_checkpoint(path)
    save_checkpoint(path, network(), info(name="cnn5"))
    with pytest.raises(CheckpointError, match="cnn5"):
        load_checkpoint(path)
    model = nn.Sequential(nn.Linear(2, 2))
    before = model[0].weight.clone()
    with pytest.raises(CheckpointError, match=r"0\.weight is missing.*is not in the model"):
        load_weights(model, path)
    assert model[0].weight.equal(before)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3)
        self.second.weight = self.first.weight


def test_tied_weights(tmp_path):
    path, model = tmp_path / "tied.safetensors", Tied()
    save_checkpoint(path, model, info())
    assert len(load_file(path)) == 2
    loaded = load_weights(Tied(), path)
    assert loaded.first.weight is loaded.second.weight
    assert loaded.first.weight.equal(model.first.weight)
    assert loaded.second.bias.equal(model.second.bias)
    untied = Tied()
    untied.second.weight = nn.Parameter(torch.zeros(3, 3))
    with pytest.raises(CheckpointError, match="weight is missing"):
        load_weights(untied, path)
