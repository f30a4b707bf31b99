"""Lightning: what it does around the backward pass stays right for per-example losses, and wrong habits raise."""

import logging
import warnings

import pytest
import torch
from helpers.loops import theta
from torch.nn import functional as F
from torch.utils.data import DataLoader

import pyengm
from pyengm.examples.problem import ALPHA, BATCH, LR, digits, loader, network
from pyengm.integrations.lightning import PerExampleLosses

lightning = pytest.importorskip("lightning")
Classifier = pytest.importorskip("pyengm.examples.lightning_module").Classifier


def fit(module, data=None, **options):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )
        trainer.fit(module, loader() if data is None else data)
    return trainer


def plain(optimizer, net, clip=None, alpha=None):
    """The loop that Lightning is compared with."""
    for x, y in loader():
        x.requires_grad_()
        losses = F.cross_entropy(net(x), y, reduction="none")
        optimizer.zero_grad()
        if alpha is None:
            optimizer.backward(losses, inputs=x)
        else:
            pyengm.clipped_backward(losses, net, alpha)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
    return theta(net)


def expected(**options):
    net = network()
    return plain(pyengm.ENGM(net.parameters(), lr=LR, alpha=ALPHA), net, **options)


def test_gradient_accumulation():
    module = Classifier(network())
    fit(module, DataLoader(digits(), BATCH // 4), accumulate_grad_batches=4)
    torch.testing.assert_close(theta(module.net), expected(), rtol=0, atol=1e-5)


def test_clipping_of_the_whole_gradient():
    module = Classifier(network())
    fit(module, gradient_clip_val=0.01)
    torch.testing.assert_close(theta(module.net), expected(clip=0.01), rtol=0, atol=1e-6)


@pytest.mark.parametrize("automatic", [True, False])
def test_loss_scaling(automatic):
    from lightning.pytorch.plugins import MixedPrecision

    class Scaled(Classifier):
        def training_step(self, batch, batch_idx):
            x, y = batch
            with torch.autocast("cpu", enabled=False):
                losses = F.cross_entropy(self.net(x), y, reduction="none")
            if self.automatic_optimization:
                return losses
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(losses)
            optimizer.step()
            return None

    module, scaler = Scaled(network()), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    module.automatic_optimization = automatic
    fit(module, plugins=MixedPrecision("16-mixed", "cpu", scaler))
    assert scaler.get_scale() == 2.0**10
    torch.testing.assert_close(theta(module.net), expected(), rtol=0, atol=1e-6)

    class Half(Scaled):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx).half()

    if automatic:
        with pytest.raises(pyengm.errors.ConfigError, match=r"return losses\.float\(\)"):
            fit(Half(network()), plugins=MixedPrecision("16-mixed", "cpu", scaler))


def test_inputs():
    class WithInputs(Classifier):
        def training_step(self, batch, batch_idx):
            x, y = batch
            self.inputs = x.requires_grad_()
            return {"loss": F.cross_entropy(self.net(x), y, reduction="none")}

        def configure_optimizers(self):
            return pyengm.NENGM(self.parameters(), lr=LR, alpha=0.05)

    module, net = WithInputs(network()), network()
    fit(module)
    assert module.inputs is None
    assert module.example_stats.input_norms.shape == (BATCH,)
    weights = plain(pyengm.NENGM(net.parameters(), lr=LR, alpha=0.05), net)
    torch.testing.assert_close(theta(module.net), weights, rtol=0, atol=1e-6)


def test_an_optimiser_of_torch():
    class WithAdamW(Classifier):
        alpha = 2.0

        def on_train_batch_end(self, *args):
            assert (self.example_stats.weights < 1).any()

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    module, net = WithAdamW(network()), network()
    fit(module)
    weights = plain(torch.optim.AdamW(net.parameters(), lr=1e-3), net, alpha=2.0)
    torch.testing.assert_close(theta(module.net), weights, rtol=0, atol=1e-5)


class Habit(lightning.LightningModule):
    """A module as it is written without pyengm, but for the optimiser."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return pyengm.ENGM(self.parameters(), lr=LR, alpha=ALPHA)


def test_the_wrong_habits_raise():
    class Manual(Habit):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            self.optimizers().zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            self.optimizers().step()

    class Mean(PerExampleLosses, Habit):
        pass

    class Two(Classifier):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            self.manual_backward(super().training_step(batch, batch_idx))

        def configure_optimizers(self):
            return [super().configure_optimizers(), super().configure_optimizers()]

    for habit in (Habit(), Manual()):
        before = theta(habit.net)
        with pytest.raises(RuntimeError, match=r"optimizer\.backward\(losses\)"):
            fit(habit)
        assert theta(habit.net).equal(before)
    with pytest.raises(ValueError, match=r"per-example losses of shape \(n,\)"):
        fit(Mean())
    two = Two(network())
    two.automatic_optimization = False
    with pytest.raises(pyengm.errors.ConfigError, match="there are 2 optimisers"):
        fit(two)


def test_checkpoints_keep_the_state(tmp_path):
    module = Classifier(network())
    trainer = fit(module)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = Classifier(network())
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(again, loader(), ckpt_path=tmp_path / "last.ckpt")
    twice, net = Classifier(network()), network()
    fit(twice)
    optimizer = pyengm.ENGM(net.parameters(), lr=LR, alpha=ALPHA)
    plain(optimizer, net)
    torch.testing.assert_close(theta(again.net), plain(optimizer, net), rtol=0, atol=1e-5)


def test_fabric():
    """Fabric wraps the optimiser with its own methods, backward among them."""
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    net = network()
    model, optimizer = fabric.setup(net, pyengm.ENGM(net.parameters(), lr=LR, alpha=ALPHA))
    for x, y in fabric.setup_dataloaders(loader()):
        optimizer.zero_grad()
        optimizer.backward(F.cross_entropy(model(x), y, reduction="none"))
        optimizer.step()
    torch.testing.assert_close(theta(net), expected(), rtol=0, atol=1e-6)
    assert optimizer.statistics()["norm_mean"] > 0
    optimizer.zero_grad()
    fabric.backward(F.cross_entropy(model(x), y))
    with pytest.raises(RuntimeError, match=r"optimizer\.backward\(losses\)"):
        optimizer.step()
