"""Checks of the images of a run before its first epoch, whose faults would otherwise end it after the last."""

import math

from pyengm.attacks import ThreatModel
from pyengm.data import ImageDataset
from pyengm.errors import ConfigError, DataError
from pyengm.training.config import TrainConfig


def check_test_images(config: TrainConfig, train: ImageDataset, test: ImageDataset, side: int) -> None:
    """Checks that the model that is trained can be evaluated.

    Args:
        config: Resolved options.
        train: The training images.
        test: The test images.
        side: The height and width that the model takes.

    Raises:
        DataError: The test images have another shape or other classes.
        ConfigError: More test images are to be attacked than there are, or the radius is as large as the images.
    """
    expected = (train.channels, side, side)
    if test.shape != expected:
        raise DataError(
            f"{test.name}: the test images have shape {_shape(test.shape)}, and the model is trained on "
            f"{_shape(expected)}: give --image-size {side}"
        )
    if test.classes != train.classes:
        raise DataError(f"{test.name}: expected the classes of the training images among the test images")
    few = config.evaluation.autoattack_examples
    if few is not None and few > len(test):
        raise ConfigError(f"autoattack_examples is {few}; expected at most {len(test)}, the number of test images")
    for threat in config.threats():
        _check_radius(threat, expected)


def _check_radius(threat: ThreatModel, shape: tuple[int, ...]) -> None:
    diameter = math.sqrt(math.prod(shape))
    if threat.norm == "l2" and threat.eps >= diameter:
        raise ConfigError(
            f"eps is {threat.eps:g} in L2, and no two images of shape {_shape(shape)} are further apart than "
            f"{diameter:.4g}; {threat.eps:g}/255?"
        )


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
