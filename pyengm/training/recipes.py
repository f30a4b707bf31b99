"""What options that are left open become: by data set, and by method on images of CIFAR's kind."""

from typing import Any

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
        "cpu_threads": 1,  # images of 64 pixels keep no second core busy
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

# The authors' own, for CIFAR-10; milestones count epochs from 0. Methods that are not here keep the data set's recipe.
# Curriculum's authors use Adam; it has the recipe of the paper that it was compared in (Wang et al. 2019).
TRADES_EPS = {"eps": 0.031, "step_size": 0.007}  # the authors' rounding of 8/255 and 2/255; in L-infinity only
DYNAMIC = {"lr": 0.01, "weight_decay": 1e-4, "epochs": 120, "milestones": (60, 100)}
ONE_STEP = {"epochs": 30, "milestones": (24, 28), "select_on": "none"}
PRIOR = {"epochs": 110, "milestones": (100, 105), "select_on": "none"}
METHOD_RECIPES: dict[str, dict[str, Any]] = {
    "trades": {**TRADES_EPS, "weight_decay": 2e-4, "epochs": 76, "milestones": (74,)},
    "mart": {**TRADES_EPS, "lr": 0.01, "weight_decay": 3.5e-3, "epochs": 120, "milestones": (74, 89, 99)},
    "pgd_at_awp": {"model": "preact_resnet18", "epochs": 200, "milestones": (100, 150)},
    "trades_awp": {"epochs": 200, "milestones": (100, 150)},
    "mart_awp": {"epochs": 200, "milestones": (100, 150)},
    "dynamic": DYNAMIC,
    "fgsm_then_pgd": DYNAMIC,
    "curriculum": DYNAMIC,
    "fgsm_rs": {"lr": 0.2, "schedule": "cyclic", "pct_start": 0.5, "epochs": 15, "select_on": "none"},
    "grad_align": {"lr": 0.2, "schedule": "cyclic", "pct_start": 0.4, "epochs": 30, "select_on": "none"},
    "ssat": {"lr": 0.01, "epochs": 200, "milestones": (60, 120, 160)},
    "atta": {
        "eps": 0.031,
        "step_size": 0.015,
        "batch_size": 64,
        "weight_decay": 2e-4,
        "epochs": 38,
        "milestones": (30, 36),
        "select_on": "none",
    },
    "atas": {**ONE_STEP, "model": "preact_resnet18"},
    "free_at": {"epochs": 10, "milestones": (5, 7), "select_on": "none"},
    "yopo": {"lr": 0.04, "batch_size": 256, "epochs": 36, "milestones": (30, 34), "select_on": "none"},
    "nuat": {"batch_size": 64, "schedule": "nuat", "epochs": 100},
    "sub_at": {"attack_steps": 1, "epochs": 105, "milestones": (), "select_on": "none"},
    "fgsm_sdi": PRIOR,
    "fgsm_pgi": PRIOR,
}
# Huang et al. 2022, App. B, for ImageNet: folders of images of 64 pixels and more, which are augmented as its are.
LARGE_RECIPES: dict[str, dict[str, Any]] = {
    "atas": {
        "model": "resnet50",
        "eps": 2 / 255,
        "weight_decay": 1e-4,
        "epochs": 90,
        "milestones": (50, 75),
        "select_on": "none",
        "method_options": ("c=12.8", "min_step=4/255", "max_step=8/255", "resolution=32", "dtype=float16"),
    },
    "free_at": {
        "model": "resnet50",
        "eps": 4 / 255,
        "weight_decay": 1e-4,
        "epochs": 45,
        "milestones": (15, 30),
        "select_on": "none",
        "method_options": ("replays=4",),
    },
}
LARGE = 64  # pixels
BOUNDS = ("step_scale", "min_step", "max_step")
GREY_DATA = ("digits", "mnist", "fashionmnist")  # their own recipe serves every method


def recipe_for(
    data: str,
    method: str = "pgd_at",
    norm: str = "linf",
    *,
    image_size: int | None = None,
    eps: float | None = None,
    epochs: int | None = None,
) -> dict[str, Any]:
    """The recipe of a data set (folders have the default one) with what the method's authors changed.

    eps, epochs: those of the run where they are not the recipe's; what is counted in them follows.
    """
    recipe = dict(RECIPES.get(data, DEFAULT_RECIPE))
    if method not in ("natural", "pgd_at"):
        recipe["optimizer"] = "msgd"
    if data in GREY_DATA:
        radius = recipe["radii"][norm] if eps is None else eps
        return recipe | _in_short(recipe, method, norm, radius, recipe["epochs"] if epochs is None else epochs)
    large = image_size is not None and image_size >= LARGE
    if large:
        recipe["augment"] = "resized"
    own = dict(LARGE_RECIPES.get(method) or METHOD_RECIPES.get(method, {}) if large else METHOD_RECIPES.get(method, {}))
    if "epochs" in own:
        own = {"milestones": scale_milestones(recipe["milestones"], own["epochs"] / recipe["epochs"])} | own
    if norm != "linf":  # radius, step and bounds of steps are those of the other norm
        own = {name: value for name, value in own.items() if name not in ("eps", "step_size")}
        if "method_options" in own:
            own["method_options"] = tuple(o for o in own["method_options"] if o.partition("=")[0] not in BOUNDS)
    if eps is not None:
        own.pop("step_size", None)  # the method's own multiple of eps
    return recipe | own


def _in_short(recipe: dict[str, Any], method: str, norm: str, eps: float, epochs: int) -> dict[str, Any]:
    """What the published options become where a run is short and the ball is large: shares of the epochs and of eps."""
    lr = recipe["lr"]
    warmup = (f"warmup={epochs // 4}",)  # weight perturbations from the start keep a network from learning anything
    sizes = (f"step_scale={2 * eps:g}", f"min_step={eps / 2:g}", f"max_step={1.75 * eps:g}") if norm == "linf" else ()
    changes: dict[str, dict[str, Any]] = {
        "pgd_at_awp": {"method_options": warmup},
        "trades_awp": {"method_options": warmup},
        "mart": {"lr": lr / 4},
        "mart_awp": {"lr": lr / 4, "method_options": warmup},
        "fgsm_then_pgd": {"method_options": (f"fgsm_epochs={epochs // 6}",)},
        "curriculum": {"method_options": (f"patience={max(epochs // 12, 1)}", "accuracy=0.9")},
        "grad_align": {"method_options": ("weight=0.2",)},
        "atas": {"method_options": (f"warmup={epochs // 6}", *sizes)},
        "free_at": {"lr": lr / 4, "method_options": ("replays=4",)},
        "yopo": {"lr": 0.4 * lr},  # it adds up the gradients of five passes: the authors' 0.04 for 0.1
    }
    return changes.get(method, {})
