"""The examples in docstrings run, and the names that users meet first have one."""

import doctest
import inspect

import pytest
import torch

import pyengm

MOST_USED = (
    *("ENGM", "FENGM", "MSGD", "NENGM", "PSClipSGD", "SNGM", "scale_alpha"),
    *("clipped_backward", "per_example_grad_norms", "train_step", "weighted_backward"),
    *("attacks.PGD", "attacks.FGSM", "attacks.DeepFool", "attacks.ThreatModel"),
    *("methods.PGDAT", "methods.TRADES", "methods.MART"),
    *("models.build", "models.Classifier", "models.Normalize", "data.load", "data.as_dataset"),
    *("evaluation.evaluate", "evaluation.parse_spec", "evaluation.standard_error"),
    "ops.philox_uniform",
)
PARTS = (
    "analysis",
    "attacks",
    "data",
    "evaluation",
    "methods",
    "models",
    "ops",
    "optim",
    "pergrad",
    "report",
    "training",
)


def with_examples() -> dict[str, doctest.DocTest]:
    """The examples of every public name."""
    finder = doctest.DocTestFinder(recurse=False, exclude_empty=True)
    found = {}
    for part in PARTS:
        module = getattr(pyengm, part)
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                tests = finder.find(thing, name, globs={"torch": torch, "pyengm": pyengm})
                found |= {f"{part}.{name}": test for test in tests if test.examples}
    return found


EXAMPLES = with_examples()


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name):
    torch.manual_seed(0)
    test = EXAMPLES[name]
    printed: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    result = runner.run(test, out=printed.append)
    assert result.failed == 0, "".join(printed)


def test_the_most_used_names_have_an_example():
    shown = {test.name for test in EXAMPLES.values()} | {"train_step"}
    assert {name.rpartition(".")[2] for name in MOST_USED} <= shown
    assert ">>> " in (pyengm.train_step.__doc__ or "")


def test_the_example_of_train_step():
    globs = {"torch": torch, "pyengm": pyengm}
    (test,) = doctest.DocTestFinder(recurse=False).find(pyengm.train_step, "train_step", globs=globs)
    assert doctest.DocTestRunner().run(test).failed == 0
