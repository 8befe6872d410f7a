"""Error rates of frequent and rare characters or words: where does a row gain?

python tools/errors_by_frequency.py --train results/AISHELL-1/manifests/train.csv --split test results/AISHELL-1/cif/1986 results/AISHELL-1/cif_hieradist/1986

Reference units are put into classes by how often they occur in the training transcripts;
an error is a substitution or a deletion. Runs joined by a comma are seeds of one row.
"""  # noqa: E501

import argparse
import collections
import itertools
import json
import pathlib

from cif_lobes.data.manifest import read_rows
from cif_lobes.decoding.significance import SCORE
from cif_lobes.settings.program import run_program

CLASSES = (0, 1, 5, 20, 80, 320)  # each reaches to the next
HIT = "="


def parse_arguments():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", help="run folders, of several seeds with ,")
    parser.add_argument("--train", required=True, help="csv of the training set")
    parser.add_argument("--split", default="test", help="scored set (default: test)")
    return parser.parse_args()


def main(arguments):
    """Print a row for each class of frequency, a column for each row of runs."""
    # Here, so that --help and a misspelt option need no torch.
    from cif_lobes.decoding.scoring import ErrorRate

    rows = [[pathlib.Path(run) for run in runs.split(",")] for runs in arguments.runs]
    record = json.loads((rows[0][0] / "run.json").read_text())
    split = ErrorRate(record["results"][arguments.split]["unit"]).split
    counts = collections.Counter()
    for utterance in read_rows(arguments.train):
        counts.update(split(utterance.wrd.lower()))
    errors = [by_class(runs, arguments.split, counts) for runs in rows]
    print(table(errors, arguments.runs))


def by_class(runs, split, counts):
    """Errors and occurrences of each class in the references of some runs.

    Arguments
    ---------
    runs : list of pathlib.Path
        Run folders.
    split : str
        Scored set.
    counts : dict of str to int
        Occurrences in training of each unit.

    Returns
    -------
    list of (int, int)
        For each of CLASSES.
    """
    found = [[0, 0] for _ in CLASSES]
    for run in runs:
        text = (run / f"errors_{split}.txt").read_text(encoding="utf-8")
        lines = text.split("\n")
        for i, line in enumerate(lines):
            if not SCORE.match(line):
                continue
            reference, edits = (lines[i + n].split(" ; ") for n in (1, 2))
            for unit, edit in zip(reference, edits, strict=True):
                if unit.strip() != "<eps>":  # an insertion
                    number = sum(low <= counts[unit.strip()] for low in CLASSES) - 1
                    found[number][0] += edit.strip() != HIT
                    found[number][1] += 1
    return found


def table(errors, names):
    """The classes in markdown."""
    lines = [
        f"| times in training | of | {' | '.join(names)} |",
        "|---|---:|" + "---:|" * len(names),
    ]
    bounds = itertools.zip_longest(CLASSES, CLASSES[1:])
    for number, (low, above) in enumerate(bounds):
        total = errors[0][number][1]
        if not total:
            continue
        span = f"{low} or more" if above is None else f"{low} to {above - 1}"
        rates = " | ".join(f"{100 * e[number][0] / e[number][1]:.1f} %" for e in errors)
        lines.append(
            f"| {span if above is None or above > low + 1 else low} | {total:,} | {rates} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run_program(lambda: main(parse_arguments()))
