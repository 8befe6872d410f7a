"""Build, inspect and verify a teacher cache, whatever the teacher; see the package."""

import contextlib
import math
import os
import random
import sys
import time
from importlib.metadata import version

import torch
from tqdm import tqdm

from cif_lobes.cache.reader import DTYPES, TeacherCache
from cif_lobes.cache.writer import CacheWriter
from cif_lobes.settings.program import this_command


class TeacherStates:
    """A kind of teacher, and what it is asked; a subclass keeps what the package says.

    Arguments
    ---------
    hparams : dict
        The loaded yaml: cache, dtype, overwrite, and what the kind needs.
    """

    # Of a state's length: bfloat16 moves it by 0.2 %, and larger batches by less.
    tolerance = 0.01
    sample = 20  # utterances computed again by verify
    unit, row = "utterances", "frames"  # what a key is, and what has a state, in words
    measured, scale = "a state", " of its length"  # what verify compares, in words
    parts = None  # names of the parts that the states of a key fall into

    def __init__(self, hparams):
        self.hparams, self.cache = hparams, None

    def opened(self):
        """The cache, opened now unless it was before."""
        return TeacherCache(self.hparams["cache"]) if self.cache is None else self.cache

    def announce(self, rows):
        """Before the first state is computed of `plan`'s rows: how much it will be."""

    def check(self, cache):
        """Refuse a cache of another teacher, other settings or other utterances."""
        cache.check(self.keys, **self.identity)

    def lay(self, answer):
        """What the cache keeps of an answer: states [rows, ...]."""
        return answer

    def difference(self, cache, utt_id, answer):
        """How far the cache is from an answer."""
        return relative_error(cache[utt_id].float(), answer.cpu())

    def report(self, rows, seconds):
        """What is said of a finished cache."""
        path = self.hparams["cache"]
        return f"{path}: {len(self.keys):,} utterances, {seconds:.0f} s"

    def gigabytes(self, rows):
        """Of the states of so many rows."""
        number = DTYPES[self.hparams["dtype"]][0].itemsize
        return count_rows(rows) * math.prod(self.shape) * number / 1e9


def build(states):
    """Make the cache unless it is there; go on with one that was interrupted.

    Arguments
    ---------
    states : TeacherStates

    Raises
    ------
    ValueError
        If the cache is there and is another, or the teacher or an utterance is unfit.
    OSError
        If the disk is too small.
    """
    path, overwrite = states.hparams["cache"], states.hparams["overwrite"]
    states.load()
    if is_up_to_date(path, states.keys, states.identity, overwrite):
        return
    rows = states.plan({key: i for i, key in reversed(states.keys.items())})
    states.announce(rows)
    started = time.monotonic()
    with CacheWriter(
        path,
        rows,
        states.keys,
        states.shape,
        states.hparams["dtype"],
        states.identity,
        {**states.notes, "command": build_command()},
        overwrite,
        states.parts,
    ) as writer:
        with resumable(writer, len(rows), states.unit):
            write(states, rows, writer)
        writer.finish()
    print(states.report(rows, time.monotonic() - started))


def write(states, rows, writer):
    """Write the states of all keys that the writer does not have yet.

    Arguments
    ---------
    states : TeacherStates
        Loaded.
    rows : dict of str to int or tuple of int
        From its `plan`, the keys of the writer.
    writer : CacheWriter
        Not finished.
    """
    keys = list(rows)
    done = count_rows({key: rows[key] for key in keys[: writer.committed]})
    with tqdm(
        total=count_rows(rows),
        initial=done,
        unit=f" {states.row}",
        unit_scale=True,
        disable=None,
    ) as bar:
        for answers in states.answers(keys[writer.committed :]):
            laid = torch.cat([states.lay(answer) for answer in answers])
            writer.append(laid, len(answers))
            bar.update(len(laid))


def inspect(states):
    """Print what a cache holds; the teacher is not loaded."""
    cache = states.opened()
    print("\n".join(states.describe(cache)))


def verify(states):
    """Check a cache against manifests and settings, and a sample against the teacher.

    Raises
    ------
    ValueError
        With all that does not fit.
    """
    cache = states.opened()
    states.load()
    states.check(cache)
    sample = random.sample(list(states.keys), min(states.sample, len(states.keys)))
    utterance_of = {states.keys[utt_id]: utt_id for utt_id in sample}
    keys = list(states.plan(utterance_of))
    answers = (a for batch in states.answers(keys) for a in batch)
    differences = (
        (utterance_of[key], states.difference(cache, utterance_of[key], answer))
        for key, answer in zip(keys, answers, strict=True)
    )
    check_sample(
        cache,
        len(states.keys),
        differences,
        states.tolerance,
        states.measured,
        states.scale,
    )


VERBS = {"build": build, "inspect": inspect, "verify": verify}


def count_rows(rows):
    """States of all keys of a plan."""
    return sum(sum(n) if isinstance(n, tuple) else n for n in rows.values())


def versions_of(*packages):
    """For a cache's notes."""
    return ", ".join(f"{name} {version(name)}" for name in packages)


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
    writer : cif_lobes.cache.writer.CacheWriter
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


def check_sample(cache, total, differences, tolerance, unit, scale=""):
    """Read all of a cache, compare what was computed again, and say so.

    Arguments
    ---------
    cache : TeacherCache
    total : int
        Utterances of the manifests, all found in the cache.
    differences : iterable of (str, float)
        Utterance id and largest difference of each that was computed again.
    tolerance : float
        What rounding may do.
    unit, scale : str
        What differs, and relative to what, in words.

    Raises
    ------
    OSError
        If a state is not the one that was written.
    ValueError
        If a difference is larger, or no number.
    """
    for utt_id in cache:
        cache[utt_id]
    found = [(math.inf if math.isnan(d) else d, utt_id) for utt_id, d in differences]
    worst, worst_id = max(found)
    if worst > tolerance:
        raise ValueError(
            f"teacher cache {cache.path}: {unit} of utterance {worst_id} differs by "
            f"{worst:.3g}{scale} from the teacher's, at most {tolerance:g} is rounding: "
            f"the states are not this teacher's. Run: {cache.build_command} --overwrite True"
        )
    print(
        f"{cache.path}: {total:,} of {total:,} utterances; all read; {len(found):,} "
        f"computed again, {unit} differs by {worst:.2g}{scale} at most ({worst_id})"
    )


def relative_error(states, expected):
    """Largest distance of two states, relative to the expected one's length.

    Arguments
    ---------
    states, expected : torch.Tensor, [U, ..., H]

    Returns
    -------
    float
        Infinite if their shapes differ.
    """
    if states.shape != expected.shape:
        return math.inf
    distance = (states - expected).norm(dim=-1)
    return (distance / expected.norm(dim=-1).clamp(min=1e-12)).max().item()
