"""What hotwords do: errors in the words of a list, in all others, and phrases found.

python tools/biased_errors.py list results/LibriSpeech/manifests/test-clean.csv --train results/LibriSpeech/manifests/train.csv --pool words.txt --distractors 100 --out biased.txt
python evaluate.py results/LibriSpeech/cif/1986 --split test-clean --beam 10 --hotwords biased.txt
python tools/biased_errors.py score biased.txt results/LibriSpeech/cif/1986/errors_test-clean*.txt

list   writes the rare words of a set, those outside the --common most frequent words of
       the training transcripts, and as many distractors from a pool that the set lacks;
       texts without spaces are cut into words by the package jieba
score  prints the error rates of all units, of those in phrases of the list (B) and of all
       others (U), as Le et al. 2021 (https://arxiv.org/abs/2104.02194), and precision,
       recall and F1 of the phrases
"""  # noqa: E501

import argparse
import collections
import pathlib
import random

from cif_lobes.data.manifest import read_rows
from cif_lobes.decoding.alignments import read_alignments
from cif_lobes.decoding.hotwords import read_hotwords
from cif_lobes.settings.program import run_program
from cif_lobes.storage.atomic_files import write_atomically


def parse_arguments():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    make = verbs.add_parser("list", help="write a list")
    make.add_argument("csv", help="the set that will be scored")
    make.add_argument("--train", required=True, help="csv of the training set")
    make.add_argument(
        "--common", type=int, default=5000, help="words that are not rare"
    )
    make.add_argument("--pool", help="text file of words, one a line, for distractors")
    make.add_argument(
        "--distractors", type=int, default=0, help="how many (default: 0)"
    )
    make.add_argument("--seed", type=int, default=1986, help="which of them")
    make.add_argument("--out", required=True, help="text file to write")
    score = verbs.add_parser("score", help="score a list")
    score.add_argument("hotwords", help="the list, without the distractors if you like")
    score.add_argument("errors", nargs="+", help="errors_*.txt of run folders")
    return parser.parse_args()


def make_list(texts, training, common, pool, distractors, seed):
    """Rare words of a set, and words that it lacks.

    Arguments
    ---------
    texts, training : iterable of str
        Transcripts of the set, and of the training set.
    common : int
        As many of the most frequent training words are not rare.
    pool : list of str
        Where distractors come from.
    distractors : int
    seed : int

    Returns
    -------
    list of str
        Sorted.

    Raises
    ------
    ValueError
        If the pool has too few.
    """
    counts = collections.Counter(words_of(training))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))[:common]
    heard = {*words_of(texts)}
    unheard = sorted({*pool} - heard)
    if not have_spaces(texts):  # words may be within others
        said = "\n".join(texts)
        unheard = [word for word in unheard if word not in said]
    if len(unheard) < distractors:
        raise ValueError(
            f"--pool has {len(unheard):,} words that the set lacks, --distractors is "
            f"{distractors:,}: give a larger pool"
        )
    drawn = random.Random(seed).sample(unheard, distractors)
    return sorted((heard - {*ranked}) | {*drawn})


def have_spaces(texts):
    """Whether words are apart; a single word of Latin letters is one, too."""
    return any(" " in text or text.isascii() for text in texts)


def words_of(texts):
    """Words of texts in their order; of Mandarin those of at least two characters.

    Arguments
    ---------
    texts : list of str

    Returns
    -------
    list of str

    Raises
    ------
    ValueError
        If texts have no spaces, and the package that finds words in them is missing.
    """
    if have_spaces(texts):
        return [word for text in texts for word in text.split()]
    try:
        import jieba
    except ImportError:
        raise ValueError(
            "the texts have no spaces, their words are found by the package jieba, not "
            "installed: pip install jieba"
        ) from None
    return [word for text in texts for word in jieba.lcut(text) if len(word) > 1]


def count(utterances, phrases):
    """Errors and phrases of aligned utterances.

    Arguments
    ---------
    utterances : iterable of list of (str or None, str or None)
        Pairs of reference and hypothesis units, see `read_alignments`.
    phrases : set of tuple of str
        As units.

    Returns
    -------
    collections.Counter
        errors and units of "B" and "U"; true, said and found phrases.
    """
    counts = collections.Counter()
    for pairs in utterances:
        sides = []
        for side in (0, 1):
            places = [i for i, pair in enumerate(pairs) if pair[side] is not None]
            units = [pairs[i][side] for i in places]
            spans = list(find(units, phrases))
            inside = {places[i] for start, end in spans for i in range(start, end)}
            sides.append(
                (inside, collections.Counter(tuple(units[a:b]) for a, b in spans))
            )
        (biased, true), (biased_said, said) = sides
        for i, (reference, hypothesis) in enumerate(pairs):
            # What is too much belongs to the list if it is in a phrase there.
            where = biased_said if reference is None else biased
            kind = "B" if i in where else "U"
            counts[kind, "errors"] += reference != hypothesis
            counts[kind, "units"] += reference is not None
        counts["true"] += true.total()
        counts["said"] += said.total()
        counts["found"] += (true & said).total()
    return counts


def find(units, phrases):
    """(start, end) of every phrase in a sequence of units."""
    for length in sorted({len(phrase) for phrase in phrases}):
        for start in range(len(units) - length + 1):
            if tuple(units[start : start + length]) in phrases:
                yield start, start + length


def row(name, c):
    """A line of the table."""
    rates = [
        _share(c["B", "errors"] + c["U", "errors"], c["B", "units"] + c["U", "units"])
    ]
    rates += [_share(c[kind, "errors"], c[kind, "units"]) for kind in "BU"]
    f1 = _share(2 * c["found"], c["true"] + c["said"])
    rates += [_share(c["found"], c["said"]), _share(c["found"], c["true"]), f1]
    return f"| {name} | {' | '.join(rates)} |"


def _share(part, whole):
    return f"{100 * part / whole:.2f}" if whole else "-"


def main(given):
    """Write a list, or print a table."""
    if given.verb == "list":
        pool = [phrase for phrase, _ in read_hotwords(given.pool)] if given.pool else []
        texts, training = (
            [utterance.wrd.lower() for utterance in read_rows(path)]
            for path in (given.csv, given.train)
        )
        words = make_list(
            texts, training, given.common, pool, given.distractors, given.seed
        )
        write_atomically(given.out, "".join(f"{word}\n" for word in words))
        print(f"{given.out}: {len(words):,} words, {given.distractors:,} distractors")
        return
    print(
        "| | all | B | U | precision | recall | F1 |\n|---|---:|---:|---:|---:|---:|---:|"
    )
    for path in map(pathlib.Path, given.errors):
        utterances, split = read_alignments(path)
        phrases = {tuple(split(p.lower())) for p, _ in read_hotwords(given.hotwords)}
        print(row(f"{path.parent.name}/{path.stem}", count(utterances, phrases)))


if __name__ == "__main__":
    run_program(lambda: main(parse_arguments()))
