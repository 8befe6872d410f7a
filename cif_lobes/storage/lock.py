"""One run at a time writes into a run folder.

The kernel keeps the lock, so a process that dies gives it back, however it dies. What
the file says is for people, and for file systems whose locks other machines do not see.
"""

import atexit
import contextlib
import fcntl
import json
import os
import pathlib
import socket
import sys
import time

from speechbrain.utils.distributed import if_main_process, main_process_only

from cif_lobes.storage.atomic_files import explain_full

FILE = "run.lock"

_held = {}  # open lock files of this process, by path


def lock_run(folder):
    """Keep a run folder for this run until it ends, or end this run.

    Of a distributed run the first process holds the lock; all end if it is refused.

    Arguments
    ---------
    folder : str
        Made if needed.

    Raises
    ------
    SystemExit
        If another run has it, or may have it on another machine.
    """
    refusal = main_process_only(_lock)(pathlib.Path(folder).resolve())
    if refusal:
        sys.exit(refusal if if_main_process() else 1)


def release_runs():
    """Give all locks back: at exit, or before `os._exit`, which skips that."""
    while _held:
        _, fd = _held.popitem()
        # The empty file stays: without it, two could hold locks on files of one name.
        with contextlib.suppress(OSError):
            os.ftruncate(fd, 0)
        os.close(fd)


def _lock(folder):
    """Why the folder cannot be had, or None."""
    path = folder / FILE
    if path in _held:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    locked = can_lock = True
    try:
        # Not flock: DataLoader's workers would inherit it, and outlive a killed parent.
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        locked = False
    except OSError:  # a file system without locks
        can_lock = False
    owner = _read(fd)
    here = owner.get("host") == socket.gethostname()
    gone = not owner or (here and (can_lock or not _is_alive(owner)))
    gone |= _is_requeued(owner)
    if not locked or not gone:
        os.close(fd)
        unseen = locked and not here
        return _describe(path, owner, unseen)
    owner = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "slurm": _slurm(),
    }
    with explain_full(folder):
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{json.dumps(owner)}\n".encode(), 0)
        os.fsync(fd)
    if not _held:
        atexit.register(release_runs)
    _held[path] = fd
    return None


def _slurm():
    """The Slurm job that this is, and how often it has been requeued; or None."""
    job = os.environ.get("SLURM_JOB_ID")
    return job and [job, int(os.environ.get("SLURM_RESTART_COUNT", 0))]


def _is_requeued(owner):
    """Whether this is the owner's Slurm job, begun again: on whatever machine that was,
    Slurm has ended what was left of it before."""
    now, then = _slurm(), owner.get("slurm")
    return bool(now and then) and now[0] == then[0] and now[1] > then[1]


def _describe(path, owner, unseen):
    """Who has a lock, and what to do."""
    owner = {"pid": "?", "host": "?", "since": "?", **owner}
    then = (
        f"If that process is gone, which cannot be seen from here: rm {path}"
        if unseen
        else "Wait for it, or stop it"
    )
    return (
        f"{path.parent} is in use by another run: process {owner['pid']} on "
        f"{owner['host']}, since {owner['since']}. Two of them would overwrite each "
        f"other's checkpoints. {then}, or train into another --output_folder "
        "(evaluate.py may read the folder meanwhile)"
    )


def _read(fd):
    """What the lock's last owner has written."""
    try:
        return json.loads(os.pread(fd, 4096, 0))
    except ValueError:  # empty: it has been given back
        return {}


def _is_alive(owner):
    """Whether that process of this machine runs, and is not another of its number."""
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return _started(owner["pid"]) == owner["started"]


def _started(pid):
    """When a process was started, in ticks since boot; None where /proc is not."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])
