"""The benchmarks compare steps that return the same gradient; libraries that are not installed are skipped."""

import pytest
from baselines.per_example_libraries import BASELINES, OURS, STEPS
from baselines.per_example_models import MODELS, Problem, make
from tools.compare_libraries import compare, gradient_error, median_norm
from tools.first_call import CALLS, measure
from torch import nn

SIZES = {"resnet18": {"width": 8}, "vit_tiny": {"n": 2, "depth": 2}}
MODELS_OF_TIMM = ("vit", "vit, frozen tables", "vit_tiny")


def small(name: str) -> Problem:
    if name in MODELS_OF_TIMM:
        pytest.importorskip("timm")
    return make(name, **{"n": 4} | SIZES.get(name, {})).double()


def expect_single_examples(name: str, problem: Problem) -> None:
    alpha = median_norm(problem)  # clips some examples, not all
    try:
        step = STEPS[name].build(problem, alpha)
    except ImportError as error:
        pytest.skip(f"{name} cannot be imported: {error}")
    expected = STEPS["single examples"].build(problem, alpha)
    for _ in range(2):  # the second step starts from the state after the first
        batch = problem.draw()
        for got, want in zip(step(batch), expected(batch), strict=True):
            assert (got - want).norm() <= 1e-6 * want.norm()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # of the libraries, about the newest torch
@pytest.mark.parametrize("name", [*OURS, *(name for name in BASELINES if name != "single examples")])
def test_step_returns_the_gradient_of_single_examples(name):
    expect_single_examples(name, small("resnet18"))


@pytest.mark.parametrize("model", [name for name in MODELS if name != "resnet18"])
def test_ours_return_the_gradient_of_single_examples(model):
    for name in OURS:
        expect_single_examples(name, small(model))


@pytest.mark.parametrize("model", MODELS)
def test_batches_differ_and_repeat_from_the_seed(model):
    problem = small(model)
    batches = [problem.draw() for _ in range(20)]
    again = small(model).draw()
    for number, first in enumerate(batches[0].inputs):
        others = [batch.inputs[number] for batch in batches[1:]]
        assert any(other.shape != first.shape or not other.equal(first) for other in others)
        assert first.equal(again.inputs[number])


def test_texts_are_padded_differently_and_to_the_longest():
    fixed, longest = small("gpt"), small("gpt, to longest")
    padding = [(fixed.draw().inputs[0] == 0).sum(1).tolist() for _ in range(3)]
    assert len(set(map(tuple, padding))) == 3
    assert len({longest.draw().inputs[0].shape[1] for _ in range(9)}) > 1


def test_libraries_that_fail_or_differ_are_listed_with_their_error(monkeypatch):
    def fail(problem, alpha):
        raise ValueError("expected\nanother model")

    def double(problem, alpha):
        step = STEPS["single examples"].build(problem, alpha)
        return lambda batch: [2 * grad for grad in step(batch)]

    monkeypatch.setitem(STEPS, "fails", type(STEPS["plain step"])(fail))
    monkeypatch.setitem(STEPS, "differs", type(STEPS["plain step"])(double))
    problem = make("stochastic depth", n=2)
    title, plain, failed, differing, ours = compare(
        "m", problem, ["plain step", "fails", "differs", "pyengm, one pass"], 2
    )
    assert title == "m, n = 2"
    assert plain.endswith(" ms")
    assert failed.endswith("ValueError: expected another model")
    assert differing.endswith("wrong: relative error 1")
    assert " to " in ours


def test_the_model_with_relu_is_compared_without_and_stays_as_it_is():
    problem = make("stochastic depth", n=2)
    assert gradient_error("single examples", problem) < 1e-5
    assert any(isinstance(module, nn.ReLU) for module in problem.model.modules())


def test_first_calls_are_counted_in_plain_steps():
    calls = measure(make("stochastic depth", n=2))
    assert list(calls) == [str(number) for number in range(1, CALLS + 1)]
    assert all(value > 0 for value in calls.values())
