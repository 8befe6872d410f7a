"""What is named on the command line: files, folders, globs, and - for what is piped in."""

import contextlib
import glob
import pathlib
import sys
import tempfile
from typing import NamedTuple

# What libsndfile reads, by the names that people give it.
AUDIO = frozenset("wav flac ogg oga opus mp3 aiff aif aifc au snd w64 caf rf64".split())
STDIN = "-"


class Input(NamedTuple):
    """A recording to recognise."""

    file: str
    """str: path, or - for what is piped in."""
    name: str
    """str: what its transcripts are called, without a suffix; below a folder that was
    given, its path in it."""


def find_inputs(words):
    """Inputs of what is named.

    Arguments
    ---------
    words : list of str
        Files; folders, of which all audio is taken, in the order of names; globs that the
        shell has left; or -. What is not there stays among them, to be reported.

    Returns
    -------
    list of Input

    Raises
    ------
    ValueError
        If there is no audio in a folder.
    """
    found = []
    for word in words:
        path = pathlib.Path(word)
        if word == STDIN:
            found.append(Input(word, "stdin"))
        elif path.is_dir():
            files = sorted(p for p in path.rglob("*") if _is_audio(p))
            if not files:
                raise ValueError(
                    f"{word} holds no audio: no file named .{', .'.join(sorted(AUDIO))}"
                )
            below = [str(p.relative_to(path).with_suffix("")) for p in files]
            found += [Input(str(p), name) for p, name in zip(files, below, strict=True)]
        elif not path.exists() and glob.has_magic(word):
            files = sorted(glob.glob(word, recursive=True)) or [word]
            found += [Input(file, pathlib.Path(file).stem) for file in files]
        else:
            found.append(Input(word, path.stem))
    return found


def check_names(inputs, folder):
    """Refuse inputs that would overwrite each other's transcripts in a folder."""
    seen = {}
    for given in inputs:
        other = seen.setdefault(given.name, given.file)
        if other != given.file:
            raise ValueError(
                f"{other} and {given.file} would both be written as "
                f"{pathlib.Path(folder, given.name)}.*: recognise them one after the other, "
                "into two folders"
            )


@contextlib.contextmanager
def readable(file):
    """A path to read a recording from: its own, or that of a copy of what is piped in."""
    if file != STDIN:
        yield file
        return
    with tempfile.NamedTemporaryFile(prefix="stdin-") as copy:
        while block := sys.stdin.buffer.read(1 << 20):
            copy.write(block)
        copy.flush()
        yield copy.name


def _is_audio(path):
    return path.suffix[1:].lower() in AUDIO and path.is_file()
