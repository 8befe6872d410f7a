"""Posteriors of an ensemble of recognisers in a teacher cache; its parts are `ensemble`'s."""

import math
import os

import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataset import FilteredSortedDynamicItemDataset
from torch.utils.data import DataLoader

from cif_lobes.cache.build import TeacherStates, versions_of
from cif_lobes.cache.ensemble import PARTS, expand, truncate, utterance_keys
from cif_lobes.cache.reader import DTYPES, TeacherCache
from cif_lobes.data.batches import make_dataset
from cif_lobes.data.manifest import read_manifest
from cif_lobes.decoding.scoring import ErrorRate
from cif_lobes.losses.multi_teacher import greedy_labels
from cif_lobes.teachers.recognizers import read_teachers


class Posteriors(TeacherStates):
    """Trained recognisers hear the recordings; a key is one with its transcript.

    Verified are probabilities: float16 moves one by 0.4 % at most, another teacher by far
    more.

    Arguments
    ---------
    hparams : dict
        The loaded yaml: manifest, teachers, top_n, batch_seconds, device, sample_rate,
        error_unit, tokenizer.
    """

    measured, scale = "a probability", ""
    row, parts = "rows", list(PARTS)

    def __init__(self, hparams):
        super().__init__(hparams)
        self.tokenizer, self.top_n = hparams["tokenizer"], hparams["top_n"]
        self.utterances = {u.id: u for u in read_manifest(hparams["manifest"])}
        self.tokenizer.fit(u.wrd for u in self.utterances.values())
        self.keys = utterance_keys(self.utterances.values(), self.tokenizer)

    def load(self):
        """Read the recognisers; refuse what cannot be kept side by side."""
        hparams, tokenizer = self.hparams, self.tokenizer
        _check_top_n(hparams)
        teachers = self.teachers = read_teachers(hparams["teachers"], hparams["device"])
        _check_pairs(teachers, tokenizer)
        self.shape = (len(teachers), 2 * self.top_n or teachers[0].vocab_size)
        self.identity = {
            "teacher_weights": [t.weights_hash for t in teachers],
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "text_normalization": tokenizer.language,
            "vocab_size": tokenizer.vocab_size,
            "error_unit": hparams["error_unit"],
            "top_n": self.top_n,
            "dtype": hparams["dtype"],
        }
        self.notes = {
            "teacher": [t.path for t in teachers],
            "versions": versions_of("torch", "h5py"),
        }

    def plan(self, utterance_of):
        """Utterances, the longest first; equal ones by id: rows of each part."""
        self.utterance_of = utterance_of
        order = sorted((-self.utterances[i].duration, i) for i in utterance_of.values())
        return {self.keys[i]: self._rows(self.utterances[i]) for _, i in order}

    def _rows(self, utterance):
        # A resampled recording has its last sample rounded up; durations have 1e-6 s.
        rate = self.hparams["sample_rate"]
        samples = math.ceil(utterance.duration * rate - 0.1)
        tokens = self.tokenizer.encode(utterance.wrd)
        return _frames(self.teachers[0], samples), len(tokens) + 1, 1

    def announce(self, rows):
        """How large the file will be."""
        print(
            f"{self.hparams['cache']}: {len(self.keys):,} utterances, "
            f"{len(self.teachers)} teachers, {self.gigabytes(rows) * 1e3:,.1f} MB",
            flush=True,
        )

    def answers(self, keys):
        """Batches of utterances: see `posteriors`."""
        for batch in _batches(self.hparams, [self.utterance_of[key] for key in keys]):
            yield posteriors(self.teachers, batch, self.hparams)

    def lay(self, answer):
        """Rows of an utterance as the cache has them."""
        ctc, seq, errors = answer
        ctc, seq = truncate(ctc, self.top_n), truncate(seq, self.top_n)
        row = torch.zeros_like(seq[:1])
        row[0, :, :2] = errors
        return torch.cat([ctc, seq, row])

    def difference(self, cache, utt_id, answer):
        """The largest of a probability that was kept."""
        stored = list(cache.parts(utt_id).values())[:2]
        largest = [
            self._largest(*pair) for pair in zip(answer[:2], stored, strict=True)
        ]
        return torch.stack(largest).max().item()  # of which one may be no number

    def _largest(self, ours, stored):
        stored = expand(stored.float(), self.top_n, self.teachers[0].vocab_size)
        known = stored.isfinite()
        return (ours.exp() - stored.exp())[known].abs().max()

    def report(self, rows, seconds):
        """Time, and what the cache holds."""
        path = self.hparams["cache"]
        return "\n".join([f"{path}: {seconds:.0f} s", *describe(TeacherCache(path))])

    def describe(self, cache):
        """See `describe`, and what does not fit."""
        problems = cache.problems(
            self.keys,
            tokenizer_fingerprint=self.tokenizer.fingerprint,
            text_normalization=self.tokenizer.language,
        )
        return [*describe(cache), *(f"  PROBLEM {p}" for p in problems)]


def posteriors(teachers, batch, hparams):
    """What the teachers say about a batch.

    Arguments
    ---------
    teachers : list of ASRTeacher
    batch : speechbrain.dataio.batch.PaddedBatch
        Of `make_dataset`'s items.
    hparams : dict
        The loaded yaml: tokenizer, error_unit.

    Returns
    -------
    list of tuple
        For each utterance: ctc [T, K, V] and seq [U, K, V], log-posteriors on the CPU,
        and errors [K, 2] of both in %, 100 at most.
    """
    waves, relative = batch.signal
    lengths = (relative * waves.shape[1]).round().long()
    tokens, relative = batch.tokens
    token_lengths = (relative * tokens.shape[1]).round().long()
    ctc, seq, errors = [], [], []
    for teacher in teachers:
        frames, x_lengths, states = teacher(waves, lengths, tokens, token_lengths)
        ctc.append(frames.cpu())
        seq.append(states.cpu())
        errors.append(
            error_rates(ctc[-1], x_lengths, seq[-1], token_lengths, batch, hparams)
        )
    ctc, seq, errors = (torch.stack(x, dim=-2) for x in (ctc, seq, errors))
    return [
        (ctc[b, :frames], seq[b, :length], errors[b])
        for b, (frames, length) in enumerate(
            zip(x_lengths.tolist(), token_lengths.tolist(), strict=True)
        )
    ]


def error_rates(ctc, x_lengths, seq, token_lengths, batch, hparams):
    """Error rates of a teacher's best classes on each utterance of a batch.

    The attention's tokens are those it thinks best given the true ones before, up to
    the first end of sentence.

    Returns
    -------
    torch.Tensor, [B, 2], float32
        Of CTC and of attention, in %, 100 at most.
    """
    tokenizer = hparams["tokenizer"]
    heard = [
        greedy_labels(frames[:n], tokenizer.blank_index)
        for frames, n in zip(ctc, x_lengths, strict=True)
    ]
    written = []
    for states, n in zip(seq, token_lengths, strict=True):
        best = states[:n].argmax(-1).tolist() + [tokenizer.eos_index]
        written.append(best[: best.index(tokenizer.eos_index)])
    rates = []
    for hypotheses in (heard, written):
        rate = ErrorRate(hparams["error_unit"])
        rate.append(batch.id, [tokenizer.decode(h) for h in hypotheses], batch.text)
        rates.append([score["WER"] for score in rate.scores])
    return torch.tensor(rates).T.clamp(max=100)


def describe(cache):
    """Lines about a cache: its teachers, and how well they know what they teach.

    Arguments
    ---------
    cache : TeacherCache

    Returns
    -------
    list of str
    """
    made = cache.attributes
    errors = torch.stack([cache.parts(i)["errors"][0, :, :2].float() for i in cache])
    lines = [
        f"{cache.path}: {len(cache):,} utterances, {os.path.getsize(cache.path):,} "
        f"bytes, {made['dtype']}, "
        + (f"best {made['top_n']} classes" if made["top_n"] else "all classes"),
        f"  made by {made['command']} ({made['versions']})",
        f"  mean error rate of an utterance, % of its {made['error_unit']}s",
    ]
    for name, weights, (ctc, seq) in zip(
        made["teacher"], made["teacher_weights"], errors.mean(0).tolist(), strict=True
    ):
        lines.append(f"    CTC {ctc:6.2f}  attention {seq:6.2f}  {name} ({weights})")
    return lines


def _check_pairs(teachers, tokenizer):
    """Refuse teachers whose classes or frames are not one another's."""
    for teacher in teachers:
        for what, theirs, ours in (
            ("tokenizer", teacher.tokenizer.fingerprint, tokenizer.fingerprint),
            ("vocab_size", teacher.vocab_size, tokenizer.vocab_size),
            ("frames of 10 s", *(_frames(t, 160000) for t in (teacher, teachers[0]))),
        ):
            if theirs != ours:
                raise ValueError(
                    f"teacher {teacher.path}: {what} {theirs}, expected {ours} as here "
                    "or as the first teacher's: their classes or frames cannot be "
                    "paired. Train it with this manifest_folder and time_pooling_size"
                )


def _check_top_n(hparams):
    """See that class numbers, which stand beside the best posteriors, are exact."""
    exact = 2 / torch.finfo(_dtype(hparams)).eps  # integers up to here
    vocab_size = hparams["tokenizer"].vocab_size
    if hparams["top_n"] and vocab_size - 1 > exact:
        raise ValueError(
            f"top_n {hparams['top_n']} with {vocab_size:,} classes: {hparams['dtype']} "
            f"rounds class numbers above {exact:,.0f}. Run with --dtype float32, or with "
            "--top_n 0, which keeps all classes"
        )


def _frames(teacher, samples):
    return int(teacher.output_lengths(torch.tensor(samples)))


def _dtype(hparams):
    return DTYPES[hparams["dtype"]][0]


def _batches(hparams, ids):
    """Utterances in this order, in batches of bounded seconds, padding included."""
    data = make_dataset(
        hparams["manifest"], hparams["tokenizer"], hparams["sample_rate"]
    )
    batches, longest = [[]], 0.0
    for index, utt_id in enumerate(ids):
        duration = data.data[utt_id]["duration"]
        longest = max(longest, duration)
        if batches[-1] and longest * (len(batches[-1]) + 1) > hparams["batch_seconds"]:
            batches.append([])
            longest = duration
        batches[-1].append(index)
    return DataLoader(
        FilteredSortedDynamicItemDataset(data, ids),
        batch_sampler=batches,
        collate_fn=PaddedBatch,
    )
