"""Options: one dataclass, from the command line, YAML and Python."""

from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import yaml
from PIL import Image

from pyengm.attacks import THREAT_NORMS, ThreatModel
from pyengm.errors import ConfigError
from pyengm.methods import METHODS
from pyengm.training import TrainConfig, build_components
from pyengm.training.builders import build_method
from pyengm.training.option_parsing import arguments_of, parse_options
from pyengm.utils.pixels import format_pixels, parse_number


@pytest.mark.parametrize(("text", "value"), [("0.2", 0.2), ("8/255", 8 / 255), ("1", 1.0)])
def test_parse_number(text, value):
    assert parse_number(text) == value


@pytest.mark.parametrize(("value", "text"), [(8 / 255, "8/255"), (0.031, "0.031"), (0.2, "0.2"), (0.0, "0")])
def test_format_pixels(value, text):
    assert format_pixels(value) == text


class TestResolve:
    def test_recipe_fills_what_is_open(self):
        config = TrainConfig.from_flat(data="cifar10").resolve()
        assert (config.model.name, config.attack.eps, config.attack.step_size, config.schedule.epochs) == (
            "resnet18",
            8 / 255,
            None,
            120,
        )
        assert (config.schedule.milestones, config.optimizer.name, config.attack.steps, config.attack.bn) == (
            (75, 90),
            "engm",
            10,
            "eval",
        )
        assert TrainConfig.from_flat(data="cifar10", epochs=40).resolve().schedule.milestones == (25, 30)
        with pytest.raises(ConfigError, match=r"milestones 75, 90 are never reached in 40 epochs"):
            TrainConfig.from_flat(data="cifar10", epochs=40, milestones=(20, 75, 90)).resolve()

    @pytest.mark.parametrize(
        ("options", "milestones"),
        [({}, (8.75, 10.5)), ({"epochs": 28}, (17.5, 21)), ({"data": "cifar10", "method": "fgsm_rs"}, (9.38, 11.25))],
    )
    def test_any_recipe_can_be_piecewise(self, options, milestones):
        assert TrainConfig.from_flat(schedule="piecewise", **options).resolve().schedule.milestones == milestones

    def test_given_options_stay(self):
        config = TrainConfig.from_flat(
            data="cifar10", model="vgg8", eps=0.1, step_size=0.01, epochs=7, augment="none"
        ).resolve()
        assert (
            config.model.name,
            config.attack.eps,
            config.attack.step_size,
            config.schedule.epochs,
            config.data.augment,
        ) == ("vgg8", 0.1, 0.01, 7, "none")

    def test_every_option_is_filled(self):
        may_stay_open = {
            "data_dir",
            "step_size",
            "image_size",
            "train_indices",
            "extra_data",
            "cutout",
            "sam_rho",
            "width",
            "mean",
            "std",
            "autoattack_examples",
            "cpu_threads",
            "swa_start",
            "patience",
            "nproc",
            "probe",
            "train_attack",
            "out",
            "config",
            "init",
            "milestones",  # without a piecewise schedule
            "pct_start",  # without a cyclic one
        }
        for data in ("digits", "cifar10", "mnist", "svhn", "/some/folder"):
            config = TrainConfig.from_flat(data=data).resolve()
            assert {name for name, value in config.flat().items() if value is None} <= may_stay_open

    def test_threats_begin_with_that_of_the_training(self):
        assert TrainConfig.from_flat(data="cifar10").resolve().threats() == [
            ThreatModel("linf", 8 / 255),
            ThreatModel("l2", 128 / 255),
        ]
        config = TrainConfig.from_flat(data="cifar10", threat="l2", eps=0.25).resolve()
        assert config.threats() == [ThreatModel("l2", 0.25), ThreatModel("linf", 8 / 255)]


class TestFlatNames:
    def test_are_unique(self):
        groups = [getattr(TrainConfig(), field.name) for field in fields(TrainConfig)]
        assert len(TrainConfig.options) == sum(len(fields(group)) for group in groups)

    def test_reach_every_group(self):
        config = TrainConfig.from_flat(data="cifar10", attack_steps=3, method_options=("beta=3",), method="trades")
        assert (config.data.name, config.attack.steps, config.method.options) == ("cifar10", 3, ("beta=3",))
        assert config.flat() == {name: config.get(name) for name in TrainConfig.options}
        assert TrainConfig.from_flat(**config.flat()) == config
        changed = config.override(seed=3, method="pgd_at", method_options=())
        assert changed.differing(config) == ["method", "method_options", "seed"]
        assert config.run.seed is None

    def test_unknown(self):
        for build in (TrainConfig.from_flat, TrainConfig().override):
            with pytest.raises(ConfigError, match=r"unknown option 'attack_step' \(did you mean attack_steps\?\)"):
                build(attack_step=3)


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"method": "pgdat"}, r"unknown method 'pgdat'; known: aaer, atas, .* \(did you mean pgd_at\?\)"),
            ({"optimizer": "adam"}, "unknown optimizer 'adam'; known: aengm, engm"),
            ({"norms": "rough"}, "unknown norms 'rough'; known: auto, exact"),
            ({"threat": "l1"}, "unknown threat 'l1'; known: linf, l2"),
            ({"augment": "crop"}, "unknown augment 'crop'; known: none, shift, resized"),
            ({"attack_bn": "on"}, "unknown attack_bn"),
            ({"eps": -0.1}, "eps is -0.1; expected a finite number >= 0"),
            ({"eps": float("nan")}, "eps is nan"),
            ({"step_size": -1.0}, "step_size is -1.0"),
            ({"attack_steps": 0}, "attack_steps is 0; expected at least 1"),
            ({"epochs": 0}, "epochs is 0"),
            ({"batch_size": 0}, "batch_size is 0"),
            ({"lr": float("inf")}, "lr is inf"),
            ({"alpha": 0.0}, "alpha is 0.0"),
            ({"seed": -1}, "seed is -1"),
            (
                {"milestones": (3.0, float("inf"))},
                r"milestones are \(3.0, inf\); expected finite",
            ),
            ({"lr_decay": 0.0}, "lr_decay is 0.0; expected a factor above 0, and 1 at most"),
            ({"lr_decay": 1.5}, "lr_decay is 1.5"),
            ({"warmup_epochs": -1.0}, "warmup_epochs is -1.0; expected a finite number >= 0"),
            ({"warmup_epochs": 4.0, "epochs": 4}, "warmup_epochs is 4 of 4 epochs; expected less"),
        ],
    )
    def test_options_out_of_range(self, options, message):
        with pytest.raises(ConfigError, match=message):
            TrainConfig.from_flat(**options)


class TestOptions:
    def test_reach_the_method_and_the_optimizer(self):
        config = TrainConfig.from_flat(
            method="trades", method_options=("beta=3",), optimizer="entropy_sgd", eps=0.1, attack_steps=3
        )
        config = config.override(optimizer_options=("inner_steps=3", "nesterov=false", "noise=1/1000")).resolve()
        parts = build_components(config)
        assert (parts.method.beta, parts.method.attack.steps, parts.method.threat.eps) == (3, 3, 0.1)
        assert (parts.optimizer.inner_steps, parts.optimizer.defaults["nesterov"], parts.optimizer.noise) == (
            3,
            False,
            0.001,
        )

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"method": "trades", "method_options": ("bta=3",)}, r"'bta=3'; .* TRADES: beta, as_published \(did you"),
            ({"method": "trades", "method_options": ("beta",)}, "expected NAME=VALUE"),
            ({"method": "trades", "method_options": ("beta=much",)}, r"'beta=much'; expected a number \(default: 6\)"),
            ({"method": "trades", "method_options": ("eps=1",)}, "expected NAME=VALUE with a name of TRADES"),
            ({"method": "natural", "method_options": ("beta=1",)}, "it has none"),
            ({"method": "natural", "attack_steps": 3}, "method natural takes no attack_steps"),
            ({"method": "fgsm_rs", "attack_steps": 3}, "method fgsm_rs takes no attack_steps"),
            (
                {"optimizer": "engm", "optimizer_options": ("inner_steps=3",)},
                "'inner_steps=3'; expected NAME=VALUE with a name of ENGM",
            ),
            ({"pct_start": 1.0}, "pct_start is 1.0"),
            (
                {"method": "sub_at", "method_options": ("sampling_epochs=1.5",)},
                r"'sampling_epochs=1.5'; expected an integer or none \(default: none\)",
            ),
            (
                {"method": "free_at", "method_options": ("replays=2.5",)},
                r"'replays=2.5'; expected an integer \(default: 8\)",
            ),
            ({"method": "trades", "method_options": ("beta=none",)}, r"'beta=none'; expected a number \(default: 6\)"),
            (
                {"method": "atas", "method_options": ("resolution=4.5",)},
                r"'resolution=4.5'; expected an integer or none \(default: none\)",
            ),
            ({"method": "atas", "method_options": ("dtype=int8",)}, "floating-point type of torch"),
            (
                {"method": "trades", "method_options": ("as_published=3",)},
                r"'as_published=3'; expected true or false \(default: false\)",
            ),
            ({"on_catastrophic_overfitting": "cry"}, "unknown on_catastrophic_overfitting 'cry'; known: warn, stop"),
        ],
    )
    def test_errors(self, options, message):
        with pytest.raises(ConfigError, match=message):
            TrainConfig.from_flat(**options)


class TestRecipes:
    @pytest.mark.parametrize("data", ["cifar10", "digits", "/some/folder"])
    @pytest.mark.parametrize("norm", THREAT_NORMS)
    @pytest.mark.parametrize("method", METHODS)
    def test_every_method_has_one_that_builds(self, method, data, norm):
        if (method, norm) == ("grad_align", "l2") and data != "digits":
            with pytest.raises(ConfigError, match="L-infinity"):
                build_method(TrainConfig.from_flat(data=data, method=method, threat=norm).resolve())
            return
        config = TrainConfig.from_flat(data=data, method=method, threat=norm).resolve()
        built = build_method(config)
        assert config.optimizer.name == ("engm" if method in ("natural", "pgd_at") else "msgd")
        assert method == "natural" or built.threat == config.threats()[0]

    @pytest.mark.parametrize("data", ["cifar10", "mnist", "digits", "svhn"])
    @pytest.mark.parametrize("method", METHODS)
    def test_learning_rates_fall_within_the_run(self, method, data):
        config = TrainConfig.from_flat(data=data, method=method).resolve()
        assert config.schedule.name != "piecewise" or all(
            0 < epoch < config.schedule.epochs for epoch in config.schedule.milestones
        )
        short = TrainConfig.from_flat(data=data, method=method, epochs=2).resolve()
        milestones = short.schedule.milestones or ()
        assert all(epoch > 0 for epoch in milestones)
        assert len(set(milestones)) == len(milestones)

    @pytest.mark.parametrize("data", ["mnist", "fashionmnist"])
    def test_only_the_digits_have_short_runs(self, data):
        """The authors' options for MNIST where there are some, and the methods' defaults elsewhere."""
        config = TrainConfig.from_flat(data=data, epochs=50, method="dynamic").resolve()
        assert (config.optimizer.weight_decay, build_method(config).decay_epochs) == (1e-4, 40)
        shorter = TrainConfig.from_flat(data=data, epochs=25, method="dynamic").resolve()
        assert build_method(shorter).decay_epochs == 20
        config = TrainConfig.from_flat(data=data, method="curriculum").resolve()
        built = build_method(config)
        assert (config.optimizer.weight_decay, built.accuracy, built.patience, built.steps) == (1e-4, 0.95, 10, 40)
        lr = TrainConfig.from_flat(data=data).resolve().optimizer.lr
        for method in METHODS:
            config = TrainConfig.from_flat(data=data, method=method).resolve()
            assert config.optimizer.lr == lr
            sizes = METHODS[method].info.pixel_options
            assert {word.partition("=")[0] for word in config.method.options} <= {*sizes, "decay_epochs"}

    def test_steps_of_atas_are_for_the_radius(self):
        rule = build_method(TrainConfig.from_flat(data="mnist", method="atas").resolve()).rule
        assert (rule["step_scale"], rule["min_step"], rule["max_step"]) == pytest.approx((0.6, 0.15, 0.525))

    @pytest.mark.parametrize("model", ["resnet34", "torchvision:resnet34"])
    def test_the_width_of_the_recipe_is_for_our_models(self, model):
        assert TrainConfig.from_flat(model=model).resolve().model.width is None
        assert TrainConfig.from_flat(model="resnet18").resolve().model.width == 16

    def test_given_options_leave_the_others_of_the_recipe(self):
        config = TrainConfig.from_flat(method="atas", method_options=("beta=0.9",)).resolve()
        rule = build_method(config).rule
        assert (rule["step_scale"], rule["min_step"], rule["max_step"], rule["beta"]) == (0.4, 0.1, 0.35, 0.9)
        rule = build_method(TrainConfig.from_flat(method="atas", eps=0.05).resolve()).rule
        assert (rule["step_scale"], rule["min_step"]) == (0.1, 0.025)
        large = TrainConfig.from_flat(
            data="/imagenet", method="atas", image_size=224, method_options=("beta=0.9",)
        ).resolve()
        assert build_method(large).resolution == 32
        l2 = build_method(TrainConfig.from_flat(data="/imagenet", method="atas", image_size=224, threat="l2").resolve())
        assert l2.rule["step_scale"] == pytest.approx(2 * 128 / 255)
        assert l2.rule["min_step"] == pytest.approx(64 / 255)

    def test_steps_follow_a_given_radius_and_number(self):
        assert TrainConfig.from_flat(data="cifar10", method="atta").resolve().attack.step_size == 0.015
        assert TrainConfig.from_flat(data="cifar10", method="atta", attack_steps=10).resolve().attack.step_size is None
        assert TrainConfig.from_flat(data="cifar10", method="trades", eps=16 / 255).resolve().attack.step_size is None

    def test_large_images_need_their_size(self, tmp_path):
        for split in ("train", "test"):
            for name in ("a", "b"):
                folder = tmp_path / split / name
                folder.mkdir(parents=True)
                for i in range(3):
                    Image.new("RGB", (80, 80), (40 * i, 90, 10)).save(folder / f"{i}.png")
        config = TrainConfig.from_flat(
            data=str(tmp_path), data_dir=tmp_path / "cache", method="atas", select_on="none"
        ).resolve()
        with pytest.raises(ConfigError, match="give --image-size 80"):
            build_components(config)

    def test_epochs_that_a_method_never_gets_beyond(self):
        config = TrainConfig.from_flat(method="trades_awp", method_options=("warmup=10",), epochs=5).resolve()
        with pytest.warns(UserWarning, match="warmup is 10 of 5 epochs"):
            build_components(config)

    def test_papers(self):
        atas = TrainConfig.from_flat(data="cifar10", method="atas").resolve()
        assert (atas.model.name, atas.schedule.epochs, atas.schedule.milestones, atas.optimizer.lr) == (
            "preact_resnet18",
            30,
            (24, 28),
            0.1,
        )
        assert (atas.optimizer.weight_decay, atas.attack.eps, atas.schedule.batch_size, atas.evaluation.select_on) == (
            5e-4,
            8 / 255,
            128,
            "none",
        )
        mart = TrainConfig.from_flat(data="cifar10", method="mart").resolve()
        assert (mart.attack.eps, mart.attack.step_size, mart.optimizer.lr, mart.optimizer.weight_decay) == (
            0.031,
            0.007,
            0.01,
            3.5e-3,
        )
        assert TrainConfig.from_flat(data="cifar10", method="mart", threat="l2").resolve().attack.eps == 128 / 255
        large = TrainConfig.from_flat(data="/imagenet", method="atas", image_size=224).resolve()
        assert (large.model.name, large.schedule.epochs, large.attack.eps) == ("resnet50", 90, 2 / 255)
        assert (
            large.data.augment
            == TrainConfig.from_flat(data="/imagenet", image_size=64).resolve().data.augment
            == "resized"
        )
        assert large.override(augment="shift").resolve().data.augment == "shift"
        small = (
            TrainConfig.from_flat(data="/imagenet", image_size=63),
            TrainConfig.from_flat(data="cifar10"),
            TrainConfig.from_flat(data="digits"),
        )
        assert [config.resolve().data.augment for config in small] == ["shift", "shift", "none"]
        assert build_method(large).threat.eps == 2 / 255


class TestArguments:
    def test_types_come_from_signatures(self):
        words = ("c=128/100", "warmup=2", "dtype=float16", "resolution=none", "as_printed=true", "min_step=2/255")
        expected = {"c": 1.28, "warmup": 2, "dtype": torch.float16, "resolution": None, "as_printed": True}
        assert parse_options(words, METHODS["atas"], "method_options") == expected | {"min_step": 2 / 255}

    def test_literals_bases_and_text(self):
        class Base:
            """A base.

            Args:
                scale: Its scale, in a text
                    of two lines.
                size, depth: Integers.
            """

            def __init__(self, eps: float, *, scale: float = 1.0, size: int = 1, depth: int | None = None): ...

        class Own(Base):
            """One that forwards.

            Args:
                mode: How.
                scale: Another text.

            Raises:
                ConfigError: mode: is not a text of an argument.
            """

            def __init__(self, eps: float, *, mode: Literal["a", "b"] = "a", **options: Any): ...

        found = arguments_of(Own)
        assert {name: argument.text for name, argument in found.items()} == {
            "scale": "Another text.",
            "size": "Integers.",
            "depth": "Integers.",
            "mode": "How.",
        }
        assert arguments_of(Base)["scale"].text == "Its scale, in a text of two lines."
        assert parse_options(("mode=b", "depth=none"), Own, "options") == {"mode": "b", "depth": None}
        with pytest.raises(ConfigError, match=r"'mode=c'; expected one of a, b \(default: a\)"):
            parse_options(("mode=c",), Own, "options")
        with pytest.raises(ConfigError, match=r"'depth=1/2'; expected an integer or none \(default: none\)"):
            parse_options(("depth=1/2",), Own, "options")


class TestYaml:
    def test_round_trip(self, tmp_path):
        config = TrainConfig.from_flat(
            data="svhn", data_dir=Path("/data"), eps=4 / 255, milestones=(3, 5), attacks=("fgsm", "cw")
        )
        config.resolve().save(tmp_path / "config.yaml")
        assert TrainConfig.load(tmp_path / "config.yaml") == config.resolve()

    def test_is_nested_by_group(self, tmp_path):
        config = TrainConfig.from_flat(
            data="svhn", attack_steps=5, method="trades", method_options=("beta=3",)
        ).resolve()
        config.save(tmp_path / "config.yaml")
        content = yaml.safe_load((tmp_path / "config.yaml").read_text())
        assert list(content) == [field.name for field in fields(TrainConfig)]
        assert content["data"]["name"] == "svhn"
        assert (content["attack"]["steps"], content["method"]["options"]) == (5, ["beta=3"])
        assert content == config.plain()

    def test_parts_of_epochs(self, tmp_path):
        (tmp_path / "mine.yaml").write_text("schedule:\n  milestones: [15/2, 10, 12.5]\n  warmup_epochs: 1/4\n")
        config = TrainConfig.load(tmp_path / "mine.yaml")
        assert (config.schedule.milestones, config.schedule.warmup_epochs) == ((7.5, 10, 12.5), 0.25)
        config.save(tmp_path / "again.yaml")
        assert TrainConfig.load(tmp_path / "again.yaml") == config
        assert "  - 7.5\n  - 10\n  - 12.5\n" in (tmp_path / "again.yaml").read_text()

    def test_what_belongs_to_one_call_is_not_saved(self, tmp_path):
        TrainConfig().override(out=tmp_path, resume=True).save(tmp_path / "config.yaml")
        assert TrainConfig.load(tmp_path / "config.yaml") == TrainConfig()

    def test_a_person_may_write_it(self, tmp_path):
        (tmp_path / "mine.yaml").write_text(
            "data: {name: cifar10}\nattack: {eps: 8/255}\noptimizer: {lr: 1e-2}\nschedule: {milestones: [10, 20]}\n"
        )
        config = TrainConfig.load(tmp_path / "mine.yaml")
        assert (config.attack.eps, config.optimizer.lr, config.schedule.milestones) == (8 / 255, 0.01, (10, 20))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("schedule: {epoch: 3}", r"unknown option 'epoch' in schedule \(did you mean epochs\?\)"),
            ("run: {out: here}", "unknown option 'out' in run"),
            ("epochs: 3", r"unknown group 'epochs' \(it belongs to schedule\)"),
            ("schedul: {epochs: 3}", r"unknown group 'schedul' \(did you mean schedule\?\)"),
            ("schedule: cyclic", "schedule is 'cyclic'; expected options and values"),
            ("schedule: {epochs: many}", "epochs is 'many'; expected an integer"),
            ("schedule: {epochs: 2.5}", "epochs is 2.5; expected an integer"),
            ("data: {download: 1}", "download is 1; expected true or false"),
            ("attack: {eps: wide}", "eps is 'wide'; expected a number"),
            ("schedule: {name: round}", "unknown schedule 'round'"),
            ("evaluation: {select_on: maybe}", "unknown select_on"),
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
