"""The state of an optimiser in the form that torch's tools keep: all of it in \"state\" and \"param_groups\"."""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyengm.errors import ConfigError

NAME = "optimizer"
SGD_OPTIONS = {"lr", "momentum", "dampening", "weight_decay", "nesterov"}
SGD_STATE = {"momentum_buffer"}


def merge_state(plain: dict[str, Any], name: str, parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Puts the optimiser's name and the state of its parts into the first group.

    Distributed checkpoints keep nothing but the state of parameters and the values of groups, which they take apart
    and load only where there is a value of the same structure; so the state of a part is one text, in JSON. Tensors
    are their bytes in it, in base64: exact, and a quarter of the decimal numbers.

    Args:
        plain: What torch.optim.Optimizer.state_dict returned.
        name: The name; empty for none.
        parts: The states of the parts by name.

    Returns:
        The same state with another first group.
    """
    first, *rest = plain["param_groups"]
    added: dict[str, Any] = {NAME: name} if name else {}
    added |= {part: json.dumps(_to_json(state)) for part, state in parts.items()}
    return plain | {"param_groups": [first | added, *rest]}


def split_state(
    merged: Mapping[str, Any], parts: Iterable[str], params: Sequence[Tensor]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The plain state and the states of the parts, where there are any; tensors lie on the device of the parameters."""
    device = params[0].device if params else torch.device("cpu")
    groups = [dict(group) for group in merged["param_groups"]]
    found = {}
    for group in groups:
        group.pop(NAME, None)
        for part in parts:
            if part in group:
                found[part] = _from_json(json.loads(group.pop(part)), device)
    return {"state": merged["state"], "param_groups": groups}, found


def check_state(merged: Mapping[str, Any], name: str) -> None:
    """Raises ConfigError for the state of an optimiser that is neither torch.optim.SGD nor the one of that name."""
    groups, states = merged["param_groups"], merged["state"].values()
    names = {group[NAME] for group in groups if NAME in group}
    if names - {name}:
        raise ConfigError(f"the state is that of {', '.join(names)}, and this is {name}: load it into the former")
    lacking = SGD_OPTIONS - set.intersection(*(set(group) for group in groups)) if groups else set()
    foreign = set().union(*states) - SGD_STATE
    if not names and (lacking or foreign):
        what = f"has {', '.join(sorted(foreign))}" if foreign else f"has no {', '.join(sorted(lacking))}"
        raise ConfigError(
            f"the state {what}: it is of another kind of optimiser (Adam?), and {name} takes its own or that of "
            "torch.optim.SGD; start it afresh and load the weights alone"
        )


def _to_json(value: Any) -> Any:
    """The value with tensors and tuples, which JSON has not, as {type: contents}."""
    if torch.is_tensor(value):
        content = value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes()
        return {str(value.dtype): [*value.shape, base64.b64encode(content).decode()]}
    if isinstance(value, dict):
        return {"dict": {key: _to_json(one) for key, one in value.items()}}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_to_json(one) for one in value]}
    return value


def _from_json(value: Any, device: torch.device) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, contents),) = value.items()
    if kind == "dict":
        return {key: _from_json(one, device) for key, one in contents.items()}
    if kind in ("list", "tuple"):
        return {"list": list, "tuple": tuple}[kind](_from_json(one, device) for one in contents)
    *shape, text = contents
    content = torch.from_numpy(np.frombuffer(bytearray(base64.b64decode(text)), dtype=np.uint8))
    return content.view(getattr(torch, kind.removeprefix("torch."))).reshape(shape).to(device)
