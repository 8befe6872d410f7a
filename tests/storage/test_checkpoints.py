"""Checkpoints survive kills, full disks and signals."""

import errno
import multiprocessing
import os
import pathlib
import random
import resource
import signal
import sys
import time

import pytest
import torch
from programs import run_python
from speechbrain.utils.checkpoints import ckpt_recency
from tiny_checkpoints import FILES, make, names, set_weights

from cif_lobes.storage.atomic_files import DiskFull
from cif_lobes.storage.checkpoints import delayed_signals, find_fault

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
    """SIGKILL at 100 random moments of saving and deleting, in one folder.

    In a process of its own: tests before this one leave threads, and a child that is forked
    beside them can wait for their locks for ever, so that nothing is ever saved.
    """
    call = "import test_checkpoints as t; t.kill_at_any_moment(t.pathlib.Path(sys.argv[1]))"
    run_python(["-c", f"import sys; sys.path[:] = {sys.path}; {call}", tmp_path])


def kill_at_any_moment(tmp_path):
    """What that test does."""
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
import errno, os, pathlib, sys, torch
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
sys.stdout.flush()
os._exit(0)  # a gloo thread that is still running would make C++ abort now and then
"""


@pytest.mark.slow
def test_all_processes_save_or_hear_of_a_full_disk(tmp_path):
    (tmp_path / "script.py").write_text(DISTRIBUTED)
    done = run_python([tmp_path / "script.py", tmp_path / "save"], processes=2)
    for rank in (0, 1):
        assert [f"rank {rank} found {n}" in done.stdout for n in range(3)] == [True] * 3
        assert f"rank {rank}: no room to write in {tmp_path}/save" in done.stdout
    assert len(names(tmp_path / "save")) == 1
