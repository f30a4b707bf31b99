"""Small helpers: suggestions, lines on the terminal, folders and digests."""

import hashlib
import warnings

import pytest
import torch

from pyengm.errors import StorageError
from pyengm.utils import terminal
from pyengm.utils.did_you_mean import did_you_mean
from pyengm.utils.io import atomic_write, make_dirs, sha256_of_tensors


def test_did_you_mean():
    assert did_you_mean("pdg_at", ["pgd_at", "trades"]) == " (did you mean pgd_at?)"
    assert did_you_mean("zzz", ["pgd_at", "trades"]) == ""
    assert did_you_mean(3, {"pgd_at": 1}) == ""


def test_warnings_are_lines_each_once(capsys, monkeypatch):
    with terminal.log_warnings(), warnings.catch_warnings():
        warnings.simplefilter("always")
        for text in ("first", "second [bold]", "first"):
            warnings.warn(text, stacklevel=1)
    assert capsys.readouterr().out == "warning: first\nwarning: second [bold]\n"
    monkeypatch.setattr(terminal, "rank", lambda: 1)
    terminal.log("from process 1")
    assert capsys.readouterr().out == ""


def test_atomic_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "file"
    atomic_write(path, lambda new: new.write_text("old"))

    def fail(new):
        new.write_text("half")
        raise OSError("disk gone")

    with pytest.raises(StorageError, match=f"cannot write {path}: disk gone"):
        atomic_write(path, fail)
    assert path.read_text() == "old"
    assert [other.name for other in tmp_path.iterdir()] == ["file"]


def test_make_dirs(tmp_path):
    for _ in range(2):
        make_dirs(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match=f"cannot make the folder {tmp_path / 'file' / 'a'}"):
        make_dirs(tmp_path / "file" / "a")


def test_digest_is_over_names_and_bytes_in_order():
    tensors = {"b": torch.tensor([1.5]), "a": torch.tensor([2], dtype=torch.uint8)}
    expected = hashlib.sha256(b"a" + b"\x02" + b"b" + torch.tensor([1.5]).numpy().tobytes()).hexdigest()
    assert sha256_of_tensors(tensors) == expected
    assert sha256_of_tensors(dict(reversed(tensors.items()))) == expected
    assert sha256_of_tensors({"b": tensors["a"], "a": tensors["b"]}) != expected
