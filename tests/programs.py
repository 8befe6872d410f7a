"""Programs in processes of their own, forked from one that has imported the libraries.

A tiny training takes a second, and importing PyTorch and SpeechBrain before it five. Only
libraries are there beforehand: what a program needs of ours it imports itself. Cold
starts, as a user types them, are those of tests/test_readme.py, and `cold` here.
"""

import atexit
import multiprocessing
import os
import pathlib
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback

ROOT = pathlib.Path(__file__).parent.parent
LIBRARIES = """torch torchaudio speechbrain.core h5py matplotlib.pyplot
    transformers.models.bert.modeling_bert transformers.models.whisper.modeling_whisper"""

GRACE = 20  # seconds that what torchrun started together may go on once one has failed

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(LIBRARIES.split())


def run_python(words, check=True, cwd=ROOT, env=None, processes=1):
    """As `python WORDS`, or as torchrun starts it on one machine.

    Arguments
    ---------
    words : list of str or os.PathLike
        A script, `-m` and a module, or `-c` and code; and arguments.
    check : bool
        Whether it must succeed.
    cwd : str or os.PathLike
    env : dict of str to str, optional
        Variables to add.
    processes : int
        More are a group of torch.distributed.

    Returns
    -------
    subprocess.CompletedProcess
        Exit status of the first that failed; what all wrote, as text.
    """
    ranks = [{**(env or {}), **rank} for rank in _ranks(processes)]
    programs = [Program(words, cwd, rank) for rank in ranks]
    for program in programs:
        # The others may wait for ever for one that has failed.
        while program.process.is_alive():
            failed = any(p.process.exitcode for p in programs)
            program.process.join(GRACE if failed else 0.05)
            if failed:
                program.process.kill()
                program.process.join()
    statuses = [program.process.exitcode for program in programs]
    done = subprocess.CompletedProcess(
        programs[0].words,
        next(filter(None, statuses), 0),
        *("".join(p.written(kind) for p in programs) for kind in ("stdout", "stderr")),
    )
    if check:
        words = " ".join(done.args)
        assert done.returncode == 0, (
            f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
        )
    return done


def cold(words):
    """As `run_python`, but by an interpreter that starts from nothing."""
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done


def interrupt(words, line):
    """Run a program and press Ctrl-C once it has written this; it must exit with 1."""
    program = Program(words)
    while program.process.is_alive() and line not in program.written():
        time.sleep(0.01)
    os.kill(program.process.pid, signal.SIGINT)
    program.process.join()
    assert program.process.exitcode == 1, program.written()[-6000:]


class Program:
    """A program that has begun; the arguments are those of `run_python`."""

    def __init__(self, words, cwd=ROOT, env=None):
        self.words = [os.fspath(word) for word in words]
        self.folder = tempfile.TemporaryDirectory()
        environment = {**os.environ, **(env or {})}
        self.process = _context.Process(
            target=_run,
            args=(self.words, os.fspath(cwd), environment, self.folder.name),
        )
        self.process.start()

    def written(self, kind="*"):
        """What it has written to stdout or stderr so far, or to both."""
        files = sorted(pathlib.Path(self.folder.name).glob(kind))
        return "".join(file.read_text(errors="replace") for file in files)


def _ranks(processes):
    """Variables that torchrun gives each process."""
    if processes == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    group["TORCHELASTIC_RUN_ID"] = "none"
    group |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(processes))
    return [{**group, "RANK": str(n), "LOCAL_RANK": str(n)} for n in range(processes)]


def _run(words, cwd, environment, folder):
    """In the new process: what the interpreter does with a command line."""
    for kind, number in (("stdout", 1), ("stderr", 2)):
        file = os.open(os.path.join(folder, kind), os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
    # Its own processes start as those of a program that was typed, not as this one did.
    multiprocessing.set_start_method(None, force=True)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    tests = str(ROOT / "tests")  # whose modules are no program's
    there = [path for path in sys.path if path and not path.startswith(tests)]
    sys.path[:] = [*filter(None, environment.get("PYTHONPATH", "").split(":")), *there]
    kind, sys.argv = words[0], words
    try:
        if kind == "-m":
            sys.path.insert(0, cwd)
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif kind == "-c":
            sys.path.insert(0, cwd)
            sys.argv = ["-c", *words[2:]]
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.path.insert(0, os.path.dirname(os.path.abspath(kind)))
            runpy.run_path(kind, run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        status = traceback.format_exc()
    if not isinstance(status, int):
        print(status, file=sys.stderr)
        status = 1
    atexit._run_exitfuncs()
    sys.exit(status)
