"""The values of options that are not given, by data set, with the changes of the method's authors."""

from typing import Any

from pyengm.methods import METHODS, ShortRun
from pyengm.training.option_parsing import arguments_of
from pyengm.training.schedule import scale_milestones

# radii: eps per norm; both norms are evaluated. milestones: epochs at which the learning rate is divided by ten.
DEFAULT_RECIPE: dict[str, Any] = {
    "model": "resnet18",
    "norm_layer": "bn",
    "augment": "shift",
    "attack_steps": 10,
    "batch_size": 128,
    "optimizer": "engm",
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "schedule": "piecewise",
    "pct_start": 0.4,
    "epochs": 120,
    "milestones": (75, 90),
    "seed": 0,
    "select_on": "val",
    "method_options": (),
    "optimizer_options": (),
    "radii": {"linf": 8 / 255, "l2": 128 / 255},
}
RECIPES: dict[str, dict[str, Any]] = {
    "digits": {
        **DEFAULT_RECIPE,
        "model": "cnn8",
        "width": 16,
        "augment": "none",
        "attack_steps": 7,
        "batch_size": 24,
        "lr": 0.2,
        "schedule": "cyclic",
        "epochs": 14,
        "milestones": (8.75, 10.5),
        "cpu_threads": 1,  # images of 64 pixels do not keep a second core busy
        "autoattack_examples": 100,
        "radii": {"linf": 0.2, "l2": 0.5},
    },
    "mnist": {
        **DEFAULT_RECIPE,
        "model": "cnn4",
        "lr": 0.01,
        "epochs": 50,
        "milestones": (20, 40),
        "radii": {"linf": 0.3, "l2": 2.0},
    },
    "svhn": {**DEFAULT_RECIPE, "lr": 0.01},
}

LARGE = 64  # pixels of images that are augmented as ImageNet's are
SHORT_DATA = "digits"  # its runs are short: the methods' options are scaled to it
GREY_DATA = ("mnist", "fashionmnist")  # their own recipe holds for every method


def recipe_for(
    data: str,
    method: str = "pgd_at",
    threat: str = "linf",
    *,
    image_size: int | None = None,
    eps: float | None = None,
    epochs: int | None = None,
) -> dict[str, Any]:
    """The recipe of a data set (folders have the default one) with the changes of the method's authors.

    Args:
        data: The name of the data set.
        method: The name of the method in `METHODS`.
        threat: The norm of the threat model, "linf" or "l2".
        image_size: The height and width of the images, where they are resized.
        eps: The radius of the run in pixel units, where it is not that of the recipe; options that depend on it follow.
        epochs: The length of the run, where it is not that of the recipe; options that count epochs follow.

    Returns:
        Options by flat names, and "radii", eps by norm.
    """
    recipe, info = dict(RECIPES.get(data, DEFAULT_RECIPE)), METHODS[method].info
    recipe["optimizer"] = info.optimizer or recipe["optimizer"]
    steps = arguments_of(METHODS[method]).get("steps")
    if steps is None or steps.default != 10:  # the recipe's number is for attacks of many steps
        recipe["attack_steps"] = None if steps is None else steps.default
    if data in (SHORT_DATA, *GREY_DATA):
        radius = recipe["radii"][threat] if eps is None else eps
        run = ShortRun(recipe["lr"], recipe["epochs"] if epochs is None else epochs, radius, threat)
        return {**recipe, **(info.short_recipe(run) if data == SHORT_DATA else info.mnist_recipe(run))}
    is_large = image_size is not None and image_size >= LARGE
    if is_large:
        recipe["augment"] = "resized"
    own: dict[str, Any] = dict((is_large and info.large_recipe) or info.recipe)
    if "epochs" in own:
        own = {"milestones": scale_milestones(recipe["milestones"], own["epochs"] / recipe["epochs"])} | own
    if threat != "linf":  # published radii and step sizes are for L-infinity
        own = {name: value for name, value in own.items() if name not in ("eps", "step_size")}
        words = own.get("method_options", ())
        own["method_options"] = tuple(word for word in words if word.partition("=")[0] not in info.pixel_options)
    if eps is not None:
        own.pop("step_size", None)  # the default of the method, a multiple of eps
    return recipe | own
