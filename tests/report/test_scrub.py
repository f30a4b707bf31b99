"""Paths in texts: no folder is left, and what is no path stays."""

import pytest

from pyengm.report.scrub import scrub


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/alice/data/cifar10", "cifar10"),
        ("/home/alice/my data/cifar 10", "cifar 10"),
        ("~/runs/a", "a"),
        ("~alice/runs/a", "a"),
        ("../alice/runs/a/", "a"),
        ("./alice/runs/a", "a"),
        (r"C:\Users\alice\runs\a", "a"),
        (r"\\server\share\a", "a"),
        ("--out=/home/alice/a b", "--out=a b"),
        ("--data-dir=~/x", "--data-dir=x"),
        ("cannot read '/home/alice/x.png' (missing)", "cannot read 'x.png' (missing)"),
        ("see /home/alice/a, /srv/b; and file:///home/alice/c", "see a, b; and file:c"),
        ("/", "/"),
        ("eps = 8/255 and eps/4", "eps = 8/255 and eps/4"),
        ("8/255", "8/255"),
        ("1/255..16/255", "1/255..16/255"),
        ("runs/a", "runs/a"),
        ("pgd:steps=5,step_size=eps/4", "pgd:steps=5,step_size=eps/4"),
        ("my_module:make_model", "my_module:make_model"),
        ("n/a", "n/a"),
        ("", ""),
    ],
)
def test_texts(text, expected):
    assert scrub(text) == expected


def test_within_values():
    found = scrub({"/home/a": ["/home/b", 1, None, {"c": ("~/d", 0.5)}], "e": True})
    assert found == {"a": ["b", 1, None, {"c": ["d", 0.5]}], "e": True}
