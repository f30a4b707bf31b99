"""Devices by name."""

import re

import torch

from pyengm.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """Finds the device of a name.

    Args:
        name: "auto" for a GPU if there is one and the CPU otherwise, or a name of torch such as "cuda:1".

    Raises:
        ConfigError: Where this machine has no such device.
    """
    name = name.lower()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if re.fullmatch(r"cpu|(cuda|mps|xpu)(:\d+)?", name) is None:
        raise ConfigError(f"device {name!r} is unknown; expected auto, cpu, cuda, or one of several, such as cuda:1")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {name!r} cannot be used here: {str(error).splitlines()[0]} This machine has "
            f"{torch.cuda.device_count()} CUDA devices"
        ) from error
    return device
