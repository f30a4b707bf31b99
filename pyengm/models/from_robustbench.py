"""Trained models of RobustBench's zoo, where the package robustbench is installed."""

import os
from importlib.util import find_spec
from pathlib import Path

from torch import nn

from pyengm.errors import ConfigError

NORMS = {"linf": "Linf", "l2": "L2"}
DATASETS = ("cifar10", "cifar100", "imagenet")
INSTALL = (
    "robustbench is not installed: pip install git+https://github.com/RobustBench/robustbench (the one at PyPI is "
    "an old version)"
)


def load(name: str, dataset: str, norm: str, root: Path) -> nn.Module:
    """A model of the zoo, with its weights, which are downloaded where they are missing.

    Args:
        name: its name there, such as "Carmon2019Unlabeled".
        dataset: "cifar10", "cifar100" or "imagenet".
        norm: the norm of the threat model that it was trained for, "linf" or "l2".
        root: the folder of downloaded weights.

    Returns:
        The model, from images in [0, 1] to logits, in eval mode.

    Raises:
        ConfigError: robustbench is missing, has no such model, or cannot load it.
    """
    if find_spec("robustbench") is None:
        raise ConfigError(INSTALL)
    if dataset not in DATASETS:
        raise ConfigError(f"RobustBench's zoo has models for {', '.join(DATASETS)}, not for {dataset!r}")
    try:
        from robustbench.utils import load_model

        os.makedirs(root, exist_ok=True)
        return load_model(name, model_dir=str(root), dataset=dataset, threat_model=NORMS[norm]).eval()
    except Exception as error:  # any error of the package: unknown names, the network, other versions of torch
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(
            f"robustbench cannot load {name!r} for {dataset} and {NORMS[norm]}: {text}; robustbench.ai lists the models"
        ) from error
