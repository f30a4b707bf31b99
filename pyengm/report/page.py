"""The page of a report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from pyengm.report.accuracy_table import accuracy_tables
from pyengm.report.attacked import Attacked
from pyengm.report.configuration import descriptions, environments_of_runs, options_of_runs
from pyengm.report.confusion import ClassAccuracy, Confusion, class_accuracies, confusions
from pyengm.report.curves import training_charts
from pyengm.report.eps_curves import eps_charts
from pyengm.report.source import Source
from pyengm.report.strips import Strip, make_strips
from pyengm.report.summary import summary_of, title_of
from pyengm.report.trust import joined, trust_of


@dataclass(frozen=True)
class AttackedRun:
    """The parts of a page on the images of a run.

    Args:
        label: The run.
        attack: The attack in words.
        images: The number of images.
        classes: The names of the classes.
        strips: Images to look at.
        factor: By which their perturbations are amplified, as text.
        confusions: Without and under the attack.
        per_class: The accuracies of the classes.
    """

    label: str
    attack: str
    images: int
    classes: Sequence[str]
    strips: list[Strip]
    factor: str
    confusions: list[Confusion]
    per_class: list[ClassAccuracy]

    @classmethod
    def of(cls, label: str, attacked: Attacked) -> "AttackedRun":
        """The parts for a run."""
        strips, factor = make_strips(attacked)
        return cls(
            label=label,
            attack=attacked.attack,
            images=len(attacked.labels),
            classes=attacked.classes,
            strips=strips,
            factor=f"{factor:.3g}",
            confusions=confusions(attacked),
            per_class=class_accuracies(attacked),
        )


def render_page(sources: Sequence[Source], attacked: Mapping[str, Attacked]) -> str:
    """The page.

    Args:
        sources: The runs and files.
        attacked: Their images under attack, by label; files have none.

    Returns:
        HTML that is the same to the byte for the same runs.
    """
    environment = Environment(
        loader=PackageLoader("pyengm.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    trusts = {source.label: trust_of(source) for source in sources}
    runs = [source for source in sources if source.options is not None]
    return environment.get_template("report.html").render(
        title=title_of(sources),
        summaries=[summary_of(source, trusts[source.label]) for source in sources],
        tables=accuracy_tables(sources),
        eps_charts=eps_charts(sources),
        training_charts=training_charts(sources),
        without_curves=[source.label for source in sources if not source.metrics],
        attacked=[AttackedRun.of(label, one) for label, one in attacked.items()],
        without_images=[source.label for source in sources if source.label not in attacked],
        trust=joined(list(trusts.values())),
        run_labels=[source.label for source in runs],
        options=options_of_runs(runs),
        environments=environments_of_runs(runs),
        descriptions=descriptions(sources),
    )
