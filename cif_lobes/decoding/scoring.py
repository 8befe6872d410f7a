"""Character or word error rate with its substitutions, deletions and insertions."""

import itertools
import re

from speechbrain.dataio.wer import print_alignments, print_wer_summary
from speechbrain.utils.edit_distance import wer_details_for_batch, wer_summary

from cif_lobes.devices.processes import gather_objects
from cif_lobes.storage.atomic_files import atomic_open

UNITS = re.compile(r"<unk>|\S")
NAMES = {"char": "CER", "word": "WER", "phone": "PER"}


class ErrorRate:
    """Error rate of a set, with an alignment per utterance.

    Arguments
    ---------
    unit : str
        "char" (spaces are not counted), "word", or "phone" (between spaces, as words).

    Example
    -------
    >>> rate = ErrorRate("word")
    >>> rate.append(["utt1"], ["the cat sat"], ["the cat sat down"])
    >>> rate.describe(rate.summary())
    'WER 25.00 % (S 0 D 1 I 0 of 4 words, 1 utterances)'
    """

    def __init__(self, unit):
        if unit not in NAMES:
            raise ValueError(f"error_unit is {unit!r}, must be one of {[*NAMES]}")
        self.unit = unit
        self.scores = []

    def append(self, ids, hypotheses, references):
        """Score utterances.

        Arguments
        ---------
        ids : list of str
        hypotheses, references : list of str
        """
        self.scores += wer_details_for_batch(
            ids,
            [self.split(text) for text in references],
            [self.split(text) for text in hypotheses],
            compute_alignments=True,
        )

    def gather(self):
        """Bring together what the processes of a distributed run have scored."""
        self.scores = list(itertools.chain(*gather_objects(self.scores)))

    def split(self, text):
        """Units of a text, as list of str."""
        # A token that is no character of the vocabulary stands for one.
        return UNITS.findall(text) if self.unit == "char" else text.split()

    def summary(self):
        """Counts of the set, as plain numbers that a checkpoint's meta can hold."""
        summary = wer_summary(self.scores)
        return {
            "unit": self.unit,
            "error_rate": float(summary["WER"]),
            "substitutions": int(summary["substitutions"]),
            "deletions": int(summary["deletions"]),
            "insertions": int(summary["insertions"]),
            "reference_length": int(summary["num_scored_tokens"]),
            "utterances": int(summary["num_scored_sents"]),
            "utterance_error_rate": float(summary["SER"]),
        }

    @staticmethod
    def describe(summary):
        """One line for people."""
        name = NAMES[summary["unit"]]
        return (
            f"{name} {summary['error_rate']:.2f} % (S {summary['substitutions']} "
            f"D {summary['deletions']} I {summary['insertions']} of "
            f"{summary['reference_length']} {summary['unit']}s, "
            f"{summary['utterances']} utterances)"
        )

    def write(self, path):
        """Write the summary and every utterance's alignment, in the order of ids."""
        with atomic_open(path) as file:
            print_wer_summary(wer_summary(self.scores), file)
            print_alignments(sorted(self.scores, key=lambda s: s["key"]), file)
