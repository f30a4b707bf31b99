"""Options: one dataclass, from the command line, YAML and Python."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pyengm.attacks import Threat
from pyengm.errors import ConfigError
from pyengm.training import TrainConfig
from pyengm.training.config import parse_pixels
from pyengm.training.schedule import build_schedule, cyclic, piecewise


@pytest.mark.parametrize(("text", "value"), [("0.2", 0.2), ("8/255", 8 / 255), ("1", 1.0)])
def test_parse_pixels(text, value):
    assert parse_pixels(text) == value


class TestResolve:
    def test_recipe_fills_what_is_open(self):
        config = TrainConfig(data="cifar10").resolve()
        assert (config.model, config.eps, config.step, config.epochs) == ("resnet18", 8 / 255, 2 / 255, 120)
        assert config.milestones == (60, 90)

    def test_given_options_stay(self):
        config = TrainConfig(data="cifar10", model="vgg8", eps=0.1, step=0.01, epochs=7, augment=False).resolve()
        assert (config.model, config.eps, config.step, config.epochs, config.augment) == ("vgg8", 0.1, 0.01, 7, False)

    def test_every_option_is_filled(self):
        may_stay_open = {"root", "image_size", "indices", "width", "autoattack_pictures", "threads", "out", "config"}
        for data in ("digits", "cifar10", "mnist", "svhn", "/some/folder"):
            config = TrainConfig(data=data).resolve()
            assert {name for name, value in vars(config).items() if value is None} <= may_stay_open

    def test_threats_begin_with_that_of_the_training(self):
        assert TrainConfig(data="cifar10").resolve().threats() == [Threat("linf", 8 / 255), Threat("l2", 128 / 255)]
        config = TrainConfig(data="cifar10", norm="l2", eps=0.25).resolve()
        assert config.threats() == [Threat("l2", 0.25), Threat("linf", 8 / 255)]


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"method": "pgdat"}, r"unknown method 'pgdat'; known: natural, pgd_at \(did you mean pgd_at\?\)"),
            ({"optimizer": "adam"}, "unknown optimizer 'adam'; known: msgd, engm"),
            ({"grad_norms": "rough"}, "unknown grad_norms 'rough'; known: auto, exact"),
            ({"norm": "l1"}, "unknown norm 'l1'; known: linf, l2"),
            ({"attack_bn": "on"}, "unknown attack_bn"),
            ({"eps": -0.1}, "eps is -0.1; expected a finite number >= 0"),
            ({"eps": float("nan")}, "eps is nan"),
            ({"step": -1.0}, "step is -1.0"),
            ({"steps": 0}, "steps is 0; expected at least 1"),
            ({"epochs": 0}, "epochs is 0"),
            ({"batch_size": 0}, "batch_size is 0"),
            ({"lr": float("inf")}, "lr is inf"),
            ({"alpha": 0.0}, "alpha is 0.0"),
            ({"seed": -1}, "seed is -1"),
        ],
    )
    def test_options_out_of_range(self, options, message):
        with pytest.raises(ConfigError, match=message):
            TrainConfig(**options)


class TestYaml:
    def test_round_trip(self, tmp_path):
        config = TrainConfig(data="svhn", root=Path("/data"), eps=4 / 255, milestones=(3, 5), attacks=("fgsm", "cw"))
        config.resolve().save(tmp_path / "config.yaml")
        assert TrainConfig.load(tmp_path / "config.yaml") == config.resolve()

    def test_what_belongs_to_one_call_is_not_saved(self, tmp_path):
        replace(TrainConfig(), out=tmp_path, resume=True).save(tmp_path / "config.yaml")
        assert TrainConfig.load(tmp_path / "config.yaml") == TrainConfig()

    def test_a_person_may_write_it(self, tmp_path):
        (tmp_path / "mine.yaml").write_text("data: cifar10\neps: 8/255\nlr: 1e-2\nmilestones: [10, 20]\n")
        config = TrainConfig.load(tmp_path / "mine.yaml")
        assert (config.eps, config.lr, config.milestones) == (8 / 255, 0.01, (10, 20))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("epoch: 3", r"unknown option 'epoch' \(did you mean epochs\?\)"),
            ("out: here", "unknown option 'out'"),
            ("epochs: many", "epochs is 'many', which is no int"),
            ("epochs: 2.5", "epochs is 2.5, which is no int"),
            ("download: 1", "download is 1, which is no bool"),
            ("eps: wide", "eps is 'wide', which is no float"),
            ("schedule: round", "unknown schedule 'round'"),
            ("select: maybe", "unknown select"),
            ("- 3", "holds no options"),
            ("a: [", "cannot read the configuration"),
        ],
    )
    def test_errors(self, tmp_path, text, message):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ConfigError, match=message):
            TrainConfig.load(tmp_path / "bad.yaml")

    def test_missing_file(self, tmp_path):
        with pytest.raises(ConfigError, match="cannot read the configuration"):
            TrainConfig.load(tmp_path / "none.yaml")


class TestSchedules:
    def test_piecewise(self):
        factor = piecewise((2, 4), steps_per_epoch=3)
        assert [factor(step) for step in (0, 5, 6, 11, 12, 20)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])

    def test_cyclic(self):
        factors = [cyclic(10)(step) for step in range(10)]
        assert factors == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])

    @pytest.mark.parametrize("total", [1, 2, 3, 1000])
    def test_cyclic_never_stands_still(self, total):
        factors = [cyclic(total)(step) for step in range(total)]
        assert all(0 < factor <= 1 for factor in factors)

    def test_sets_the_rate_of_every_step(self):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
        schedule = build_schedule(optimizer, "piecewise", (1,), epochs=2, steps_per_epoch=2)
        rates = []
        for _ in range(4):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        assert rates == pytest.approx([0.5, 0.5, 0.05, 0.05])
