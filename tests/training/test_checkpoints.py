"""Checkpoints that a run resumes from: complete or absent, with digests, the last few of them."""

import errno
import shutil

import pytest
import torch

from pyengm.errors import CheckpointError, StorageError
from pyengm.models import CheckpointInfo, build, load_weights, save_checkpoint
from pyengm.training import checkpoints
from pyengm.training.checkpoints import Checkpoints, find_corruption

INFO = CheckpointInfo({"name": "cnn4"}, "digits", ("a", "b"), "linf", 0.1, 3)
CPU = torch.device("cpu")


def save(kept: Checkpoints, epoch: int) -> None:
    kept.save(epoch, 0, {"epoch": epoch}, {"values": torch.full((1000,), float(epoch))})


def test_the_newest_come_back_and_the_oldest_go(tmp_path):
    kept = Checkpoints(tmp_path / "checkpoints", keep=3)
    assert kept.load(CPU) is None
    for epoch in range(5):
        save(kept, epoch)
    assert [path.name for path in kept.complete()] == [f"epoch-{epoch:04d}-batch-000000" for epoch in (2, 3, 4)]
    assert len(list(kept.folder.iterdir())) == 3
    saved = kept.load(CPU)
    assert saved.shared == {"epoch": 4}
    assert saved.parts[0]["values"].equal(torch.full((1000,), 4.0))


def test_long_runs_keep_their_order(tmp_path):
    kept = Checkpoints(tmp_path / "checkpoints")
    for epoch in (9998, 9999, 10000, 10001):
        save(kept, epoch)
    assert kept.load(CPU).shared == {"epoch": 10001}
    assert len(kept.complete()) == 2


def test_damaged_ones_of_later_go_when_the_run_comes_by(tmp_path):
    kept = Checkpoints(tmp_path / "checkpoints", keep=1)
    save(kept, 3)
    (kept.complete()[0] / "state.pt").write_bytes(b"")
    save(kept, 1)
    assert [path.name for path in kept.complete()] == ["epoch-0001-batch-000000"]
    assert kept.load(CPU).shared == {"epoch": 1}


@pytest.mark.parametrize("name", ["state.pt", "process-0-of-1.pt", "manifest.json"])
@pytest.mark.parametrize("damage", ["bit", "short", "gone"])
def test_damage_is_found_and_the_one_before_taken(tmp_path, name, damage):
    kept = Checkpoints(tmp_path / "checkpoints")
    save(kept, 1)
    save(kept, 2)
    path = kept.complete()[-1] / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content if damage == "bit" else content[: len(content) // 2])
    if (name, damage) == ("manifest.json", "gone"):  # as after a crash while it was being removed
        assert kept.load(CPU).shared == {"epoch": 1}
        return
    with pytest.warns(UserWarning, match="going back to the checkpoint before it"):
        assert kept.load(CPU).shared == {"epoch": 1}
    save(kept, 2)
    assert kept.load(CPU).shared == {"epoch": 2}


def test_all_damaged(tmp_path):
    kept = Checkpoints(tmp_path / "checkpoints")
    save(kept, 1)
    (kept.complete()[0] / "state.pt").write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(CheckpointError, match=r"no checkpoint of .* is whole .*state\.pt"),
    ):
        kept.load(CPU)


@pytest.mark.parametrize("moment", ["_make_empty", "_write", "_flush", "_flush_folder"])
def test_a_full_disk_keeps_the_previous_one(tmp_path, monkeypatch, moment):
    kept = Checkpoints(tmp_path / "checkpoints")
    save(kept, 1)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, moment, full)
    with pytest.raises(StorageError, match=r"cannot write a checkpoint to .*No space left on device"):
        save(kept, 2)
    monkeypatch.undo()
    assert find_corruption(kept.complete()[0]) is None
    save(kept, 3)
    assert kept.load(CPU).shared == {"epoch": 3}
    assert not list(kept.folder.glob(".*"))


def test_what_a_crash_left_is_removed(tmp_path):
    kept = Checkpoints(tmp_path / "checkpoints")
    save(kept, 1)
    shutil.copytree(kept.complete()[0], kept.folder / ".epoch-0009-batch-000000.tmp")
    half = kept.folder / "epoch-0009-batch-000000"
    shutil.copytree(kept.complete()[0], half)
    (half / "manifest.json").unlink()
    assert kept.load(CPU).shared == {"epoch": 1}
    save(kept, 2)
    assert sorted(path.name for path in kept.folder.iterdir()) == [path.name for path in kept.complete()]


class TestWeights:
    def test_one_changed_bit_is_found(self, tmp_path):
        path = tmp_path / "weights.safetensors"
        save_checkpoint(path, build("cnn4", width=2), INFO)
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged: its weights are not those that were written"):
            load_weights(build("cnn4", width=2), path)

    def test_the_same_weights_give_the_same_file(self, tmp_path):
        model = build("cnn4", width=2)
        for i in range(8):
            save_checkpoint(tmp_path / str(i), model, INFO)
        assert len({(tmp_path / str(i)).read_bytes() for i in range(8)}) == 1

    def test_names_that_share_a_tensor(self, tmp_path):
        def tied() -> torch.nn.Module:
            model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
            model[1].weight = model[0].weight
            return model

        model, other = tied(), tied()
        save_checkpoint(tmp_path / "tied", model, INFO)
        load_weights(other, tmp_path / "tied")
        assert other[1].weight.equal(model[0].weight)

    def test_a_full_disk_keeps_the_file(self, tmp_path, monkeypatch):
        path = tmp_path / "weights.safetensors"
        save_checkpoint(path, build("cnn4", width=2), INFO)
        before = path.read_bytes()

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            save_checkpoint(path, build("cnn4", width=2), INFO)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]
