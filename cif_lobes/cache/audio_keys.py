"""What stands for an utterance's text in a cache of speech: the audio it is made of.

The hash of a file is remembered with its size and its time of change, so that a corpus is
read for it once, and not at the start of every run.
"""

import contextlib
import hashlib
import json
import os

from cif_lobes.data.validation import MEMORY
from cif_lobes.storage.atomic_files import write_atomically


def audio_keys(utterances, memory):
    """Keys of utterances, for `cif_lobes.cache.writer.CacheWriter`.

    Arguments
    ---------
    utterances : iterable of cif_lobes.data.manifest.Utterance
    memory : str
        json file of the hashes known; written if there are new ones.

    Returns
    -------
    dict of str to str
        By utterance id. Another recording, another stretch of it, or the same one encoded
        differently, has another key.

    Raises
    ------
    OSError
        If a recording cannot be read.
    """
    known = {}
    with contextlib.suppress(OSError, ValueError):
        with open(memory, encoding="utf-8") as file:
            known = json.load(file)
    keys, before = {}, len(known)
    for u in utterances:
        path = os.path.abspath(u.wav)
        found = os.stat(path)
        state = f"{path} {found.st_size} {found.st_mtime_ns}"
        if state not in known:
            known[state] = _hash(path)
        # As measuring rounds it: a user's own csv and the checked one say the same.
        stretch = (
            "" if u.offset is None else f" from {u.offset} s, {round(u.duration, 6)} s"
        )
        keys[u.id] = f"{u.id}, audio {known[state]}{stretch}"
    if len(known) > before:
        # A cache that only can be read still serves.
        with contextlib.suppress(OSError):
            write_atomically(memory, json.dumps(known))
    return keys


def memory_of(cache):
    """Where the hashes of a cache's recordings are remembered."""
    return f"{cache}.audio.json"


def decoded_of(cache):
    """Where it is remembered which of them can be decoded."""
    return f"{cache}.{MEMORY}"


def _hash(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
