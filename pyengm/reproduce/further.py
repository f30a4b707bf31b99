"""Values of a table beyond the evaluation of a run: gradients along it, and what two runs show together."""

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from pyengm.analysis import cross_robustness, instances, loss_gap
from pyengm.attacks import PGD, Transfer
from pyengm.data import ImageDataset
from pyengm.errors import ConfigError
from pyengm.evaluation.attack_spec import create_attack
from pyengm.evaluation.model_sources import digest_of
from pyengm.evaluation.one_threat import evenly_spread
from pyengm.models import load_checkpoint
from pyengm.training import RunFolder, TrainConfig, load_split
from pyengm.utils.device import pick_device
from pyengm.utils.io import atomic_write, make_dirs

Values = dict[str, float]
# The attacks of Wang et al. 2019, Table 2, made on the surrogate; step size and loss as in PROTOCOLS.
TRANSFERS = {
    "fgsm": "fgsm",
    "pgd10": "pgd:steps=10,step_size=eps/4,loss=ce",
    "pgd20": "pgd:steps=20,step_size=eps/4,loss=ce",
    "cw": "cw",
}
OF_A_RUN = {"probe": ("mu", "sigma2"), "instances": ("ratio",)}
OF_TWO_RUNS = {"transfer": tuple(TRANSFERS), "loss": ("difference", "ratio")}
"""Groups of values, with their keys. `probe` and `instances` need the records of these names; the others two runs."""
LOSS_EXAMPLES = 1000


def further_values(
    groups: Collection[str], run: Path, other: Path | None, cache: Path, device: str
) -> dict[str, Values]:
    """Computes the values of a row that the results of its run do not have, in this process alone.

    Args:
        groups: Groups of `OF_A_RUN` and `OF_TWO_RUNS`.
        run: The folder of the row's run, which is complete.
        other: The folder of the run beside it, or None.
        cache: A file in which the values of two runs are kept, with the digests of their weights.
        device: A name of torch, or "auto".

    Returns:
        Values by group and key; shares are in [0, 1].
    """
    found = {group: _OF_A_RUN[group](RunFolder(run)) for group in groups if group in OF_A_RUN}
    pairs = [group for group in groups if group in OF_TWO_RUNS]
    if pairs and other is not None:
        weights = {"run": digest_of(RunFolder(run).last), "other": digest_of(RunFolder(other).last)}
        kept = json.loads(cache.read_text()) if cache.is_file() else {}
        if kept.get("weights") != weights or not set(pairs) <= set(kept["values"]):
            values = {group: _OF_TWO_RUNS[group](RunFolder(run), RunFolder(other), device) for group in pairs}
            kept = {"weights": weights, "values": values}
            make_dirs(cache.parent)
            atomic_write(cache, lambda path: path.write_text(json.dumps(kept, indent=2) + "\n"))
        found |= {group: kept["values"][group] for group in pairs}
    return found


def _probe(run: RunFolder) -> Values:
    """mu and sigma^2 of the probe, in the mean over all epochs."""
    rows = run.read_metrics()
    return {key: float(np.mean([row[f"probe_{key}"] for row in rows])) for key in OF_A_RUN["probe"]}


def _instances(run: RunFolder) -> Values:
    logs = [dict(np.load(path, allow_pickle=False)) for path in sorted(run.instances.glob("epoch-*.npz"))]
    if not logs:
        raise ConfigError(f"{run.path} has no log of its training images")
    labels = np.zeros(int(logs[-1]["index"].max()) + 1, int)  # the ratio depends on none
    return {"ratio": float(instances(logs, labels).ratios[0])}


def _transfer(run: RunFolder, surrogate: RunFolder, device: str) -> Values:
    """Accuracy of the last weights under adversarial examples of the surrogate's last weights, on all test images."""
    config = TrainConfig.load(run.config)
    images, labels = _images(load_split(config, "test"))
    model, other = (_load(one, device) for one in (run, surrogate))
    threat = config.threats()[0]
    attacks = {name: Transfer(create_attack(spec, threat), other) for name, spec in TRANSFERS.items()}
    found = cross_robustness({"run": model}, attacks, images, labels)
    return dict(zip(TRANSFERS, found.accuracy[0].tolist(), strict=True))


def _loss(run: RunFolder, other: RunFolder, device: str) -> Values:
    """The mean loss of the other's last weights under PGD-10 on training images, less that of the run's, and by it."""
    config = TrainConfig.load(run.config)
    data = load_split(config, "train")
    images, labels = _images(data.subset(evenly_spread(len(data), LOSS_EXAMPLES)))
    models = [_load(one, device) for one in (other, run)]
    attack = PGD(config.attack.eps, config.attack.eps / 4, 10, norm=config.attack.threat)
    gap = loss_gap(models[0], images, labels, attack, attack, model_b=models[1])
    return {"difference": float(gap.gap.mean()), "ratio": gap.ratio}


def _load(run: RunFolder, device: str) -> nn.Module:
    return load_checkpoint(run.last)[0].to(pick_device(device))


def _images(data: ImageDataset) -> tuple[Tensor, Tensor]:
    """(n, ...) images in [0, 1], and (n,) labels."""
    images = data.images[:]
    return (images if images.is_floating_point() else images.float() / 255), data.labels


_OF_A_RUN: Mapping[str, Callable[[RunFolder], Values]] = {"probe": _probe, "instances": _instances}
_OF_TWO_RUNS: Mapping[str, Callable[[RunFolder, RunFolder, str], Values]] = {"transfer": _transfer, "loss": _loss}
