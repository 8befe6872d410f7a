"""Score word times against known ones: two CTM files, such as MiniSpeech's own.

python -m cif_lobes.inference RUN DATA/test-clean-mini/*/*/*.flac --format ctm > my.ctm
python tools/timestamp_errors.py my.ctm DATA/test-clean-mini.ctm

Only words that were recognised count: those that are equal where edit distance aligns
an utterance. Case is not compared. A positive bias means that the times are late.
"""

import argparse
from typing import NamedTuple

import numpy as np

from cif_lobes.settings.program import run_program


class Word(NamedTuple):
    """A line of a CTM file."""

    word: str  # lower case
    start: float  # seconds
    end: float  # seconds


def read_ctm(path):
    """Words of each utterance of a CTM file, in the order of time.

    Arguments
    ---------
    path : str
        Lines of utterance, channel, start and duration (seconds), word; what follows,
        such as a confidence, is not read. Lines with `;;` in front are comments.

    Returns
    -------
    dict of str to list of Word
    """
    utterances = {}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.startswith(";;") or not line.strip():
                continue
            try:
                utterance, _, start, duration, word = line.split()[:5]
                start, end = float(start), float(start) + float(duration)
            except ValueError:
                raise SystemExit(
                    f"{path}, line {number} is not a line of a CTM file (utterance "
                    f"channel start duration word): {line.strip()!r}"
                ) from None
            words = utterances.setdefault(utterance, [])
            words.append(Word(word.lower(), start, end))
    return {u: sorted(words, key=lambda w: w.start) for u, words in utterances.items()}


def matches(found, true):
    """Pairs of words that were recognised.

    Arguments
    ---------
    found, true : list of Word
        Of one utterance.

    Returns
    -------
    list of (Word, Word)
        Found and true.
    """
    # Here, so that --help needs no torch.
    from speechbrain.utils.edit_distance import EDIT_SYMBOLS, alignment, op_table

    table = op_table([w.word for w in true], [w.word for w in found])
    return [
        (found[j], true[i])
        for operation, i, j in alignment(table)
        if operation == EDIT_SYMBOLS["eq"]
    ]


def errors(found, true):
    """Times of the recognised words minus the true ones.

    Arguments
    ---------
    found, true : dict of str to list of Word
        From `read_ctm`. Utterances without any word found count as not recognised.

    Returns
    -------
    numpy.ndarray, [words, 2], float64
        Errors of start and end in milliseconds.
    """
    pairs = [p for u, words in true.items() for p in matches(found.get(u, []), words)]
    return 1000 * np.array([[f.start - t.start, f.end - t.end] for f, t in pairs])


def main():
    """Read both files, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("found", help="CTM file of the words recognised")
    parser.add_argument("true", help="CTM file of the words said")
    arguments = parser.parse_args()
    found, true = read_ctm(arguments.found), read_ctm(arguments.true)
    if not found.keys() & true.keys():
        raise SystemExit(
            f"{arguments.found} and {arguments.true} have no utterance in common: the "
            f"first of one is {next(iter(found), 'missing')}, of the other "
            f"{next(iter(true), 'missing')}. Were these recordings recognised?"
        )
    milliseconds = errors(found, true)
    num_words = sum(map(len, true.values()))
    if not len(milliseconds):
        raise SystemExit(
            f"{arguments.found}: none of the {num_words} words of {arguments.true} was "
            "recognised, so there are no times to compare"
        )
    print(f"{len(milliseconds)} of {num_words} words, {len(true)} utterances; ms")
    print("       median  90 %    bias")
    for column, name in enumerate(("start", "end")):
        error = milliseconds[:, column]
        middle, most = np.percentile(np.abs(error), [50, 90])
        print(f"{name:5} {middle:7.0f} {most:5.0f} {np.median(error):+7.0f}")


if __name__ == "__main__":
    run_program(main)
