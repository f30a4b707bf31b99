"""A training step does not make the host wait, and can be captured; on a CPU with a recording of its operators."""

import pytest
import torch
from helpers.recorded_graph import RecordedGraph, makes_host_wait
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pyengm.attacks import PGD, fused_batch_norm
from pyengm.errors import ConfigError, DataError, NonFiniteError
from pyengm.models import build as build_model
from pyengm.ops import Key
from pyengm.pergrad import norm_estimator
from pyengm.training import TrainComponents, TrainConfig, build_components, builders, loop
from pyengm.training.builders import set_attack_runner
from pyengm.training.metric_sums import read_sums
from pyengm.training.steps import build
from pyengm.training.steps.captured_function import WARM_UP, CapturedFunction, CudaGraph
from pyengm.training.steps.cuda_graph_step import CudaGraphStep
from pyengm.training.steps.runners import CompiledRunner, CudaGraphRunner
from pyengm.training.steps.train_step import EagerStep
from pyengm.utils.checks import Checks

EPS = 0.1


@pytest.fixture
def batch_norm_of_a_gpu(monkeypatch) -> None:
    """On a CPU attacks run batch norm as one scale and one shift, which they compute before the passes."""
    monkeypatch.setattr(fused_batch_norm, "KINDS", ())


@pytest.fixture(scope="module")
def tiny(tiny) -> TrainConfig:
    return tiny.override(epochs=1, attack_steps=None)


class NoWaiting(TorchDispatchMode):
    """Raises at every operation that makes the host wait for the contents of a tensor on a GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if makes_host_wait(func, args, kwargs or {}):
            raise AssertionError(f"{func} makes the host wait")
        return func(*args, **(kwargs or {}))


class TestNoWaiting:
    @pytest.mark.parametrize(
        "wait",
        [
            lambda t: t.sum().item(),
            lambda t: bool((t > 0).all()),
            lambda t: t[t > 0],
            lambda t: t.nonzero(),
            lambda t: t.equal(t.clone()),
            lambda t: float(t[0]),
            lambda t: t + torch.tensor([1.0, 2.0, 3.0]),
        ],
    )
    def test_is_seen(self, wait):
        with pytest.raises(AssertionError, match="makes the host wait"), NoWaiting():
            wait(torch.rand(3))

    def test_in_l2_and_in_bf16(self, tiny):
        """Autocast leaves pretended CUDA tensors (test_no_waiting.py) as they are, so this is on tensors of the CPU."""
        components, config = self._warm(tiny.override(method="pgd_at", threat="l2", precision="bf16"))
        batch = next(components.batches.epoch(0))
        with Checks().at("here"), NoWaiting():
            loop.update(config, components, [batch], 0)

    def _warm(self, config: TrainConfig):
        """After steps that look at the structure of the graph, and fit norms for a while to come."""
        config = config.override(attack_steps=2).resolve()
        components = build_components(config)
        batches = list(components.batches.epoch(0))
        for k in range(3):
            loop.update(config, components, [batches[k]], 0)
        components.optimizer.norms.refit_interval = 100
        loop.update(config, components, [batches[0]], 0)
        return components, config


def model_of(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_model("cnn4", num_classes=10, in_channels=1, image_size=8, width=4, norm_layer="bn").to(dtype)


def batch_of(n: int, seed: int = 0, device: str = "cpu") -> tuple[Tensor, Tensor, Key]:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.rand(n, 1, 8, 8, generator=generator), torch.randint(0, 10, (n,), generator=generator)
    return x.to(device), y.to(device), Key(1, seed, torch.arange(n, device=device))


class TestChecks:
    """What an attack and a backward pass say at once they say later, and with the place."""

    def test_images_outside(self):
        x, y, _ = batch_of(4)
        checks = Checks()
        with checks.at("epoch 1, batch 2"):
            PGD(EPS, EPS, 1)(model_of(), x * 3, y)
        with checks.at("epoch 1, batch 3"):
            PGD(EPS, EPS, 1)(model_of(), x, y)
        with pytest.raises(DataError, match=r"epoch 1, batch 2: expected images .* got values from .* to 2\.9"):
            checks.read()
        checks.read()  # nothing is left

    def test_at_once_elsewhere(self):
        x, y, _ = batch_of(4)
        with pytest.raises(DataError, match=r"^expected images"):
            PGD(EPS, EPS, 1)(model_of(), x * 3, y)
        with pytest.raises(DataError, match=r"^expected labels of 0 or more, got -1"):
            PGD(EPS, EPS, 1)(model_of(), x, y - y - 1)

    @pytest.mark.parametrize("method", ["natural", "pgd_at"])
    @pytest.mark.parametrize("optimizer", ["msgd", "engm"])
    def test_a_step_with_a_nan(self, method, optimizer, tiny):
        config = tiny.override(method=method, optimizer=optimizer).resolve()
        components = build_components(config)
        batches = list(components.batches.epoch(0))
        loop.update(config, components, batches[:1], 0)
        with torch.no_grad():
            components.model.head.weight.fill_(torch.nan)
        checks = Checks()
        with pytest.raises(NonFiniteError, match=r"^there: .*nan or infinite"):  # noqa: PT012
            with checks.at("there"):
                loop.update(config, components, batches[1:2], 0)
            checks.read()

    def test_what_follows_from_a_check_that_failed_is_not_said(self):
        checks = Checks()
        x, y, _ = batch_of(4)
        with pytest.raises(DataError, match=r"^here: expected labels of 0 or more, got -100"), checks.at("here"):
            PGD(EPS, EPS, 1)(model_of(), x, torch.full_like(y, -100)).view(-7)

    def test_other_errors_pass_with_the_place(self):
        with pytest.raises(IndexError, match=r"^mine"), Checks().at("here"):
            raise IndexError("mine")
        with pytest.raises(ConfigError, match=r"^here: mine"), Checks().at("here"):
            raise ConfigError("mine")


def attack_of(norm: str = "linf", **options) -> PGD:
    return PGD(EPS, EPS / 4, 3, norm=norm, **options)


@pytest.mark.usefixtures("batch_norm_of_a_gpu")
class TestCapturedFunction:
    @pytest.mark.parametrize(("norm", "loss"), [("linf", "ce"), ("l2", "ce"), ("linf", "kl")])
    def test_gives_what_the_attack_gives(self, norm, loss):
        """Several batches, the weights moving, with a short batch in between, and gradients of the last step."""
        made = []
        plain, replayed, model = attack_of(norm, loss=loss), attack_of(norm, loss=loss), model_of()
        replayed.runner = CudaGraphRunner(
            CapturedFunction(6, lambda device: made.append(RecordedGraph(device)) or made[-1])
        )
        for step, n in enumerate([6, 6, 6, 6, 2, 6, 6]):
            x, y, key = batch_of(n, seed=step)
            grads = torch.zeros_like(x), torch.zeros_like(x)
            expected = plain(model, x, y, key=key, gradient=grads[0])
            kept = x.clone()
            found = replayed(model, x, y, key=key, gradient=grads[1])
            assert expected.equal(found)
            assert grads[0].equal(grads[1])
            assert x.equal(kept)
            with torch.no_grad():
                for p in model.parameters():
                    p.mul_(1.01)
        assert [(g.warm_ups, g.captures, g.replays) for g in made] == [(WARM_UP, 1, 3)]

    def test_results_are_the_callers_own(self):
        attack, model = attack_of(), model_of()
        attack.runner = CudaGraphRunner(CapturedFunction(6, RecordedGraph))
        found = []
        for seed in range(WARM_UP + 3):
            x, y, key = batch_of(6, seed)
            found.append((attack(model, x, y, key=key), seed))
        for x_adv, seed in found:
            x, y, key = batch_of(6, seed)
            assert attack_of()(model, x, y, key=key).equal(x_adv)

    def test_another_form_is_captured_anew(self):
        made = []
        attack, model = attack_of(), model_of()
        attack.runner = CudaGraphRunner(
            CapturedFunction(6, lambda device: made.append(RecordedGraph(device)) or made[-1])
        )
        x, y, key = batch_of(6)
        for _ in range(WARM_UP + 1):
            attack(model, x, y, key=key)
        attack.steps = 5
        expected = PGD(EPS, EPS / 4, 5)(model, x, y, key=key)
        for _ in range(WARM_UP + 1):
            assert attack(model, x, y, key=key).equal(expected)
        other = model_of(seed=1)
        for _ in range(WARM_UP + 1):
            assert attack(other, x, y, key=key).equal(PGD(EPS, EPS / 4, 5)(other, x, y, key=key))
        assert [g.captures for g in made] == [1, 1, 1]

    def test_a_nan_is_seen_in_a_replay(self):
        attack, model = attack_of(), model_of()
        attack.runner = CudaGraphRunner(CapturedFunction(6, RecordedGraph))
        x, y, key = batch_of(6)
        for _ in range(WARM_UP + 2):
            attack(model, x, y, key=key)
        with torch.no_grad():
            model.head.weight.fill_(torch.nan)
        with pytest.raises(NonFiniteError, match="the attack's loss"):
            attack(model, x, y, key=key)

    def test_what_cannot_be_captured(self):
        class Refusing(RecordedGraph):
            def capture(self, function):
                raise RuntimeError("operation not permitted when stream is capturing\nand more")

        attack = attack_of()
        attack.runner = CudaGraphRunner(CapturedFunction(6, Refusing))
        model, (x, y, key) = model_of(), batch_of(6)
        for _ in range(WARM_UP):
            attack(model, x, y, key=key)
        with pytest.raises(ConfigError, match=r"cannot be captured .*: operation not permitted.*set cuda_graphs"):
            attack(model, x, y, key=key)

    def test_early_stop_and_restarts_run_as_they_are(self):
        x, y, key = batch_of(6)
        for options in ({"early_stop": True}, {"restarts": 2}):
            attack = attack_of(**options)
            expected = attack(model_of(), x, y, key=key)
            attack.runner = CudaGraphRunner(lambda *args: pytest.fail("was captured"))
            assert attack(model_of(), x, y, key=key).equal(expected)

    @pytest.mark.parametrize("method", ["pgd_at", "trades_awp", "fgsm_rs"])
    def test_training_is_the_same(self, method, tiny):
        """Every batch of two epochs, the short last one included; batch norm's running statistics see each once."""
        weights = []
        for captured in (False, True):
            config = tiny.override(method=method, attack_steps=None if method == "fgsm_rs" else 2).resolve()
            components = build_components(config)
            components.method.warmup = 0  # of AWP
            made = []
            if captured:
                attack = getattr(components.method, "base", components.method).attack
                graph = lambda device, made=made: made.append(RecordedGraph(device)) or made[-1]  # noqa: E731
                attack.runner = CudaGraphRunner(CapturedFunction(config.schedule.batch_size, graph))
            for epoch in range(2):
                components.method.start_epoch(components.network, epoch)
                for batch in components.batches.epoch(epoch):
                    loop.update(config, components, [batch], epoch)
            weights.append(components.model.state_dict())
            assert [g.replays for g in made] == ([6 - WARM_UP] if captured else [])
        assert all(value.equal(weights[1][name]) for name, value in weights[0].items())


def capture(components: TrainComponents, config: TrainConfig, graph=RecordedGraph) -> None:
    """Makes the components take captured steps."""
    step = components.step
    assert isinstance(step, EagerStep)
    captured = CapturedFunction(config.schedule.batch_size, graph)
    components.step = CudaGraphStep(step.method, step.model, step.optimizer, step.average, captured)


class TestCudaGraphStep:
    @pytest.mark.parametrize("norm_layer", ["bn", "gn"])
    @pytest.mark.parametrize("optimizer", ["msgd", "engm", "fengm", "nengm"])
    @pytest.mark.parametrize("method", ["pgd_at", "trades", "mart", "fgsm_rs"])
    def test_is_a_training_step(self, method, optimizer, norm_layer, tiny, monkeypatch):
        """Two epochs with a rate that changes at every step and short last batches: weights and sums, bit for bit."""
        monkeypatch.setattr(norm_estimator, "DRIFT", 1.0)  # so that no error shortens the time between fits
        config = tiny.override(method=method, attack_steps=None if method == "fgsm_rs" else 2, epochs=2)
        config = config.override(optimizer=optimizer, norm_layer=norm_layer, schedule="cyclic").resolve()
        weights, sums, made = [], [], []
        for captured in (False, True):
            components = build_components(config)
            if captured:
                capture(components, config, lambda device: made.append(RecordedGraph(device)) or made[-1])
            for epoch in range(2):
                for batch in components.batches.epoch(epoch):
                    sums.append(loop.update(config, components, [batch], epoch))
            weights.append(components.model.state_dict())
            assert all(p.grad is None for p in components.model.parameters())
        assert all(value.equal(weights[1][name]) for name, value in weights[0].items())
        assert torch.stack(sums[: len(sums) // 2]).equal(torch.stack(sums[len(sums) // 2 :]))
        fits = (optimizer, norm_layer) in (("engm", "bn"), ("fengm", "bn"))
        # Of eight batches, two of them short, fits to exact norms take the first, second, fourth and eighth.
        expected = [(0, 0), (1, 4 - WARM_UP)] if fits else [(1, 6 - WARM_UP)]
        assert [(g.captures, g.replays) for g in made] == expected

    def test_goes_with_averages_and_smoothed_labels(self, tiny):
        config = tiny.override(
            method="pgd_at", attack_steps=2, norm_layer="gn", average="ema", label_smoothing=0.1
        ).resolve()
        averages, losses = [], []
        for captured in (False, True):
            components = build_components(config)
            if captured:
                capture(components, config)
            for epoch in range(2):
                for batch in components.batches.epoch(epoch):
                    losses.append(read_sums(loop.update(config, components, [batch], epoch))["loss"])
            averages.append(components.averaging.evaluated.state_dict())
        assert all(value.equal(averages[1][name]) for name, value in averages[0].items())
        assert losses[: len(losses) // 2] == losses[len(losses) // 2 :]

    def test_a_nan_is_seen(self, tiny):
        config = tiny.override(norm_layer="gn", method="pgd_at").resolve()
        components = build_components(config)
        capture(components, config)
        components.method.perturb = lambda model, x, *args: x.clone()  # only the outer pass meets the nan
        batches = [batch for batch in components.batches.epoch(0) if len(batch.y) == config.schedule.batch_size]
        for k in range(WARM_UP + 2):
            loop.update(config, components, [batches[k % len(batches)]], 0)
        with torch.no_grad():
            components.model.head.weight.fill_(torch.nan)
        with pytest.raises(NonFiniteError, match="a loss or a gradient norm is nan or infinite"):
            loop.update(config, components, [batches[0]], 0)

    def test_is_chosen_by_the_option(self, tiny, monkeypatch):
        monkeypatch.setattr(builders, "set_attack_runner", lambda *args: None)  # which refuses it on a CPU
        monkeypatch.setattr(build, "CapturedFunction", lambda n: CapturedFunction(n, RecordedGraph))
        for options, expected in (
            ({"cuda_graphs": True, "optimizer": "msgd"}, True),
            ({"cuda_graphs": True, "optimizer": "engm"}, True),
            ({"cuda_graphs": True, "optimizer": "fengm", "norms": "corrected"}, True),
            ({"cuda_graphs": True, "optimizer": "engm", "norms": "lowrank"}, False),
            ({"cuda_graphs": True, "optimizer": "engm", "norms": "exact"}, False),
            ({"cuda_graphs": True, "optimizer": "engm", "norm_layer": "gn"}, True),
            ({"cuda_graphs": True, "optimizer": "aengm", "norm_layer": "gn"}, False),
            ({"cuda_graphs": True, "optimizer": "msgd", "precision": "fp16"}, False),
            ({"cuda_graphs": True, "optimizer": "msgd", "method": "pgd_at_awp"}, False),
            ({"optimizer": "msgd"}, False),
        ):
            step = build_components(tiny.override(**options).resolve()).step
            assert isinstance(step, CudaGraphStep) == expected, options


class TestOptions:
    @pytest.mark.parametrize("name", ["compile", "cuda_graphs"])
    @pytest.mark.parametrize(
        "options",
        [{"method": "natural"}, {"method": "ssat"}, {"method": "fgsm_rs", "method_options": ("adaptive=true",)}],
    )
    def test_that_would_change_nothing(self, name, options, tiny):
        with pytest.raises(ConfigError, match=rf"{name} is for attacks that are PGD alone.*{options['method']} has"):
            build_components(tiny.override(**{name: True}, **options).resolve())

    def test_no_graphs_on_a_cpu(self, tiny):
        with pytest.raises(ConfigError, match="cuda_graphs needs a CUDA device; the training is to run on cpu"):
            build_components(tiny.override(cuda_graphs=True, device="cpu").resolve())
        assert build_components(tiny.override(device="cpu").resolve()).method.attack.runner is PGD.runner

    def test_captures_on_a_gpu_where_asked_to(self, tiny):
        for options, expected in (
            ({}, False),
            ({"precision": "bf16"}, False),
            ({"cuda_graphs": True}, True),
            ({"precision": "bf16", "cuda_graphs": True}, True),
            ({"precision": "fp16", "cuda_graphs": True}, True),
        ):
            config = tiny.override(**options).resolve()
            components = build_components(config.override(cuda_graphs=False, device="cpu"))
            set_attack_runner(config, components.method, components.network, torch.device("cuda"))
            assert isinstance(components.method.attack.runner, CudaGraphRunner) == expected, options

    def test_compiled_attack(self, tiny, monkeypatch):
        """The attack runs the compiled model, the outer step the plain one; both have the same parameters."""
        compiled, by_torch = [], torch.compile

        def compile_eagerly(model: nn.Module) -> nn.Module:
            compiled.append(by_torch(model, backend="aot_eager"))
            return compiled[-1]

        monkeypatch.setattr(torch, "compile", compile_eagerly)
        torch._dynamo.reset()
        found = []
        for options in ({}, {"compile": True}):
            config = tiny.override(attack_steps=2, **options).resolve()
            components = build_components(config)
            for batch in components.batches.epoch(0):
                loop.update(config, components, [batch], 0)
            found.append(torch.cat([p.detach().flatten() for p in components.model.parameters()]))
        runner = components.method.attack.runner
        assert isinstance(runner, CompiledRunner)
        assert (runner.model, runner.compiled) == (components.network, compiled[0])
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
        torch.testing.assert_close(
            *found, rtol=1e-3, atol=1e-4
        )  # a sign step may go the other way at a gradient near 0
        torch._dynamo.reset()


@pytest.mark.gpu
class TestCuda:
    @pytest.mark.parametrize("precision", ["float32", "bf16"])
    @pytest.mark.parametrize("method", ["pgd_at", "trades", "mart", "pgd_at_awp", "fgsm_rs"])
    @pytest.mark.parametrize("norm", ["linf", "l2"])
    @pytest.mark.parametrize(("optimizer", "norm_layer"), [("msgd", "bn"), ("engm", "bn"), ("engm", "gn")])
    def test_captured_is_eager_bitwise(self, optimizer, norm_layer, method, precision, norm, tiny, monkeypatch):
        """Two epochs with a short last batch and a learning rate that changes at every step."""
        monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
        monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
        monkeypatch.setattr(norm_estimator, "DRIFT", 1.0)  # so that no error shortens the time between fits
        weights = []
        for cuda_graphs in (False, True):
            steps = None if method == "fgsm_rs" else 2
            config = tiny.override(
                method=method, threat=norm, precision=precision, attack_steps=steps, schedule="cyclic"
            )
            config = config.override(device="cuda", cuda_graphs=cuda_graphs, epochs=2)
            config = config.override(optimizer=optimizer, norm_layer=norm_layer).resolve()
            components = build_components(config)
            components.method.warmup = 0  # of AWP
            for epoch in range(2):
                components.method.start_epoch(components.network, epoch)
                for batch in components.batches.epoch(epoch):
                    loop.update(config, components, [batch], epoch)
            weights.append(components.model.state_dict())
        recording = getattr(components.method, "base", components.method).attack.runner.captured.recording
        assert isinstance(recording.graph, CudaGraph)
        assert recording.captured
        if method != "pgd_at_awp":  # with engm and bn, from the seventh batch on
            assert components.step.captured.recording.captured
        for name, value in weights[0].items():
            assert value.equal(weights[1][name]), name

    @pytest.mark.parametrize("optimizer", ["msgd", "engm", "fengm", "nengm"])
    @pytest.mark.parametrize("norm_layer", ["bn", "gn"])
    @pytest.mark.parametrize("cuda_graphs", [False, True])
    def test_a_step_never_waits(self, optimizer, norm_layer, cuda_graphs, tiny):
        config = tiny.override(attack_steps=2, optimizer=optimizer, norm_layer=norm_layer, device="cuda").resolve()
        config = config.override(cuda_graphs=cuda_graphs, average="ema", label_smoothing=0.1)
        components = build_components(config)
        batches = list(components.batches.epoch(0))
        for k in range(WARM_UP + 1):
            loop.update(config, components, [batches[k % 3]], 0)
        if hasattr(components.optimizer, "norms"):
            components.optimizer.norms.refit_interval = 100
            for k in range(WARM_UP + 1):  # fewer than from an update to the next
                loop.update(config, components, [batches[k % 3]], 0)
        torch.cuda.set_sync_debug_mode("error")
        try:
            with Checks().at("here"):
                loop.update(config, components, [batches[1]], 0)
        finally:
            torch.cuda.set_sync_debug_mode("default")
