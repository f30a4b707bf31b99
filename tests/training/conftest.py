"""Fixtures of the tests of training."""

from pathlib import Path

import pytest

from pyengm.training import TrainConfig


@pytest.fixture(scope="session")
def first_digits(tmp_path_factory) -> Path:
    """A file with the indices of 120 training images, of which 108 train, in 4 batches of 30."""
    path = tmp_path_factory.mktemp("indices") / "first.txt"
    path.write_text("\n".join(map(str, range(120))))
    return path


@pytest.fixture(scope="session")
def tiny(first_digits) -> TrainConfig:
    """A run of a second: 120 digits, a net of a few hundred weights."""
    return TrainConfig.from_flat(
        train_indices=first_digits, model="cnn4", width=2, epochs=3, attack_steps=2, batch_size=30, lr=0.05
    )
