"""Short runs of every method on a few of the digits."""

from typing import Any

import pytest

from pyengm.training import TrainConfig

MANY_STEPS = (
    *("pgd_at", "trades", "mart", "pgd_at_awp", "trades_awp", "mart_awp", "dynamic", "curriculum"),
    *("ates", "fat", "lbgat", "mlcat", "mlcat_wp", "self_adaptive"),
)
OPTIONS = {
    "curriculum": ("accuracy=0.05",),  # a step more after every epoch
    "fgsm_then_pgd": ("fgsm_epochs=1",),
    "trades_awp": ("warmup=1",),
    "mart_awp": ("warmup=1",),
    "liet": ("interval=2",),
    "self_adaptive": ("begin=1",),
    "mlcat_wp": ("warmup=1",),
    "atta": ("reset=1",),
    "atas": ("warmup=1", "reset=1"),
    "fgsm_pgi": ("reset=1",),
    "fgsm_sdi": ("generator_interval=3",),
    "free_at": ("replays=3",),
    "yopo": ("outer=2", "inner=2"),
    "nuat": ("max_lambda=4.5",),
    "sub_at": ("sampling_epochs=2", "dimension=2"),
    "grad_align": ("weight=0.2",),
}

# Runs of several epochs with these are in every run of the tests, those with the others are slow ones.
ONE_OF_A_KIND = (
    "pgd_at",
    "trades_awp",
    "mart",
    "atas",
    "free_at",
    "fgsm_sdi",
    "lbgat",
    "liet",
    "mlcat",
    "self_adaptive",
)


def by_kind(method: str) -> Any:
    """The method as a parameter of a test, slow unless it is one of a kind."""
    return method if method in ONE_OF_A_KIND else pytest.param(method, marks=pytest.mark.slow)


def options_for(method: str, optimizer: str, **changes) -> TrainConfig:
    """A run of three epochs."""
    config = TrainConfig.from_flat(
        model="cnn4",
        width=2,
        norm_layer="gn" if method == "grad_align" and optimizer == "engm" else "bn",
        epochs=3,
        batch_size=30,
        lr=0.02,
        method=method,
        method_options=OPTIONS.get(method, ()),
        attack_steps=2 if method in MANY_STEPS else None,
        optimizer=optimizer,
        augment="shift",
    )
    return config.override(**changes)
