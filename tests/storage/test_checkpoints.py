"""Checkpoints survive kills, full disks and signals; broken ones are passed over."""

import errno
import json
import logging
import multiprocessing
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, epochs, tiny_arguments, train
from speechbrain.utils.checkpoints import Checkpointer, ckpt_recency
from speechbrain.utils.epoch_loop import EpochCounter
from tiny_asr import make_run
from tiny_hubert import write_student_run

from cif_lobes.inference.export import export_run
from cif_lobes.nets.frozen_student import read_student
from cif_lobes.storage import checkpoints
from cif_lobes.storage.atomic_files import DiskFull
from cif_lobes.storage.checkpoints import SafeCheckpointer, delayed_signals, find_fault
from cif_lobes.storage.parameters import average_parameters, read_parameters

FILES = {"CKPT.yaml", "counter.ckpt", "model.ckpt", "optimizer.ckpt", "sizes.json"}


def make(folder, kind=SafeCheckpointer, width=8):
    """A checkpointer of a model, its optimizer and a counter, as a run has them."""
    model = torch.nn.Linear(width, width)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(width)).sum().backward()
    optimizer.step()
    recoverables = {"counter": EpochCounter(9), "model": model, "optimizer": optimizer}
    return kind(folder, recoverables)


def set_weights(checkpointer, value):
    """So that a checkpoint can be told by its parameters."""
    torch.nn.init.constant_(checkpointer.recoverables["model"].weight, value)


def weight(checkpoint):
    """What `set_weights` has set."""
    return torch.load(checkpoint.path / "model.ckpt")["weight"][0, 0].item()


def names(folder):
    """Files and folders there, hidden ones included."""
    return sorted(path.name for path in folder.iterdir())


def save(checkpointer, value):
    """A checkpoint that can be told by `weight`, its error rate and its epoch."""
    set_weights(checkpointer, value)
    meta = {"error_rate": float(value), "epoch": value}
    return checkpointer.save_checkpoint(meta=meta)


@pytest.fixture(autouse=True)
def no_name_yet(monkeypatch):
    """No broken checkpoint has been named in this process."""
    monkeypatch.setattr(checkpoints, "_named", set())


# --- kills ---


def save_for_ever(folder):
    checkpointer, value = make(folder, width=64), 0
    while True:
        value += 1
        set_weights(checkpointer, value)
        checkpointer.save_and_keep_only(
            meta={"value": value}, num_to_keep=2, importance_keys=[ckpt_recency]
        )


def test_a_kill_at_any_moment_leaves_whole_checkpoints_only(tmp_path):
    """SIGKILL at 100 random moments of saving and deleting, in one folder."""
    random.seed(0)
    fork, seen, leftovers = multiprocessing.get_context("fork"), [], 0
    for _ in range(100):
        process = fork.Process(target=save_for_ever, args=[tmp_path])
        process.start()
        time.sleep(random.uniform(0.0, 0.08))
        process.kill()
        process.join()
        leftovers += any(path.name.startswith(".") for path in tmp_path.iterdir())
        for folder in tmp_path.glob("CKPT*"):
            assert {path.name for path in folder.iterdir()} == FILES
        reader = make(tmp_path, width=64)
        found = reader.find_checkpoints()
        for checkpoint in found:
            reader.load_checkpoint(checkpoint)
            value = checkpoint.meta["value"]
            weights = reader.recoverables["model"].weight
            assert torch.equal(weights, torch.full_like(weights, value))
        seen.append(len(found))
    assert leftovers > 20  # or none was killed while it saved
    assert min(seen[seen.index(2) :]) >= 2  # the older ones are still there
    make(tmp_path).save_checkpoint()
    assert not [name for name in names(tmp_path) if name.startswith(".")]


# --- signals ---


def interrupting(*numbers):
    """A saver that sends these signals while it writes."""

    def write(obj, path):
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.01)
        pathlib.Path(path).write_text("x")

    return write


def test_signals_wait_until_a_checkpoint_is_complete(tmp_path):
    # A shell's background job begins with SIGINT ignored.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    checkpointer = make(tmp_path)
    write = interrupting(*[signal.SIGINT] * 3)
    checkpointer.add_recoverable("late", object(), custom_save_hook=write)
    try:
        with pytest.raises(KeyboardInterrupt):
            checkpointer.save_checkpoint()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, former)
    assert find_fault(tmp_path / names(tmp_path)[0]) is None
    assert len(names(tmp_path)) == 1


def test_several_signals_of_a_kind_arrive_as_one():
    """Not as a second Ctrl-C, which would stop a training before it has saved."""
    arrived = []
    former = [
        signal.signal(number, lambda number, frame: arrived.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    ]
    try:
        with delayed_signals():
            interrupting(signal.SIGTERM, signal.SIGINT, signal.SIGINT)(0, os.devnull)
            assert not arrived
    finally:
        signal.signal(signal.SIGINT, former[0])
        signal.signal(signal.SIGTERM, former[1])
    assert arrived == [signal.SIGTERM, signal.SIGINT]


# --- full disks ---


@pytest.mark.parametrize("file", ["counter", "model", "optimizer"])
def test_a_full_disk_at_any_file_leaves_the_older_checkpoints(tmp_path, file):
    checkpointer = make(tmp_path)
    before = checkpointer.save_checkpoint()

    def write_half(obj, path):
        pathlib.Path(path).write_bytes(b"PK")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    checkpointer.custom_save_hooks[file] = write_half
    message = rf"in {tmp_path}: free are [\d.]+ GB, needed about [\d.]+ GB.*Free some"
    with pytest.raises(DiskFull, match=message):
        checkpointer.save_checkpoint()
    assert names(tmp_path) == [before.path.name]
    assert make(tmp_path).recover_if_possible().path == before.path


def test_a_full_disk_when_files_are_brought_to_it(tmp_path, monkeypatch):
    """A file system may say so late."""
    checkpointer = make(tmp_path)
    before = checkpointer.save_checkpoint()

    def full(fd):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskFull):
        checkpointer.save_checkpoint()
    assert names(tmp_path) == [before.path.name]


@pytest.mark.parametrize("limit", [100, 2000, 20000])
def test_what_torch_says_of_a_full_disk_is_understood(tmp_path, limit):
    """A real limit; torch.save raises RuntimeErrors that do not name the cause."""
    checkpointer = make(tmp_path, width=64)
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, former[1]))
    try:
        with pytest.raises(DiskFull) as error:
            checkpointer.save_checkpoint()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert "no room" in str(error.value)
    assert names(tmp_path) == []


def test_another_error_is_not_taken_for_a_full_disk(tmp_path):
    checkpointer = make(tmp_path)
    checkpointer.recoverables["unknown"] = object()
    with pytest.raises(RuntimeError, match="Don't know how to save"):
        checkpointer.save_checkpoint()
    assert names(tmp_path) == []


DISTRIBUTED = """
import errno, pathlib, sys, torch
from speechbrain.utils.distributed import ddp_init_group, get_rank
from cif_lobes.storage.atomic_files import DiskFull
from cif_lobes.storage.checkpoints import SafeCheckpointer

ddp_init_group({"distributed_launch": True, "distributed_backend": "gloo"})
model = torch.nn.Linear(2, 2)
checkpointer = SafeCheckpointer(sys.argv[1], {"model": model})
for epoch in range(3):
    checkpointer.save_and_keep_only(meta={"epoch": epoch})
    print(f"rank {get_rank()} found {checkpointer.find_checkpoint().meta['epoch']}")

def full(obj, path):
    raise OSError(errno.ENOSPC, "")

checkpointer.custom_save_hooks["model"] = full
try:
    checkpointer.save_checkpoint()
except DiskFull as error:
    print(f"rank {get_rank()}: {error}", flush=True)
torch.distributed.barrier()
"""


@pytest.mark.slow
def test_all_processes_save_or_hear_of_a_full_disk(tmp_path):
    (tmp_path / "script.py").write_text(DISTRIBUTED)
    command = [sys.executable, *"-m torch.distributed.run --standalone".split()]
    command += ["--nproc_per_node=2", tmp_path / "script.py", tmp_path / "save"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        assert [f"rank {rank} found {n}" in done.stdout for n in range(3)] == [True] * 3
        assert f"rank {rank}: no room to write in {tmp_path}/save" in done.stdout
    assert len(names(tmp_path / "save")) == 1


# --- reading what is broken ---


def keep_counter_only(folder):
    """What a kill of older versions leaves."""
    for path in folder.iterdir():
        if path.name not in ("CKPT.yaml", "counter.ckpt"):
            path.unlink()


def cut_model(folder):
    path = folder / "model.ckpt"
    os.truncate(path, path.stat().st_size // 2)


def empty_meta(folder):
    os.truncate(folder / "CKPT.yaml", 0)


def empty_model(folder):
    os.truncate(folder / "model.ckpt", 0)


BREAK = [keep_counter_only, cut_model, empty_meta, empty_model]


@pytest.mark.parametrize("kind", [Checkpointer, SafeCheckpointer])
@pytest.mark.parametrize("harm", BREAK)
def test_a_broken_checkpoint_is_named_once_and_passed_over(
    tmp_path, caplog, kind, harm
):
    checkpointer = make(tmp_path, kind)
    good, broken = save(checkpointer, 1), save(checkpointer, 2)
    harm(broken.path)
    reader = make(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert reader.recover_if_possible().path == good.path
        assert average_parameters(tmp_path, "last", 2)[1] == [1]
        assert average_parameters(tmp_path, "best", 1)[1] == [1]
    warnings = [r.message for r in caplog.records if "passed over" in r.message]
    assert len(warnings) == 1 and str(broken.path) in warnings[0]
    save(reader, 3)
    reader.delete_checkpoints(num_to_keep=1)
    assert broken.path.exists()  # its owner may want what is left
    assert [c.meta["epoch"] for c in reader.list_checkpoints()] == [3]


def test_a_checkpoint_of_older_versions_that_lacks_the_optimizer(tmp_path):
    """It can be evaluated, and training cannot go on from it."""
    checkpointer = make(tmp_path, Checkpointer)
    good, broken = save(checkpointer, 1), save(checkpointer, 2)
    (broken.path / "optimizer.ckpt").unlink()
    assert average_parameters(tmp_path, "last", 1)[1] == [2]
    assert make(tmp_path).recover_if_possible().path == good.path


def test_what_is_only_missing_here_is_not_broken(tmp_path):
    """SpeechBrain's own error says that a whole checkpoint is of another kind."""
    make(tmp_path).save_checkpoint()
    reader = make(tmp_path)
    reader.add_recoverable("ledger", torch.nn.Linear(1, 1))
    with pytest.raises(RuntimeError, match="missing a load path for ledger"):
        reader.recover_if_possible()


def test_checkpoints_are_deleted_as_speechbrain_does(tmp_path):
    kept = []
    for kind in (Checkpointer, SafeCheckpointer):
        checkpointer = make(tmp_path / kind.__name__, kind)
        for epoch, rate in enumerate([5.0, 1.0, 4.0, 2.0, 3.0], 1):
            checkpointer.save_checkpoint(meta={"error_rate": rate, "epoch": epoch})
            checkpointer.save_checkpoint(meta={"within": True})
        checkpointer.delete_checkpoints(
            num_to_keep=2,
            min_keys=["error_rate"],
            ckpt_predicate=lambda c: "error_rate" in c.meta,
        )
        left = checkpointer.list_checkpoints()
        kept.append(sorted(c.meta.get("epoch", 0) for c in left))
    assert kept == [[0, 0, 0, 0, 0, 2, 4, 5]] * 2


def test_evaluation_goes_on_when_training_deletes_a_checkpoint(tmp_path, monkeypatch):
    checkpointer = make(tmp_path)
    first = save(checkpointer, 1)
    save(checkpointer, 2)
    load = checkpoints.load_parameters

    def delete_first(path, **kwargs):
        shutil.rmtree(first.path, ignore_errors=True)
        return load(path, **kwargs)

    monkeypatch.setattr("cif_lobes.storage.parameters.load_parameters", delete_first)
    assert average_parameters(tmp_path, "last", 2)[1] == [2]


# --- everything that reads runs ---


def break_newest(run):
    """A copy of the only checkpoint that looks newer, without its model."""
    good = next(run.glob("save/CKPT*"))
    broken = shutil.copytree(good, good.with_name("CKPT+9999"))
    meta = (good / "CKPT.yaml").read_text()
    start = meta.index("unixtime: ")
    (broken / "CKPT.yaml").write_text(f"{meta[:start]}unixtime: 9.0e+9\n")
    (broken / "model.ckpt").unlink()
    (broken / "sizes.json").unlink(missing_ok=True)
    return broken


def test_teachers_and_students_are_read_past_a_broken_checkpoint(corpus, tmp_path):
    run = make_run(corpus, tmp_path, 1)
    expected = read_parameters(run)
    broken = break_newest(run)
    assert read_parameters(run).keys() == expected.keys()
    with pytest.raises(ValueError, match=r"no whole checkpoint: model.ckpt is missing"):
        read_parameters(broken)
    student_run = tmp_path / "student"
    write_student_run(student_run)
    for checkpoint in student_run.glob("save/CKPT*"):
        if "loss: 1" in (checkpoint / "CKPT.yaml").read_text():
            cut_model(checkpoint)
    student, parameters = read_student(student_run)
    assert parameters and student["student"]


def test_an_export_is_made_past_a_broken_checkpoint(trained, tmp_path, caplog):
    run = shutil.copytree(trained, tmp_path / "run")
    newest = max(run.glob("save/CKPT*"), key=lambda f: (f / "CKPT.yaml").read_text())
    (newest / "model.ckpt").unlink()
    with caplog.at_level(logging.WARNING):
        export_run(run, tmp_path / "out")
    assert str(newest) in caplog.text
    assert (tmp_path / "out/model.ckpt").exists()


@pytest.mark.slow
def test_a_run_goes_on_past_broken_checkpoints_as_if_uninterrupted(corpus, tmp_path):
    for run in "ab":
        train(tiny_arguments(corpus, tmp_path / run, number_of_epochs=3))
    newest = max((tmp_path / "b/run/save").glob("CKPT*"))
    bare = shutil.copytree(newest, newest.with_name("CKPT+9999-killed"))
    keep_counter_only(bare)
    (newest / "sizes.json").unlink()
    cut_model(newest)
    lines = (tmp_path / "b/run/epochs.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "b/run/epochs.jsonl").write_text("".join(lines[:2]))
    train(tiny_arguments(corpus, tmp_path / "b", number_of_epochs=3))
    assert epochs(tmp_path / "a/run") == epochs(tmp_path / "b/run")
    figures = [
        json.loads((tmp_path / f"{run}/run/run.json").read_text())["results"]["set2"]
        for run in "ab"
    ]
    # The average of two checkpoints, one of which was trained again.
    assert len({(f["loss"], f["error_rate"]) for f in figures}) == 1
