"""Finds the weights of a model in a file: among several copies, and under the prefixes that wrappers add to names."""

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pyengm.errors import CheckpointError
from pyengm.models.normalize import Normalize
from pyengm.models.weights_file import state_dicts

COMPILED = "_orig_mod."  # torch.compile adds it at any place of a name
COUNTER = "num_batches_tracked"  # files of torch before 0.4.1 have none
_AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged?|avg)([._]|$)", re.IGNORECASE)


@dataclass(frozen=True)
class _Candidate:
    """Tensors of a file under the names of the model's parameters and buffers.

    Attributes:
        name: the keys and the prefix that the names of the tensors have in the file, such as "state_dict.model".
        tensors: by the names of the model, with its own tensors where the file may lack them.
        missing: names of the model that the file does not have.
        extra: names below the prefix that the model does not have.
    """

    name: str
    tensors: dict[str, Tensor]
    missing: list[str]
    extra: list[str]

    @property
    def complete(self) -> bool:
        return not self.missing and not self.extra


def match_weights(model: nn.Module, content: Mapping[str, Any], source: str, entry: str | None) -> dict[str, Tensor]:
    """The tensors of a file by the names of a model's parameters and buffers.

    Names in the file may have prefixes, such as "module." (DataParallel), "_orig_mod." (torch.compile) or "model."
    (Lightning), and the weights may be at any depth, as in {"state_dict": ...}. Of weights and an average of them, the
    weights are taken, with a warning. Layers of type `Normalize` that the file does not have keep their values.

    Args:
        model: the model.
        content: what `read_weights` returned.
        source: where it comes from, for messages.
        entry: the copy to take where there are several, such as "state_dict_ema"; None for the only one.

    Returns:
        Tensors by the model's names. They may have other shapes, and of names that share a tensor there may be one.

    Raises:
        CheckpointError: no entry, or several, have the names of the model.
    """
    candidates = list(_candidates(model, content))
    if not candidates:
        raise CheckpointError(f"{source} holds no tensors")
    matching = {candidate.name: candidate for candidate in candidates if candidate.complete}
    if entry is not None:
        if entry not in matching:
            known = ", ".join(name or "(the whole file)" for name in matching) or "none"
            raise CheckpointError(f"{source} has no weights of this model as {entry!r}; as these it has: {known}")
        return matching[entry].tensors
    if not matching:
        raise CheckpointError(f"{source} belongs to another architecture: {_difference(candidates)}")
    return _choose(matching, source).tensors


def _choose(matching: Mapping[str, _Candidate], source: str) -> _Candidate:
    if len(matching) == 1:
        return next(iter(matching.values()))
    names = ", ".join(name or "(the whole file)" for name in matching)
    several = f"{source} holds several copies of the weights: {names}"
    plain = [candidate for name, candidate in matching.items() if not _AVERAGED.search(name)]
    if len(plain) != 1:
        raise CheckpointError(f"{several}; choose one with --weights-entry (in Python entry=)")
    used = plain[0].name or "(the whole file)"
    warnings.warn(f"{several}; {used} is used (--weights-entry, in Python entry=, chooses another)", stacklevel=5)
    return plain[0]


def _candidates(model: nn.Module, content: Mapping[str, Any]) -> Iterator[_Candidate]:
    """A candidate for each place in the file, and for each prefix of the names there."""
    own = model.state_dict()
    memory = {name: (t.data_ptr(), t.shape) for name, t in own.items()}
    kept = {name for name in own if name.endswith(COUNTER) or _is_normalize(model, name)}
    for path, tensors in state_dicts(content):
        found = {name.replace(COMPILED, ""): tensor for name, tensor in tensors.items()}
        for prefix, own_prefix in _prefixes(list(found), list(own)):
            below = {name[len(prefix) :]: tensor for name, tensor in found.items() if name.startswith(prefix)}
            target = {name.replace(COMPILED, "")[len(own_prefix) :]: name for name in own if _below(name, own_prefix)}
            given = {target[name]: tensor for name, tensor in below.items() if name in target}
            given |= {name: own[name] for name in own if name not in given and name in kept}
            shared = {memory[name] for name in given}
            missing = [name for name in own if name not in given and memory[name] not in shared]
            extra = [prefix + name for name in below if name not in target]
            yield _Candidate(".".join(filter(None, (path, prefix.rstrip(".")))), given, missing, extra)


def _below(name: str, prefix: str) -> bool:
    return name.replace(COMPILED, "").startswith(prefix)


def _prefixes(names: list[str], own: list[str]) -> list[tuple[str, str]]:
    """Pairs of prefixes, of the names in the file and of the model's, that make names equal; one of a pair is empty."""
    own = [name.replace(COMPILED, "") for name in own]
    pairs = [("", "")]
    pairs += [(name[: -len(end)], "") for end in _anchors(own) for name in names if name.endswith("." + end)]
    pairs += [("", name[: -len(end)]) for end in _anchors(names) for name in own if name.endswith("." + end)]
    return list(dict.fromkeys(pairs))


def _anchors(names: list[str]) -> list[str]:
    """Two names by which a prefix is found: the first one, and the last one that is no counter."""
    weights = [name for name in names if not name.endswith(COUNTER)]
    return [*weights[:1], *weights[-1:]]


def _is_normalize(model: nn.Module, name: str) -> bool:
    return isinstance(model.get_submodule(name.rpartition(".")[0]), Normalize)


def _difference(candidates: list[_Candidate]) -> str:
    """The differences of the candidate that is closest to the model."""
    likely = [candidate for candidate in candidates if len(candidate.tensors) > len(candidate.missing)]
    closest = max(likely or candidates[:1], key=lambda candidate: len(candidate.tensors))
    problems = [f"{name} is missing" for name in closest.missing]
    problems += [f"{name} is not in the model" for name in closest.extra]
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    return "; ".join(problems[:3]) + more
