"""What an ensemble of recognisers says about the training set, from a teacher cache.

Every utterance has three parts, whose rows are [K teachers, columns]:

    ctc     a row for each encoder frame: log-posteriors
    seq     a row for each token, end of sentence included: log-posteriors
    errors  one row: error rates of CTC and attention in its first two columns, in %

The columns are the V classes or, truncated, the log-posteriors of the n best classes and
then their n numbers (exact up to 2,048 in float16).
"""

import torch
from torch.nn.utils.rnn import pad_sequence

from cif_lobes.cache.reader import TeacherCache
from cif_lobes.data.manifest import read_manifest
from cif_lobes.losses.multi_teacher import greedy_labels

PARTS = ("ctc", "seq", "errors")


def utterance_keys(utterances, tokenizer):
    """What decides the posteriors of each utterance, for the cache's hashes.

    Arguments
    ---------
    utterances : iterable of cif_lobes.data.manifest.Utterance
    tokenizer : cif_lobes.data.tokens.Tokenizer

    Returns
    -------
    dict of str to str
        By utterance id.
    """
    return {
        u.id: f"{u.id}, {u.duration:.3f} s: {tokenizer.normalize(u.wrd)}"
        for u in utterances
    }


def truncate(log_posteriors, top_n):
    """Keep the n best classes of each row; 0 keeps all.

    Arguments
    ---------
    log_posteriors : torch.Tensor, [..., V], float
    top_n : int

    Returns
    -------
    torch.Tensor, [..., V] or [..., 2 n], float
    """
    if not top_n:
        return log_posteriors
    best = log_posteriors.topk(top_n, dim=-1)
    return torch.cat([best.values, best.indices.to(best.values.dtype)], dim=-1)


def expand(rows, top_n, vocab_size):
    """Undo `truncate`: -inf where nothing was kept.

    Arguments
    ---------
    rows : torch.Tensor, [..., V] or [..., 2 n], float
    top_n, vocab_size : int

    Returns
    -------
    torch.Tensor, [..., V], float

    Example
    -------
    >>> rows = truncate(torch.tensor([0.7, 0.1, 0.2]).log(), top_n=2)
    >>> expand(rows, top_n=2, vocab_size=3).exp()
    tensor([0.7000, 0.0000, 0.2000])
    """
    if not top_n:
        return rows
    values, classes = rows.split(top_n, dim=-1)
    dense = rows.new_full((*rows.shape[:-1], vocab_size), -torch.inf)
    return dense.scatter(-1, classes.long(), values)


class EnsembleCache:
    """Reads what the teachers say about an utterance, ready for the losses.

    Arguments
    ---------
    cache : cif_lobes.cache.reader.TeacherCache
        Of parts `PARTS`.
    blank_index : int
        Class of the CTC blank.
    """

    def __init__(self, cache, blank_index):
        self.cache, self.blank_index = cache, blank_index
        self.top_n = cache.attributes["top_n"]
        self.vocab_size = cache.attributes["vocab_size"]

    def targets(self, utt_id):
        """Targets of an utterance.

        Arguments
        ---------
        utt_id : str

        Yields
        ------
        seq : torch.Tensor, [U, K, V], float
            Log-posteriors of K teachers for each token, end of sentence included.
        labels : torch.Tensor, [L, K], int64
            What each teacher's CTC recognises, padded with blanks.
        errors : torch.Tensor, [2, K], float32
            Error rates of CTC and attention in %.
        """
        ctc, seq, errors = self.cache.parts(utt_id).values()
        yield expand(seq, self.top_n, self.vocab_size)
        ctc = expand(ctc, self.top_n, self.vocab_size)
        labels = [greedy_labels(frames, self.blank_index) for frames in ctc.unbind(1)]
        labels = pad_sequence(labels, padding_value=self.blank_index)
        # PaddedBatch cannot put together utterances of length 0 only.
        silence = labels.new_full((1, labels.shape[1]), self.blank_index)
        yield labels if len(labels) else silence
        yield errors[0, :, :2].T.float()

    def teach(self, dataset):
        """Add `teacher_seq`, `teacher_labels`, `teacher_errors` to a dataset's items."""
        provided = ["teacher_seq", "teacher_labels", "teacher_errors"]
        keys = list(dataset.pipeline.output_mapping)
        dataset.add_dynamic_item(self.targets, takes=["id"], provides=provided)
        dataset.set_output_keys([*keys, *provided])


def open_ensemble_cache(hparams, manifest):
    """The teachers' cache of a training manifest, checked against it.

    Arguments
    ---------
    hparams : dict
        The loaded yaml: teacher_cache, tokenizer, vocab_size, error_unit.

    Returns
    -------
    EnsembleCache

    Raises
    ------
    ValueError
        If the cache was built for other utterances, texts, units or normalisation.
    """
    cache = TeacherCache(hparams["teacher_cache"])
    tokenizer = hparams["tokenizer"]
    cache.check(
        utterance_keys(read_manifest(manifest), tokenizer),
        tokenizer.fingerprint,
        tokenizer.language,
        vocab_size=hparams["vocab_size"],
        error_unit=hparams["error_unit"],
    )
    return EnsembleCache(cache, tokenizer.blank_index)
