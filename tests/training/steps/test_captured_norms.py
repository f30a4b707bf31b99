"""The captured step under batch norm, with fits of the norms between replays: it is the eager step, bit for bit."""

import io
from functools import partial

import pytest
import torch
from helpers.recorded_graph import RecordedGraph
from helpers.small_problems import cnn4
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from pyengm.data import Batch
from pyengm.methods import PGDAT
from pyengm.models import build
from pyengm.ops import Key
from pyengm.optim import ENGM, FENGM, PerExampleSGD
from pyengm.pergrad import norm_estimator
from pyengm.training.metric_sums import measure
from pyengm.training.steps.captured_function import WARM_UP, CapturedFunction, CudaGraph
from pyengm.training.steps.cuda_graph_step import CudaGraphStep
from pyengm.training.steps.train_step import EagerStep
from pyengm.utils.distributed import average_gradients


def resnet18(width: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return build("resnet18", width=width, image_size=8, in_channels=1).train()


class Training:
    """Steps of FGSM training on random images, and all that each of them gives and leaves behind.

    Args:
        model: The model.
        optimizer: Has the parameters of the model.
        captured: Whether the pass after the attack is captured, on a CPU by the replacement for a CUDA graph.
        n: The number of images of a batch.
        device: Of the model.
    """

    def __init__(self, model: nn.Module, optimizer: PerExampleSGD, *, captured: bool, n: int = 6, device: str = "cpu"):
        self.model, self.optimizer, self.n, self.device = model, optimizer, n, torch.device(device)
        self.graphs: list[RecordedGraph] = []
        self.found: list[dict[str, Tensor]] = []
        self.kinds = ""  # of the calls of the estimator: plain, fit, update or looking for gradients
        parts = PGDAT(0.1, steps=1), model, optimizer, self.average
        graph = CudaGraph if self.device.type == "cuda" else self.new_graph
        self.step = CudaGraphStep(*parts, CapturedFunction(n, graph)) if captured else EagerStep(*parts)

    def new_graph(self, device: torch.device) -> RecordedGraph:
        self.graphs.append(RecordedGraph(device))
        return self.graphs[-1]

    def average(self, images: int) -> None:
        average_gradients(self.model, images)
        self.grads = {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}

    def take(self, k: int, n: int | None = None) -> None:
        """Takes the step number k, on a batch of its own."""
        n, generator, norms = n or self.n, torch.Generator().manual_seed(k), self.optimizer.norms
        x, y = torch.rand(n, 1, 8, 8, generator=generator), torch.randint(0, 10, (n,), generator=generator)
        fits = norms.due and norms._leaves is not None
        self.kinds += "p" if norms.is_plain else "f" if fits else "g" if norms._gaps else "u"
        x, y, index = x.to(self.device), y.to(self.device), torch.arange(n, device=self.device)
        stats = self.step([Batch(x, y, index, None, n)], [Key(0, k, index)])
        ((output, weights),) = stats
        tensors = {name: t.clone() for name, t in vars(weights).items() if t is not None}
        tensors |= {"losses": output.losses.detach().clone(), "logits": output.logits.detach().clone()}
        tensors["metrics"] = measure(stats, y, self.optimizer.take_grad_squares())
        tensors |= {f"statistics {name}": torch.tensor(v) for name, v in self.optimizer.statistics().items()}
        tensors |= {f"grad {name}": t for name, t in self.grads.items()}
        tensors |= {f"state {name}": t.clone() for name, t in self.model.state_dict().items()}
        self.found.append(tensors)

    @property
    def captures(self) -> int:
        return sum(graph.captures for graph in self.graphs)

    @property
    def replays(self) -> int:
        return sum(graph.replays for graph in self.graphs)


def both(
    make, kind: type[PerExampleSGD] = ENGM, *, n: int = 6, device: str = "cpu", **options
) -> tuple[Training, Training]:
    """An eager training and a captured one, of the same weights."""
    trainings = []
    for captured in (False, True):
        model = make().to(device)
        optimizer = kind(model.parameters(), lr=0.05, alpha=1.0, **options)
        trainings.append(Training(model, optimizer, captured=captured, n=n, device=device))
    return trainings[0], trainings[1]


def check_same(eager: Training, captured: Training) -> None:
    """Both found the same, bit for bit, and have the same state."""
    assert eager.kinds == captured.kinds
    for k, (expected, found) in enumerate(zip(eager.found, captured.found, strict=True)):
        assert expected.keys() == found.keys()
        for name, t in expected.items():
            assert t.equal(found[name]), (k, name)
    states = [training.optimizer.state_dict() for training in (eager, captured)]
    assert states[0]["param_groups"] == states[1]["param_groups"]  # what was fitted is a text there
    momenta = [[t for part in state["state"].values() for t in part.values()] for state in states]
    assert all(one.equal(other) for one, other in zip(*momenta, strict=True))


def test_training_is_the_same(monkeypatch):
    """Over fits and updates: a replay that missed one of them would have other norms from then on."""
    monkeypatch.setattr(norm_estimator, "DRIFT", 1.0)  # so that no error shortens the interval
    eager, captured = both(resnet18)
    for training in (eager, captured):
        training.optimizer.norms.max_refit_interval = 10
        for k in range(37):
            training.take(k, n=4 if k == 20 else None)  # a short batch is never replayed
    check_same(eager, captured)
    kinds = captured.kinds
    assert kinds == "pfpfpppfpppppppfpppppppupfpppppppupfp"  # nothing is known of the first batch's graph
    assert [graph.captures for graph in captured.graphs] == [0, 1]  # the first fit takes new memory
    assert captured.replays == kinds[1:].count("p") - WARM_UP - 1
    fits = [k for k, found in enumerate(captured.found) if "fit_errors" in found]
    assert fits == [k for k, kind in enumerate(kinds) if kind != "p"]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [ENGM, FENGM])
def test_training_is_the_same_on_a_gpu(kind, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    eager, captured = both(partial(resnet18, width=8), kind, n=16, device="cuda")
    for k in range(48):
        for training in (eager, captured):
            training.take(k, n=10 if k == 20 else None)
    assert captured.step.captured.recording.captured
    assert "f" in captured.kinds[12:]
    check_same(eager, captured)


@pytest.mark.parametrize("kind", [ENGM, FENGM])
def test_replays_read_what_was_fitted_last(kind):
    """Other norms come from the same batch and weights after a fit; the replay has those of the eager call."""
    eager, captured = both(cnn4_single, kind)
    for training in (eager, captured):
        for group in training.optimizer.param_groups:
            group["lr"] = group["weight_decay"] = 0.0
        for module in training.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.0
        for k in range(16):
            training.take(0 if training.optimizer.norms.is_plain else 1 + k)
    check_same(eager, captured)
    plain = [found["norms"] for found, which in zip(captured.found, captured.kinds, strict=True) if which == "p"]
    assert captured.replays > 3
    assert len({tuple(norms.tolist()) for norms in plain}) >= 3


def cnn4_single(norm: str = "bn") -> nn.Module:
    return cnn4(norm, dtype=torch.float32)


class FunctionalNorm(nn.Module):
    """Batch norm that no module of torch's shows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(1, 3, 3), nn.Linear(108, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.batch_norm(self.conv(x), None, None, training=True).relu().flatten(1))


def test_batch_norm_that_is_no_module():
    eager, captured = both(FunctionalNorm)
    for k in range(12):
        for training in (eager, captured):
            training.take(k)
    check_same(eager, captured)
    assert "f" in captured.kinds[4:]
    assert captured.replays > 2


def freeze(training: Training) -> None:
    next(training.model.parameters()).requires_grad_(False)


def set_alpha(training: Training) -> None:
    training.optimizer.alpha = 0.5


def forget(training: Training) -> None:
    training.optimizer.norms.forget()


def load(training: Training) -> None:
    training.optimizer.load_state_dict(training.optimizer.state_dict())


def use_running_statistics(training: Training) -> None:
    for module in training.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def smooth_labels(training: Training) -> None:
    training.step.method.label_smoothing = 0.2


@pytest.mark.parametrize("change", [freeze, set_alpha, forget, load, use_running_statistics, smooth_labels])
def test_another_structure_is_captured_anew(change):
    eager, captured = both(cnn4_single)
    for training in (eager, captured):
        for k in range(9):
            training.take(k)
        before = training.captures
        change(training)
        for k in range(9, 24):
            training.take(k)
    check_same(eager, captured)
    assert (before, captured.captures) == (1, 2)
    assert captured.replays > 6


def test_groups_that_come_to_life():
    """While a group of parameters has had no gradient, every call looks for one, outside of the graph."""

    def make() -> nn.Module:
        model = cnn4_single()
        first = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
        nn.init.zeros_(first.weight.requires_grad_(False))  # so that the convolution before it has no gradient
        nn.init.constant_(first.bias, 0.5)
        return model

    eager, captured = both(make)
    for training in (eager, captured):
        for k in range(22):
            if k == 9:
                nn.init.ones_(next(p for p in training.model.parameters() if not p.requires_grad))
            training.take(k)
    check_same(eager, captured)
    assert set(captured.kinds[1:10]) == {"f", "g"}
    assert captured.kinds[9:].lstrip("g").startswith("pppp")  # fitted with them, at once or at the next call
    assert captured.optimizer.norms.steps_since_fit < 13
    assert captured.replays > 0


def test_resuming():
    """From the state after any number of steps: before the capture, and after it."""
    whole, _ = both(cnn4_single)
    for k in range(20):
        whole.take(k)
    for stop in (2, 5, 12):
        _, first = both(cnn4_single)
        for k in range(stop):
            first.take(k)
        memory = io.BytesIO()
        torch.save((first.model.state_dict(), first.optimizer.state_dict()), memory)
        memory.seek(0)
        of_model, of_optimizer = torch.load(memory)
        _, second = both(cnn4_single)
        second.model.load_state_dict(of_model)
        second.optimizer.load_state_dict(of_optimizer)
        for k in range(stop, 20):
            second.take(k)
        second.found, second.kinds = first.found + second.found, first.kinds + second.kinds
        check_same(whole, second)
        assert second.replays > 2


@pytest.mark.parametrize("norms", ["corrected", "lowrank", "exact"])
@pytest.mark.parametrize("norm_layer", ["bn", "gn"])
def test_kinds_of_norms(norms, norm_layer):
    """Those that are never plain are never captured, whichever step was chosen."""
    eager, captured = both(lambda: cnn4_single(norm_layer), norms=norms)
    for training in (eager, captured):
        for k in range(8):
            training.take(k)
    check_same(eager, captured)
    assert (captured.captures > 0) == (norms == "corrected" or (norms, norm_layer) == ("lowrank", "gn"))


def _train_with_others(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    eager, captured = both(cnn4_single)
    for training in (eager, captured):
        for k in range(14):
            training.take(2 * k + rank, n=4 if k == 9 and rank else None)  # one process has a short batch
    check_same(eager, captured)
    distributed.destroy_process_group()
    kinds, weights = captured.kinds, captured.model.head.weight.detach()
    torch.save((kinds, captured.captures, captured.replays, weights), f"{folder}/found{rank}")


@pytest.mark.skipif(not distributed.is_available(), reason="this torch has no torch.distributed")
def test_processes_take_the_same_kind_of_step(tmp_path):
    """Fits are collective: where one process replayed and the other fitted, the latter would wait for good."""
    torch.multiprocessing.spawn(_train_with_others, (str(tmp_path),), nprocs=2)
    (kinds, captures, replays, weights), other = (torch.load(tmp_path / f"found{rank}") for rank in range(2))
    assert kinds == other[0]
    assert "pp" in kinds
    assert "f" in kinds[6:]
    assert captures == other[1] == 1
    assert replays == other[2] + (kinds[9] == "p")
    assert weights.equal(other[3])
