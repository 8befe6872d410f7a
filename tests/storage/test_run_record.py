"""What a run says about itself, when it goes on elsewhere and when it is cut off."""

import errno
import json
import sys
from importlib.metadata import version

import pytest
import torch

from cif_lobes.storage import record as run_record
from cif_lobes.storage.atomic_files import DiskFull
from cif_lobes.storage.record import RunRecord


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts a run in a folder with a command and a commit."""

    def start(words, commit):
        monkeypatch.setattr(sys, "argv", ["train.py", *words])
        monkeypatch.setattr(run_record, "commit", lambda: commit)
        record = RunRecord(tmp_path)
        record.start("recipes/AISHELL-1/hparams/cif.yaml", 1, 10, "cpu")
        return record.load()

    return start


def test_a_command_can_be_typed_again(start):
    words = ["x.yaml", "--data_folder", "my corpus", "--test_csv", "[a.csv, it's.csv]"]
    command = start(words, "abc")["commands"][0]
    assert command.endswith("'my corpus' --test_csv '[a.csv, it'\"'\"'s.csv]'")


def test_what_trained_the_first_epochs_is_not_forgotten(start):
    assert start(["x.yaml"], "abc")["commit"] == "abc"
    assert start(["x.yaml"], "abc")["commit"] == "abc"
    record = start(["x.yaml", "--num_workers", "2"], "def")
    assert record["commit"] == "abc, then def" and record["processes"] == 1
    assert len(record["commands"]) == 2
    assert start(["x.yaml"], "def")["commit"] == "abc, then def"


def test_it_knows_what_it_needs(start, tmp_path, monkeypatch):
    """Versions, and the most memory of all processes that went on with it."""
    versions = start(["x.yaml"], "abc")["versions"]
    assert versions["speechbrain"] == version("speechbrain")
    stage = {"loss": 1.0, "losses": {}, "seconds": 1.0}
    for number, (peak, highest) in enumerate([(2.5, 2.5), (4.0, 4.0), (3.0, 4.0)]):
        monkeypatch.setattr(run_record, "peak_memory", lambda device, gb=peak: gb)
        record = RunRecord(tmp_path)
        record.epoch(number + 1, 3, 0.1, 10, stage, stage, "")
        assert record.load()["peak_memory_gb"] == highest


def test_peak_memory_is_that_of_this_process():
    before = run_record.peak_memory()
    more = int(before * 1e9 / 4) + 10**8  # floats that exceed all memory held so far
    held = torch.ones(more)
    assert run_record.peak_memory() >= held.nbytes / 1e9 > before


def test_an_epoch_that_cannot_be_written_loses_none(tmp_path, monkeypatch):
    record = RunRecord(tmp_path)
    stage = {"loss": 1.0, "losses": {}, "seconds": 1.0}
    record.epoch(1, 3, 0.1, 10, stage, stage, "")

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskFull, match=f"no room to write in {tmp_path}: free are"):
        record.epoch(2, 3, 0.1, 20, stage, stage, "")
    assert [path.name for path in tmp_path.iterdir()] == ["epochs.jsonl"]
    assert [e["epoch"] for e in record.epochs()] == [1]
    assert json.loads((tmp_path / "epochs.jsonl").read_text())["updates"] == 10
