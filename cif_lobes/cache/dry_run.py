"""What a cache would cost, from a few of its batches; it is not written."""

import contextlib
import datetime
import os
import pathlib
import shutil
import tempfile
import time

from cif_lobes.cache.audio_keys import decoded_of, memory_of
from cif_lobes.cache.build import count_rows
from cif_lobes.storage.atomic_files import bring
from cif_lobes.storage.record import peak_memory

CHUNKS, KEYS = 10, 32  # stretches of the plan that are computed, keys of each


def estimate(kind, hparams):
    """Load the teacher, compute some states, and print what all of them would take.

    Arguments
    ---------
    kind : subclass of cif_lobes.cache.build.TeacherStates
        Asked as if its cache were not there.
    hparams : dict
        The loaded yaml.

    Returns
    -------
    dict
        `keys`, `rows`, `seconds`, `gigabytes`, `memory` in GB.

    Raises
    ------
    ValueError, OSError
        As `cif_lobes.cache.build.build`.
    """
    path = pathlib.Path(hparams["cache"])
    with tempfile.TemporaryDirectory(prefix="dry_run_") as nowhere:
        elsewhere = pathlib.Path(nowhere, path.name)
        hparams["cache"], hparams["listing"] = str(elsewhere), None
        tokenizer = hparams.get("tokenizer")
        if tokenizer is not None and not os.path.exists(tokenizer.path):
            # It is made with the first cache, and kept for training.
            tokenizer.path = pathlib.Path(nowhere, pathlib.Path(tokenizer.path).name)
        with _memories(path, elsewhere):
            states = kind(hparams)
        states.load()
        rows = states.plan({key: i for i, key in reversed(states.keys.items())})
        seconds = _seconds(states, rows)
    found = {
        "keys": len(rows),
        "rows": count_rows(rows),
        "seconds": seconds,
        "gigabytes": states.gigabytes(rows),
        "memory": peak_memory(hparams["device"]),
    }
    _print(found, states, path)
    return found


@contextlib.contextmanager
def _memories(path, elsewhere):
    """What is known of recordings is remembered beside a cache, and found only once."""
    memories = [(known(path), known(elsewhere)) for known in (memory_of, decoded_of)]
    for there, here in memories:
        if os.path.exists(there):
            shutil.copyfile(there, here)
    try:
        yield
    finally:
        for there, here in memories:
            bring(here, there)


def _seconds(states, rows):
    """Of all rows, from stretches that are evenly apart: batches are sorted by length."""
    keys = list(rows)
    starts = [n * max(len(keys) - KEYS, 0) // (CHUNKS - 1) for n in range(CHUNKS)]
    chunks = [keys[start : start + KEYS] for start in sorted(set(starts))]
    _compute(states, chunks[len(chunks) // 2])  # warms up
    begin = time.monotonic()
    for chunk in chunks:
        _compute(states, chunk)
    taken = time.monotonic() - begin
    computed = sum(count_rows({key: rows[key] for key in chunk}) for chunk in chunks)
    return taken * count_rows(rows) / max(computed, 1)


def _compute(states, keys):
    for answers in states.answers(keys):
        for answer in answers:
            states.lay(answer)


def _print(found, states, path):
    folder = next(p for p in path.absolute().parents if p.exists())
    free = shutil.disk_usage(folder).free / 1e9
    small = "" if free > found["gigabytes"] else ": TOO LITTLE"
    took = datetime.timedelta(seconds=round(found["seconds"]))
    print(
        f"dry run on {states.hparams['device']}; no cache was written:\n"
        f"  {path}   {found['keys']:,} {states.unit}, {found['rows']:,} {states.row}\n"
        f"  to compute   {took}\n"
        f"  disk   {found['gigabytes']:,.2f} GB, {free:,.0f} GB are free{small}\n"
        f"  memory   {found['memory']:,.1f} GB",
        flush=True,
    )
