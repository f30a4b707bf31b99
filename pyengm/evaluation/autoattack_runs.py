"""AutoAttack on a whole data set, which can be interrupted and resumed."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyengm.attacks import AutoAttack
from pyengm.attacks.autoattack import is_correct
from pyengm.data import ImageDataset, Loader
from pyengm.errors import CheckpointError
from pyengm.evaluation.autoattack_warnings import recorded_messages
from pyengm.evaluation.hashes import hash_of_images, hash_of_model
from pyengm.utils.io import atomic_write, make_dirs


@dataclass(frozen=True, eq=False)
class AutoAttackVerdicts:
    """Which members of AutoAttack each of N images survived.

    Args:
        members: the members that ran, in order.
        stages_survived: (N,) int64 on the CPU. It is 0 for an image that is misclassified without an attack, otherwise
            1 plus the number of members before the first one that fooled the model.
        messages: warnings of the package, see `autoattack_warnings`.
    """

    members: tuple[str, ...]
    stages_survived: Tensor
    messages: tuple[str, ...] = ()

    @property
    def robust(self) -> Tensor:
        """(N,) bool: whether no member fooled the model."""
        return self.stages_survived > len(self.members)

    def accuracies(self) -> dict[str, float]:
        """Accuracies in [0, 1]: "natural", and by member the one under this member and those before it."""
        stages = ("natural", *self.members)
        return {name: (self.stages_survived > i).double().mean().item() for i, name in enumerate(stages)}


def run_autoattack(
    attack: AutoAttack,
    model: nn.Module,
    data: ImageDataset,
    *,
    device: torch.device,
    state: Path | None = None,
    progress: Callable[[int, int, float], None] = lambda done, total, robust: None,
) -> AutoAttackVerdicts:
    """Attacks a whole data set with AutoAttack; the batches are independent.

    Args:
        attack: AutoAttack or some of its members.
        model: classifier of images in [0, 1], on `device`; restored afterwards.
        data: N images to attack.
        device: device of the model.
        state: folder for a state file with the verdicts so far, written atomically after each member of each batch. A
            later call resumes from it, to the same verdicts, or returns them at once. The file's name is a digest of
            what the verdicts depend on (weights, threat model, members, batch size, seed, images), so that the folder
            can hold the files of many runs.
        progress: called after each pass, which is one member on one batch, with the number of passes done, their total
            number, and the robust accuracy in [0, 1] on the images of the batches so far.

    Returns:
        The verdicts on all images.

    Raises:
        CheckpointError: the state file is damaged.
        StorageError: the state file cannot be written.
        ConfigError, DataError, NonFiniteError: for the reasons that `AutoAttack` lists.
    """
    loader = Loader(data, attack.batch_size, device=device, seed=attack.seed, augment="none", shuffle=False)
    first = next(loader.epoch(0))
    with recorded_messages() as messages, attack.prepared_members(model, first.x, first.y) as members:
        names, per_batch, total = tuple(members), len(members), len(loader) * len(members)
        saved = None if state is None else RunState(state, identity_of(attack, names, model, data))
        done, survived = (0, torch.zeros(len(data), dtype=torch.int64)) if saved is None else saved.load(len(data))
        messages += [message for message in (saved.messages if saved else ()) if message not in messages]
        first_batch = done // per_batch
        for number, batch in enumerate(loader.epoch(0, start=first_batch), start=first_batch):
            offset = number * attack.batch_size
            current = survived[offset : offset + len(batch.y)]  # a view of the images of this batch
            if done == number * per_batch:
                current.copy_(is_correct(model, batch.x, batch.y))
            for stage in range(done - number * per_batch + 1, per_batch + 1):
                active = (current == stage).nonzero().squeeze(1)
                rows = active.to(device)
                current[active] += members[names[stage - 1]](batch.x[rows], batch.y[rows])[1].cpu()
                done += 1
                if saved is not None:
                    saved.save(done, survived, messages)
                robust = (survived[:offset] > per_batch).sum() + (current > stage).sum()
                progress(done, total, robust.item() / (offset + len(current)))
    return AutoAttackVerdicts(names, survived, tuple(messages))


class RunState:
    """The state file of a run of AutoAttack.

    Args:
        folder: folder of the file.
        identity: all that the verdicts depend on, as JSON values; the file's name is a digest of it.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]):
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.path = Path(folder) / f"{identity['norm']}-{digest[:16]}.json"
        self.identity = identity
        self.messages: list[str] = []  # the package's warnings during the passes that are done

    def load(self, size: int) -> tuple[int, Tensor]:
        """Reads the state, or starts a new one.

        Args:
            size: number of images.

        Returns:
            The number of passes done, and the stages survived by each image, (size,) int64.

        Raises:
            CheckpointError: the file is damaged.
        """
        if not self.path.exists():
            return 0, torch.zeros(size, dtype=torch.int64)
        try:
            saved = json.loads(self.path.read_text())
            done, survived = saved.pop("passes_done"), torch.tensor(saved.pop("stages_survived"), dtype=torch.int64)
            self.messages = saved.pop("messages")
            if saved != self.identity or survived.shape != (size,):
                raise ValueError("the file belongs to another run")
        except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.path} is damaged; remove it, and its images are attacked anew") from error
        return done, survived

    def save(self, done: int, survived: Tensor, messages: Sequence[str]) -> None:
        """Writes the state atomically.

        Args:
            done: number of passes done.
            survived: stages survived by each image.
            messages: the package's warnings so far.

        Raises:
            StorageError: it cannot be written.
        """
        make_dirs(self.path.parent)
        state = {"passes_done": done, "stages_survived": survived.tolist(), "messages": list(messages)}
        text = json.dumps(self.identity | state) + "\n"
        atomic_write(self.path, lambda path: path.write_text(text))


def identity_of(attack: AutoAttack, members: tuple[str, ...], model: nn.Module, data: ImageDataset) -> dict[str, Any]:
    """All that the verdicts of a run depend on, as JSON values.

    Args:
        attack: the attack.
        members: its members that run.
        model: the model under attack.
        data: the images to attack.
    """
    return {
        "norm": attack.threat.norm,
        "eps": attack.threat.eps,
        "version": attack.version,
        "members": list(members),
        "queries": attack.queries,
        "batch_size": attack.batch_size,
        "seed": attack.seed,
        "model": hash_of_model(model),
        "images": hash_of_images(data),
    }
