"""Tables of the documentation from the registries and records of the code, in Markdown."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from pyengm import analysis, errors
from pyengm.cli.analyses import ANALYSES
from pyengm.data import DATASETS
from pyengm.evaluation import ATTACKS, DETAILS, FURTHER, PROTOCOLS
from pyengm.evaluation.attack_registry import TITLES
from pyengm.methods import METHODS
from pyengm.models import list_models
from pyengm.optim import CLOSURE_OPTIMIZERS, OPTIMIZERS
from pyengm.reproduce import load_table, table_names
from pyengm.training import Logger, describe
from pyengm.training import run_folder as run_folder_module
from pyengm.utils.file_format import RESULTS_FORMAT, RUN_FORMAT

RESULTS = Path(__file__).resolve().parents[2] / "bench" / "results"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '&#124;') for cell in line)} |" for line in lines)


def api_link(name: str, title: str) -> str:
    """A link to the API reference."""
    return f"{{py:obj}}`{title} <{name}>`"


def measured_steps() -> dict[str, str]:
    """The measured time of a step of each method, in natural steps, from the file of the benchmark."""
    text = (RESULTS / "methods_cpu_intel_xeon.txt").read_text()
    return dict(re.findall(r"^test_step\[(\w+), ideal [\d.]+\] .* ms +([\d.]+) \(", text, re.MULTILINE))


def methods() -> str:
    """Every method: class, paper, passes, cost."""
    measured = {"natural": "1, the unit"} | measured_steps()
    rows = []
    for name, kind in METHODS.items():
        passes = kind.info.passes
        cost = f"{sum(passes.of()) / 3:.2f}"
        link = api_link(f"pyengm.methods.{kind.__name__}", kind.__name__)
        rows.append((f"`{name}`", link, kind.info.description, str(passes), cost, measured.get(name, "not measured")))
    return table(("`--method`", "class", "what it is", "F + D + W", "natural steps", "measured"), rows)


def optimizers() -> str:
    """Every optimiser."""
    rows = []
    for name, kind in (OPTIMIZERS | CLOSURE_OPTIMIZERS).items():
        needs = "closure" if kind.info.takes_closure else "losses, inputs" if kind.info.needs_inputs else "losses"
        link = api_link(f"pyengm.optim.{kind.__name__}", kind.__name__)
        rows.append((f"`{name}`", link, kind.info.description, "yes" if kind.info.weighs_examples else "no", needs))
    return table(("`--optimizer`", "class", "what it is", "weighs examples", "a step takes"), rows)


def attacks() -> str:
    """Every attack of an evaluation, with the options of its spec."""
    rows = []
    for name, info in ATTACKS.items():
        options = ", ".join(f"`{option}`" for option in info.options) or "none"
        rows.append((f"`{name}`", info.title, " and ".join(info.norms), options))
    return table(("spec", "attack", "norms", "options"), rows)


def protocols() -> str:
    """The protocols of the papers."""
    rows = ((f"`{name}`", ", ".join(f"`{one}`" for one in attacks)) for name, attacks in PROTOCOLS.items())
    return table(("`--protocol`", "attacks besides the natural accuracy"), rows)


def datasets() -> str:
    """The data sets by name."""
    return ", ".join(f"`{name}`" for name in DATASETS)


def models() -> str:
    """pyengm's own models by name."""
    return ", ".join(f"`{name}`" for name in list_models())


def paper_tables() -> str:
    """The tables of `pyengm reproduce`."""
    loaded = {name: load_table(name) for name in table_names()}
    return table(("name", "table"), ((f"`{name}`", one.title) for name, one in loaded.items()))


def analyses() -> str:
    """Every analysis of the command line, by the first sentence and the references of its function."""
    rows = []
    for name in ANALYSES:
        text = (getattr(analysis, name).__doc__ or "").strip().partition("\n\n")[0]
        references = _doc(getattr(analysis, name)).partition("References:\n")[2].partition("\n\n")[0]
        rows.append((api_link(f"pyengm.analysis.{name}", name), " ".join(text.split()), " ".join(references.split())))
    return table(("name", "what it computes", "source"), rows)


def error_classes() -> str:
    """Every exception, its other base class, and the exit status of a command that it ends."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.PyengmError)]
    rows = []
    for kind in kinds:
        bases = " and ".join(f"`{base.__name__}`" for base in kind.__bases__)
        text = (kind.__doc__ or "").partition("\n")[0]
        rows.append((api_link(f"pyengm.errors.{kind.__name__}", kind.__name__), text, bases, kind.exit_status))
    return table(("error", "meaning", "is also", "exit status"), rows)


def formats() -> str:
    """The formats of files that other programs read."""
    results = "`results.json`, the files in `evaluations/` and those of `pyengm evaluate --out`"
    run = "`metrics.jsonl`, `timing.jsonl`, `environment.json`"
    return table(("format", "files"), ((f"`{RESULTS_FORMAT}`", results), (f"`{RUN_FORMAT}`", run)))


def metrics() -> str:
    """The keys of `metrics.jsonl` and `timing.jsonl`, from the docstring of `Logger`."""
    return keys_as_code(_doc(Logger).partition("\n\n")[2])


def environment() -> str:
    """The keys of `environment.json`, from the docstring of `describe`."""
    text = _doc(describe).partition("Returns:\n")[2]
    lines = [line.removeprefix("    ") for line in text.splitlines()]
    return keys_as_code("\n".join(lines))


def run_folder() -> str:
    """The files of a run, from the module that writes them."""
    text = (run_folder_module.__doc__ or "").partition("\n\n")[2]
    return f"```text\n{text.strip()}\n```"


def result_keys() -> str:
    """The keys of the accuracies of a model in results."""
    return table(("key", "accuracy, or mean distance"), ((f"`{key}`", title) for key, title in TITLES.items()))


def result_details() -> str:
    """The keys of `results.json` beside the models."""
    return ", ".join(f"`{name}`" for name in ("threats", "images", "robust_overfitting", "curves", *DETAILS, *FURTHER))


def measurements() -> str:
    """The files of the benchmarks, word for word."""
    parts = []
    for path in sorted(RESULTS.glob("*.txt")):
        if path.name.startswith(("train_help", "terminal")):
            continue
        parts += [f"### {path.name}", "", "```text", path.read_text().rstrip(), "```", ""]
    return "\n".join(parts)


def keys_as_code(text: str) -> str:
    """Lists of the form "- key, key: text", with the keys as code."""

    def as_code(line: re.Match[str]) -> str:
        return f"- {', '.join(f'`{key}`' for key in line[1].split(', '))}:"

    return re.sub(r"^- (\w+(?:, \w+)*):", as_code, text.replace("*", r"\*"), flags=re.MULTILINE)


def _doc(thing: object) -> str:
    return inspect.getdoc(thing) or ""


TABLES: Mapping[str, Callable[[], str]] = {
    "methods": methods,
    "optimizers": optimizers,
    "attacks": attacks,
    "protocols": protocols,
    "datasets": datasets,
    "models": models,
    "paper_tables": paper_tables,
    "analyses": analyses,
    "errors": error_classes,
    "formats": formats,
    "metrics": metrics,
    "environment": environment,
    "run_folder": run_folder,
    "result_keys": result_keys,
    "result_details": result_details,
    "measurements": measurements,
}
