"""Functions of the user by name."""

import sys
from collections import OrderedDict

import pytest

from pyengm.errors import ConfigError, DataError
from pyengm.utils.import_object import call_object, check_trusted, import_object, is_object_spec


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module into the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != ""])
    before = set(sys.modules)

    def write(text, name="users_module"):
        (tmp_path / f"{name}.py").write_text(text)
        return name

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize("text", ["m:f", "a.b:C.d", "my_module:make_model"])
def test_specs(text):
    assert is_object_spec(text)


@pytest.mark.parametrize("text", ["resnet18", "m:", ":f", "C:\\x", "a b:c", "m:f()", "/x/y:z", "a.:b", 3, None])
def test_other_texts(text):
    assert not is_object_spec(text)


def test_the_working_directory_is_importable(module):
    module("class A:\n    def f(): return 3")
    assert import_object("users_module:A.f", "--model")() == 3
    assert import_object("collections:OrderedDict", "--model") is OrderedDict


@pytest.mark.parametrize(
    ("text", "spec", "says"),
    [
        ("", "users_module", "expected MODULE:NAME"),
        ("", "no_such:f", r"no module 'no_such'; it must be in the working directory"),
        (
            "import no_such",
            "users_module:f",
            r"ModuleNotFoundError: No module named 'no_such' \(.*users_module.py, line",
        ),
        ("1 / 0", "users_module:f", r"ZeroDivisionError.*users_module.py, line 1"),
        ("def f(:", "users_module:f", "SyntaxError"),
        ("def make(): pass", "users_module:mak", r"no function or class 'mak' \(did you mean make\?\)"),
        ("make = 3", "users_module:make", "make of type int"),
    ],
)
def test_errors_say_what_to_do(module, text, spec, says):
    module(text)
    with pytest.raises(ConfigError, match=f"--model: .*{says}"):
        import_object(spec, "--model")


def test_a_function_gets_the_arguments_that_it_takes():
    offered = {"a": 1, "b": 2}
    assert call_object(lambda: 0, "m:f", "--model", offered) == 0
    assert call_object(lambda b: b, "m:f", "--model", offered) == 2
    assert call_object(lambda **all_: all_, "m:f", "--model", offered) == offered
    assert call_object(dict, "m:f", "--model", offered) in ({}, offered)  # a builtin has no signature in Python 3.11


def test_errors_of_the_function_are_named():
    with pytest.raises(ConfigError, match=r"missing a required argument: 'c'; the arguments that it can have: a, b"):
        call_object(lambda c: c, "m:f", "--model", {"a": 1, "b": 2})
    with pytest.raises(ConfigError, match=r"m:f failed with ZeroDivisionError: .*test_import_object.py, line"):
        call_object(lambda: 1 // 0, "m:f", "--model", {})

    def refuse():
        raise DataError("no such images")

    with pytest.raises(DataError, match=r"^no such images$"):
        call_object(refuse, "m:f", "--model", {})


def test_code_of_a_file_needs_trust():
    entries = {"model": "m:f", "data": "cifar10"}
    with pytest.raises(ConfigError, match=r"run/config.yaml names code .*\(model: m:f\).*--trust-config"):
        check_trusted(entries, "run/config.yaml", trusted=False)
    check_trusted(entries, "run/config.yaml", trusted=True)
    check_trusted({"data": "cifar10"}, "run/config.yaml", trusted=False)
