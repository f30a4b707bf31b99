"""The options of `pyengm evaluate`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pyengm.attacks import THREAT_NORMS
from pyengm.evaluation import PROTOCOLS
from pyengm.training.option_types import Choice, Count, OptionGroup, Pixels, Unset


@dataclass(frozen=True)
class EvaluateConfig(OptionGroup):
    """Attack a trained model and print its accuracies. Options that are not given are those of the run folder."""

    target: tyro.conf.Positional[Path]
    """A run folder, whose checkpoints best and last are evaluated and which gets the results (RUN/evaluations); a
    checkpoint of pyengm (.safetensors); or the name of a model, whose weights --weights gives: timm:NAME,
    torchvision:NAME, one of pyengm's, your own MODULE:FUNCTION, or robustbench:NAME, which has its own."""
    weights: Annotated[Path | None, Unset("none")] = None
    """File of weights for the name of a model: .pt or .pth of torch.save, or .safetensors."""
    weights_entry: Annotated[str | None, Unset("the only copy, or the one that is no average")] = None
    """Which copy of the weights to take from a file that holds several, such as state_dict_ema."""
    output: Annotated[str | None, Unset("the tensor itself")] = None
    """For models that return more than logits: the key or the position of the logits, such as logits or 0."""
    width: Annotated[int | None, Unset("that of the architecture's paper")] = None
    """For the name of a model: base number of channels."""
    norm_layer: Annotated[str, Choice(("bn", "gn"))] = "bn"
    """For the name of a model: batch norm or group norm."""
    mean: Annotated[tuple[float, ...] | None, Unset("no normalization")] = None
    """For the name of a model, with --std: the model gets pixels as (x - mean) / std. One value per channel."""
    std: Annotated[tuple[float, ...] | None, Unset("no normalization")] = None
    """Standard deviation of each channel; see --mean."""
    data: Annotated[str | None, Unset("that of the training")] = None
    """Data set whose test images are attacked: a name, a folder, or your own MODULE:FUNCTION."""
    data_dir: Annotated[Path | None, Unset("that of the training")] = None
    """Folder in which data sets and decoded images are kept."""
    download: bool = False
    """Download a data set that is missing."""
    split: Annotated[str, Choice(("test", "train"))] = "test"
    """The split whose images are attacked."""
    indices: Annotated[Path | None, Unset("all")] = None
    """Attack these images of the split only: a .npy file or a text file of integers, counted from 0."""
    image_size: Annotated[int | None, Unset("that of the training, else as they are")] = None
    """Height and width in pixels to which the images of a folder are resized."""
    threat: Annotated[str | None, Choice(THREAT_NORMS), Unset("both")] = None
    """Evaluate under the threat model of this norm only."""
    eps: Annotated[Pixels | None, Unset("that of the training or of the recipe")] = None
    """Radius for --threat in pixel units, such as 8/255."""
    protocol: Annotated[str, Choice(tuple(PROTOCOLS))] = "engm"
    """The attacks that a paper reports: engm (PGD-20 on the margin, AutoAttack), dynamic (FGSM, PGD-10 and PGD-20 on
    the cross-entropy, C&W), atas (PGD-10 and PGD-50 on the cross-entropy, AutoAttack), entropy (PGD-20 on the
    cross-entropy, AutoAttack), or robustbench (AutoAttack)."""
    autoattack: bool = True
    """Run AutoAttack as the protocol has it; --no-autoattack leaves it out."""
    attacks: Annotated[tuple[str, ...], Unset("none")] = ()
    """Further attacks: fgsm, pgd10, pgd50, cw, members of AutoAttack (apgd_ce, apgd_t, fab_t, square), deepfool for
    the mean L2 distance to the decision boundary, or specs, such as pgd:steps=50,loss=ce,norm=linf,eps=1/255..16/255
    (docs/guides/evaluation.md)."""
    autoattack_examples: Annotated[Count | None, Unset("as many as in the run, else all")] = None
    """Number of test images for AutoAttack, spread evenly over the test set."""
    surrogate: Annotated[Path | None, Unset("none")] = None
    """Checkpoint of another model, whose adversarial examples of PGD-20 are tried on the target (a black-box
    attack)."""
    corruptions: Annotated[Path | None, Unset("none")] = None
    """Common corruptions: a folder in the layout of CIFAR-10-C, or imagecorruptions, a library that makes them."""
    save_adversarial: Annotated[Path | None, Unset("no file")] = None
    """File (.safetensors), which must not exist yet, for the adversarial images of every attack on one model under one
    threat model, with labels, verdicts and specs."""
    from_adversarial: Annotated[Path | None, Unset("none")] = None
    """A file of --save-adversarial: its images, made for another model, are tried on this one."""
    robustbench_json: Annotated[Path | None, Unset("no file")] = None
    """File, which must not exist yet, for an entry of RobustBench's leaderboard, of the last model under the first
    threat model."""
    seed: int = 0
    """Seed of the random starts."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ... (auto: cuda if available)."""
    out: Annotated[Path | None, Unset("no file")] = None
    """JSON file for the results, which must not exist yet. An interrupted evaluation resumes from a folder beside it
    (OUT.autoattack); that of a run always resumes, from RUN/autoattack."""
    trust_config: bool = False
    """Run functions that a run folder or a checkpoint names as its model or its data (MODULE:FUNCTION). Read them
    before."""
