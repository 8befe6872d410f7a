"""Is one row better than another, or were the utterances kind to it? A paired bootstrap.

Utterances are drawn with replacement, the same ones for both rows, and the difference of
the error rates is computed each time (Bisani and Ney, ICASSP 2004). The errors of several
runs of a row, with other seeds, are added up utterance by utterance. Utterances of one
speaker succeed and fail together: where speakers are known, they are drawn, with all that
they say, and the interval is that of other speakers (section 3 there).
"""

import math
import pathlib
import re

import numpy as np
from scipy.stats import bootstrap

# Head of an utterance in SpeechBrain's alignment files.
SCORE = re.compile(r"^(\S+), %WER \S+ \[ (\d+) / (\d+), .*$", re.MULTILINE)


def read_errors(run, split):
    """Edits and reference length of every utterance of a scored set.

    Arguments
    ---------
    run : str
        Run folder.
    split : str
        Name of the set, as in errors_<split>.txt.

    Returns
    -------
    dict of str to (int, int)
        By utterance id.

    Raises
    ------
    FileNotFoundError
        If the set has not been scored.
    """
    path = pathlib.Path(run) / f"errors_{split}.txt"
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist. Make it with: python evaluate.py {run} --split {split}"
        )
    text = path.read_text(encoding="utf-8")
    return {uid: (int(edits), int(of)) for uid, edits, of in SCORE.findall(text)}


def compare_runs(ours, baseline, split, resamples=10_000, speakers=None):
    """Paired bootstrap between two rows; see `compare`.

    Arguments
    ---------
    ours, baseline : list of str
        Run folders of each row, one per seed.
    split : str
        Scored set.
    resamples : int
    speakers : dict of str to str, optional
        By utterance id: draw speakers, not utterances.

    Returns
    -------
    dict
        Of `compare`, and the number of `utterances`, of `speakers` if they are known.

    Raises
    ------
    FileNotFoundError
        If a run was not scored on the set.
    ValueError
        If two runs were scored on different utterances or references, or an utterance
        has no speaker.
    """
    errors = [read_errors(run, split) for run in (*ours, *baseline)]
    for run, scored in zip((*ours, *baseline), errors, strict=True):
        if scored.keys() != errors[0].keys():
            other = sorted(scored.keys() ^ errors[0].keys())
            raise ValueError(
                f"{run} was scored on other utterances than {ours[0]}: of {len(scored):,} "
                f"and {len(errors[0]):,}, {len(other):,} are in one only, first {other[0]}. "
                "Score both on the same set with evaluate.py"
            )
        for uid, (_, length) in scored.items():
            if length != errors[0][uid][1]:
                raise ValueError(
                    f"utterance {uid} has {length} reference units in {run}, "
                    f"{errors[0][uid][1]} in {ours[0]}: one counts words and the other "
                    "characters, or their texts differ"
                )
    ids = sorted(errors[0])
    rows = errors[: len(ours)], errors[len(ours) :]
    rows, counts = [mean_errors(row, ids) for row in rows], {"utterances": len(ids)}
    if speakers is not None:
        rows, counts["speakers"] = by_speaker(rows, ids, speakers)
    return {**compare(*rows, resamples), **counts}


def by_speaker(rows, ids, speakers):
    """Edits and lengths of utterances, added up by speaker.

    Arguments
    ---------
    rows : list of (numpy.ndarray, numpy.ndarray), [utterances]
        From `mean_errors`.
    ids : list of str
    speakers : dict of str to str
        By utterance id.

    Returns
    -------
    rows : list of (numpy.ndarray, numpy.ndarray), [speakers]
    count : int
        Number of speakers.

    Raises
    ------
    ValueError
        If an utterance has none.
    """
    missing = [uid for uid in ids if not speakers.get(uid)]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(ids)} utterances have no speaker, first {missing[0]}: "
            "give the csv of this set, with a spk_id in every row"
        )
    names, owner = np.unique([speakers[uid] for uid in ids], return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"all utterances are of {names[0]}: nobody else can be drawn")
    return [
        tuple(np.bincount(owner, weights=numbers) for numbers in row) for row in rows
    ], len(names)


def mean_errors(runs, ids):
    """Edits, mean over the runs, and reference lengths: two arrays [utterances]."""
    edits = np.mean([[run[uid][0] for uid in ids] for run in runs], axis=0)
    return edits, np.array([runs[0][uid][1] for uid in ids])


def compare(ours, baseline, resamples=10_000, seed=0):
    """Paired bootstrap of the difference of two error rates.

    Arguments
    ---------
    ours, baseline : tuple of numpy.ndarray, [N]
        Edits and reference lengths of each utterance or speaker, see `mean_errors`.
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
        # Nothing is relative to no error.
        "relative": rate / base_rate - 1 if base_rate else math.nan,
        "low": drawn.confidence_interval.low,
        "high": drawn.confidence_interval.high,
        "better": (drawn.bootstrap_distribution < 0).mean(),
        "resamples": resamples,
    }
