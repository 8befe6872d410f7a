"""What every build of a teacher cache does, whatever the teacher."""

import contextlib
import math
import os
import sys

from cif_lobes.cache.reader import TeacherCache
from cif_lobes.settings.program import this_command


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
