"""One training per run folder: who holds it is named, who is gone is replaced."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
from conftest import ROOT, tiny_arguments, train

from cif_lobes.storage import lock as run_lock

HOLD = """
import sys, time
from cif_lobes.storage.lock import lock_run
lock_run(sys.argv[1])
print("locked", flush=True)
time.sleep(60)
"""


@pytest.fixture
def hold(tmp_path):
    """Starts another process that has a folder, and ends it afterwards."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout.readline() == b"locked\n"
        yield process
        process.kill()


@pytest.fixture(autouse=True)
def give_back():
    """Whatever a test has locked."""
    yield
    run_lock.release_runs()


def write_owner(folder, **changes):
    """What a run that has been killed leaves."""
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": "noon"}
    owner |= {"started": run_lock._started(os.getpid()), **changes}
    (folder / "run.lock").write_text(json.dumps(owner))


def test_the_second_run_is_refused_until_the_first_is_gone(hold, tmp_path):
    with pytest.raises(SystemExit) as refusal:
        run_lock.lock_run(tmp_path)
    for part in (str(tmp_path), f"process {hold.pid} on", socket.gethostname()):
        assert part in refusal.value.code
    assert "since 20" in refusal.value.code and "--output_folder" in refusal.value.code
    hold.send_signal(signal.SIGKILL)
    hold.wait()
    run_lock.lock_run(tmp_path)
    assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()


def test_a_lock_is_given_back(tmp_path):
    run_lock.lock_run(tmp_path)
    run_lock.lock_run(tmp_path)  # the same run may ask again
    run_lock.release_runs()
    assert (tmp_path / "run.lock").read_text() == ""
    command = [sys.executable, "-c", HOLD.replace("60", "0"), str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT)
    assert (tmp_path / "run.lock").read_text() == ""


def test_another_machine_cannot_be_seen(tmp_path):
    write_owner(tmp_path, host="elsewhere")
    with pytest.raises(SystemExit) as refusal:
        run_lock.lock_run(tmp_path)
    assert "on elsewhere, since noon" in refusal.value.code
    command = f"rm {tmp_path}/run.lock"
    assert command in refusal.value.code
    subprocess.run(command, shell=True, check=True)
    run_lock.lock_run(tmp_path)


def enter_slurm(monkeypatch, host, job, restarts):
    """Be on a machine, in a job of Slurm or in none."""
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    names = {"SLURM_JOB_ID": job, "SLURM_RESTART_COUNT": restarts}
    for name, value in names.items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:  # a first start has no count
            monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "was, now, taken",
    [
        (("7", None), ("7", "1"), True),
        (("7", "1"), ("7", "2"), True),
        (("7", None), ("7", None), False),  # another node of the same start
        (("7", None), ("8", "1"), False),
        (("7", None), (None, None), False),
        ((None, None), ("7", "1"), False),
    ],
)
def test_a_slurm_job_that_is_requeued_elsewhere(tmp_path, monkeypatch, was, now, taken):
    enter_slurm(monkeypatch, "elsewhere", *was)
    run_lock.lock_run(tmp_path)
    left = (tmp_path / "run.lock").read_text()
    run_lock.release_runs()
    (tmp_path / "run.lock").write_text(left)
    enter_slurm(monkeypatch, "here", *now)
    if taken:
        run_lock.lock_run(tmp_path)
        assert json.loads((tmp_path / "run.lock").read_text())["host"] == "here"
    else:
        with pytest.raises(SystemExit, match="on elsewhere"):
            run_lock.lock_run(tmp_path)


def test_a_lock_that_is_held_is_not_taken_by_a_requeued_job(
    hold, tmp_path, monkeypatch
):
    write_owner(tmp_path, host="elsewhere", slurm=["7", 0])
    enter_slurm(monkeypatch, "here", "7", "1")
    with pytest.raises(SystemExit, match="in use by another run"):
        run_lock.lock_run(tmp_path)


def test_without_locks_of_the_file_system_the_process_is_looked_up(
    tmp_path, monkeypatch
):
    def unsupported(*_):
        raise OSError("no locks available")

    monkeypatch.setattr("fcntl.lockf", unsupported)
    write_owner(tmp_path)
    with pytest.raises(SystemExit, match="in use by another run"):
        run_lock.lock_run(tmp_path)
    write_owner(tmp_path, started=1)  # another process of the same number
    run_lock.lock_run(tmp_path)
    run_lock.release_runs()
    gone = subprocess.Popen(["true"])
    gone.wait()
    write_owner(tmp_path, pid=gone.pid)
    run_lock.lock_run(tmp_path)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_training_is_refused_once_and_touches_nothing(
    hold, corpus, tmp_path, processes
):
    arguments = tiny_arguments(corpus, tmp_path, output_folder=tmp_path)
    if processes > 1:
        arguments += ["--distributed_backend", "gloo"]
    done = train(arguments, processes=processes, check=False)
    assert done.returncode == 1
    assert done.stderr.count(f"process {hold.pid} on") == 1, done.stderr[-3000:]
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"run.lock", "save"} and not [*(tmp_path / "save").iterdir()]
