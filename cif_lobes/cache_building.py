"""What every build of a teacher cache does, whatever the teacher."""

import contextlib
import os
import shlex
import sys

from cif_lobes.teacher_cache import TeacherCache


def this_command():
    """This command line, for messages that name the next one."""
    return shlex.join(["python", *sys.argv])


def build_command():
    """This command line as a cache notes it: how to make the same one again."""
    return this_command().replace(" --overwrite True", "")


def is_up_to_date(path, texts, identity, overwrite):
    """Whether the cache is there already; says so.

    Arguments
    ---------
    path : str
        The cache to make.
    texts : dict of str to str
        Text of each utterance id, or what stands for it.
    identity : dict
        Attributes that decide the states.
    overwrite : bool
        Whether to make it again in any case.

    Returns
    -------
    bool

    Raises
    ------
    ValueError
        If another cache is there.
    """
    if overwrite or not os.path.exists(path):
        return False
    problems = TeacherCache(path).problems(texts, **identity)
    if problems:
        raise ValueError(
            f"teacher cache {path} is there and is another: {'; '.join(problems)}. "
            "Keep it and give this one another name with --cache, or replace it "
            "with --overwrite True"
        )
    print(f"{path} is up to date")
    return True


@contextlib.contextmanager
def resumable(writer, total, units):
    """On Ctrl-C say what is kept and how to go on.

    Arguments
    ---------
    writer : cif_lobes.teacher_cache_writer.CacheWriter
    total : int
        What it will have written in the end.
    units : str
        In words: texts or utterances.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(
            f"stopped; {writer.committed:,} of {total:,} {units} are kept in "
            f"{writer.partial}. Go on with:\n  {this_command()}"
        )
