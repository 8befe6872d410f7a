"""What every program does with mistakes: one message for its user's, a traceback for ours.

An error is the user's if this project's own code raised it as a ValueError or OSError
(its message then says what to do), or if the system cannot open a file. With --debug
there is a traceback for these, too.
"""

import argparse
import difflib
import os
import pathlib
import re
import select
import shlex
import sys

PACKAGE = pathlib.Path(__file__).resolve().parents[1]

# What a DataLoader makes of an error in a worker: the traceback there as its message.
WORKER = re.compile(
    r"Caught \w+ in DataLoader worker process \d+\.\nOriginal Traceback.*"
    r'\n  File "(?P<file>[^"]+)", line [^\n]*\n(?: {4}[^\n]*\n)*'
    r"[\w.]+: (?P<message>.*)",
    re.DOTALL,
)


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes get one message, as those of the recipes do."""

    def error(self, message):
        """Say what is wrong, without the list of all that would be right."""
        hint = "" if "did you mean" in message else f"\nList all: {self.prog} --help"
        print(f"{program_name()}: {message}{hint}", file=sys.stderr)
        sys.exit(2)

    def parse_args(self, args=None, namespace=None):
        """As argparse, with a guess what a misspelt option was meant to be."""
        given, unknown = self.parse_known_args(args, namespace)
        if unknown:
            name = unknown[0].partition("=")[0]
            close = difflib.get_close_matches(name, self._option_string_actions, n=1)
            guess = f": did you mean {close[0]}?" if close else ""
            self.error(f"unknown option {name}{guess}")
        return given


def program_name():
    """What messages call this program."""
    path = pathlib.Path(sys.argv[0])
    return path.parent.name if path.name == "__main__.py" else path.name


def run_program(main, own_debug=False):
    """Run a program; exit with status 1 and one message on its user's mistakes.

    Also at the end of a pipe that has been closed (``| head``), without a message, and
    with status 130 on Ctrl-C.

    Arguments
    ---------
    main : callable
        The program, which reads ``sys.argv``.
    own_debug : bool
        Whether --debug means something to the program, too. Else it is taken off
        ``sys.argv``.

    Example
    -------
    >>> def main():
    ...     raise ValueError("--lr is 0: give another one")
    >>> run_program(main)
    Traceback (most recent call last):
    ...
    SystemExit: 1
    """
    debug = "--debug" in sys.argv[1:]
    if debug and not own_debug:
        sys.argv[1:] = [word for word in sys.argv[1:] if word != "--debug"]
    try:
        try:
            main()
        finally:
            sys.stdout.flush()  # here, so that a closed pipe is noticed here
    except BrokenPipeError:
        if not _stdout_is_closed():
            raise
        sys.exit(1)
    except KeyboardInterrupt:
        if debug:
            raise
        sys.exit(130)
    except (ValueError, OSError) as error:
        if debug or not is_users(error):
            raise
        print(f"{program_name()}: {describe(error)}", file=sys.stderr)
        sys.exit(1)


def is_users(error):
    """Whether a message is enough for an error.

    Arguments
    ---------
    error : ValueError or OSError
        Caught, with its traceback.

    Returns
    -------
    bool
    """
    if isinstance(error, OSError) and error.filename is not None:
        return True
    frame = error.__traceback__
    while frame.tb_next is not None:
        frame = frame.tb_next
    worker = WORKER.fullmatch(str(error))
    source = worker["file"] if worker else frame.tb_frame.f_code.co_filename
    source = pathlib.Path(source).resolve()
    script = pathlib.Path(sys.argv[0]).resolve().parent
    beside = script in source.parents and "site-packages" not in source.parts
    return PACKAGE in source.parents or beside


def describe(error):
    """The message of an error, also of one in a worker, without what is around it."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    worker = WORKER.fullmatch(str(error))
    return worker["message"].strip() if worker else str(error)


def _stdout_is_closed():
    """Whether nobody reads stdout any more; then nothing is written into it at exit."""
    stdout, poll = sys.stdout.fileno(), select.poll()
    poll.register(stdout, 0)  # errors are always told
    closed = bool(poll.poll(0))
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)
    return closed


def installed_name(otherwise):
    """What this program is called: a command of the installed package, or otherwise."""
    name = program_name()
    return name if name.startswith("cif-") else otherwise


def started_by():
    """What starts this program: python and a script, or a command."""
    return installed_name(f"python {sys.argv[0]}")


def this_command():
    """The command line of this process, of torchrun's if that has started it here alone.

    What has started it on several machines (torchrun with a rendezvous, srun, mpirun) is
    not known here: then it is the line that the launcher is to be given.
    """
    words, processes = sys.argv, int(os.environ.get("WORLD_SIZE", 1))
    command = f"{started_by()} {shlex.join(words[1:])}".strip()
    if processes == 1:
        return command
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    if not by_torchrun or int(os.environ["LOCAL_WORLD_SIZE"]) < processes:
        return f"(with your launcher) {command}"
    launcher = ["torchrun", "--standalone", f"--nproc_per_node={processes}"]
    return shlex.join([*launcher, *words])
