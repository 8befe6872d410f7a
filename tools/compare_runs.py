"""Is one row better than another, or were the utterances kind to it? A paired bootstrap.

python tools/compare_runs.py --split test --ours results/AISHELL-1/cif_mini_hieradist/1 results/AISHELL-1/cif_mini_hieradist/2 --baseline results/AISHELL-1/cif_mini/1 results/AISHELL-1/cif_mini/2

Utterances are drawn with replacement, the same ones for both rows, and the difference of
the error rates is computed each time (Bisani and Ney, ICASSP 2004). The errors of several
runs of a row, with other seeds, are added up utterance by utterance.
"""  # noqa: E501

import argparse
import pathlib
import re

import numpy as np
from scipy.stats import bootstrap

# Head of an utterance in SpeechBrain's alignment files.
SCORE = re.compile(r"^(\S+), %WER \S+ \[ (\d+) / (\d+), ", re.MULTILINE)


def main(arguments):
    """Compare two rows and print their rates, the difference and its interval."""
    ours, baseline = (
        [read_errors(run, arguments.split) for run in runs]
        for runs in (arguments.ours, arguments.baseline)
    )
    ids = sorted(ours[0])
    for run, errors in zip(
        arguments.ours + arguments.baseline, ours + baseline, strict=True
    ):
        if errors.keys() != ours[0].keys():
            raise SystemExit(
                f"{run} was scored on other utterances than {arguments.ours[0]}: "
                f"{len(errors)} and {len(ids)}. Score both with evaluate.py"
            )
    result = compare(*(mean_errors(runs, ids) for runs in (ours, baseline)))
    print(
        f"{arguments.split}, {len(ids)} utterances: ours {result['ours']:.2f} %, baseline "
        f"{result['baseline']:.2f} %, difference {result['difference']:+.2f} points "
        f"({result['relative']:+.1%}), 95 % interval {result['low']:+.2f} to "
        f"{result['high']:+.2f}; ours is better in {result['better']:.1%} of "
        f"{result['resamples']:,} resamples"
    )


def read_errors(run, split):
    """Edits and reference length of every utterance of a scored set.

    Arguments
    ---------
    run : pathlib.Path
        Run folder.
    split : str
        Name of the set, as in errors_<split>.txt.

    Returns
    -------
    dict of str to (int, int)
        By utterance id.
    """
    path = run / f"errors_{split}.txt"
    if not path.exists():
        raise SystemExit(
            f"{path} does not exist. Make it with: python evaluate.py {run} --split {split}"
        )
    text = path.read_text(encoding="utf-8")
    return {uid: (int(edits), int(of)) for uid, edits, of in SCORE.findall(text)}


def mean_errors(runs, ids):
    """Edits, mean over the runs, and reference lengths: two arrays [utterances]."""
    edits = np.mean([[run[uid][0] for uid in ids] for run in runs], axis=0)
    return edits, np.array([runs[0][uid][1] for uid in ids])


def compare(ours, baseline, resamples=10_000, seed=0):
    """Paired bootstrap of the difference of two error rates.

    Arguments
    ---------
    ours, baseline : tuple of numpy.ndarray, [utterances]
        Edits and reference lengths, see `mean_errors`.
    resamples : int
    seed : int

    Returns
    -------
    dict
        Rates `ours`, `baseline` and their `difference` in %, its 95 % interval `low` to
        `high`, `relative` difference, and the share of resamples in which ours is
        `better`.
    """
    (edits, lengths), (base_edits, _) = ours, baseline

    def difference(a, b, n, axis=-1):
        return 100 * (a.sum(axis) - b.sum(axis)) / n.sum(axis)

    drawn = bootstrap(
        (edits, base_edits, lengths),
        difference,
        paired=True,
        n_resamples=resamples,
        batch=100,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    rate, base_rate = (100 * e.sum() / lengths.sum() for e in (edits, base_edits))
    return {
        "ours": rate,
        "baseline": base_rate,
        "difference": rate - base_rate,
        "relative": rate / base_rate - 1,
        "low": drawn.confidence_interval.low,
        "high": drawn.confidence_interval.high,
        "better": (drawn.bootstrap_distribution < 0).mean(),
        "resamples": resamples,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--split", default="test", help="scored set (default: test)")
    for row in ("ours", "baseline"):
        parser.add_argument(
            f"--{row}",
            type=pathlib.Path,
            nargs="+",
            required=True,
            metavar="RUN",
            help="run folders of a row, one per seed",
        )
    main(parser.parse_args())
