"""States of a text teacher in a teacher cache, one per token and one for end of sentence."""

import os

from cif_lobes.cache.build import TeacherStates, versions_of
from cif_lobes.cache.inspection import describe
from cif_lobes.data.manifest import read_manifest
from cif_lobes.teachers.text import TextTeacher, token_batches

MAX_UNKNOWN = 0.05  # share of the teacher's pieces that may be its unknown token


class TextStates(TeacherStates):
    """A language model reads the normalised transcripts; a key is a text.

    Arguments
    ---------
    hparams : dict
        The loaded yaml: manifests, tokenizer, teacher, layer, pooling, batch_tokens,
        device.
    """

    sample = 200
    unit, row = "texts", "tokens"

    def __init__(self, hparams):
        super().__init__(hparams)
        self.tokenizer = hparams["tokenizer"]
        self.keys = read_texts(hparams["manifests"], self.tokenizer.normalize)
        self.tokenizer.fit(self.keys.values())

    def load(self):
        """Read the language model."""
        hparams = self.hparams
        self.teacher = TextTeacher(
            hparams["teacher"],
            hparams["layer"],
            hparams["device"],
            hparams.get("pooling"),
        )
        self.shape = self.teacher.state_shape
        self.notes = {
            "teacher": self.teacher.source,
            "versions": versions_of("torch", "transformers", "tokenizers", "h5py"),
        }

    @property
    def identity(self):
        """Attributes that decide the states."""
        teacher = self.teacher
        return {
            "teacher_weights": teacher.weights_hash,
            "layer": teacher.layer,
            "teacher_tokenizer": teacher.tokenizer_hash,
            "tokenizer_fingerprint": self.tokenizer.fingerprint,
            "text_normalization": self.tokenizer.language,
            "dtype": self.hparams["dtype"],
            # Caches from before it could be chosen do not name it.
            **({} if teacher.pooling == "mean" else {"pooling": teacher.pooling}),
        }

    def plan(self, utterance_of):
        """Texts, longest first: tokens and end of sentence of each."""
        aligned = self.teacher.align(utterance_of, self.tokenizer)
        self.aligned = {a.text: a for a in aligned}
        return {a.text: len(a.ranges) for a in aligned}

    def announce(self, rows):
        """See `check_known`."""
        check_known(self.teacher, list(self.aligned.values()))

    def answers(self, keys):
        """Batches of texts: states [U + 1, H] or [U + 1, L, H] of each."""
        texts = [self.aligned[key] for key in keys]
        for batch in token_batches(texts, self.hparams["batch_tokens"]):
            yield self.teacher(batch).split([len(a.ranges) for a in batch])

    def report(self, rows, seconds):
        """How many texts, how large, and how to look at it."""
        path = self.hparams["cache"]
        return (
            f"{path}: {len(self.keys):,} utterances, {len(rows):,} distinct texts, "
            f"{os.path.getsize(path) / 1e6:,.1f} MB, {seconds:.0f} s\n"
            "Look at it with the verb inspect before training on it"
        )

    def describe(self, cache):
        """See `cif_lobes.cache.inspection`."""
        return describe(cache, self.keys, self.tokenizer)


def read_texts(manifests, normalize):
    """Normalised transcript of every utterance of some manifests.

    Arguments
    ---------
    manifests : list of str
        csv files.
    normalize : callable
        From a transcript to the text that is recognised.

    Returns
    -------
    dict of str to str
        By utterance id, sorted.

    Raises
    ------
    ValueError
        If two manifests disagree about a transcript, or none has an utterance.
    """
    texts = {}
    for manifest in manifests:
        for u in read_manifest(manifest):
            text = normalize(u.wrd)
            if texts.setdefault(u.id, text) != text:
                raise ValueError(
                    f"utterance {u.id} is {texts[u.id]!r} in one manifest and {text!r} "
                    f"in {manifest}: ids must be unique over all of `manifests`"
                )
    if not texts:
        raise ValueError(f"no utterance in {', '.join(manifests)}: prepare the data")
    return dict(sorted(texts.items()))


def check_known(teacher, aligned):
    """See that the teacher knows the words of the transcripts; say what it does not.

    Arguments
    ---------
    teacher : TextTeacher
    aligned : list of AlignedText
        From `teacher.align`.

    Raises
    ------
    ValueError
        If more than the share `MAX_UNKNOWN` of its pieces are unknown to it.
    """
    unknown, total, example = teacher.count_unknown(aligned)
    if not unknown:
        return
    message = (
        f"teacher {teacher.source}: {unknown:,} of {total:,} pieces of the transcripts "
        f"({unknown / total:.2%}) are its unknown token, as in {example.text[:40]!r} "
        f"(utterance {example.utt_id})"
    )
    if unknown > MAX_UNKNOWN * total:
        raise ValueError(
            f"{message}; at most {MAX_UNKNOWN:.0%} may be. Take a teacher of this "
            "language, script and case, with the tokenizer it was trained with"
        )
    print(message)
