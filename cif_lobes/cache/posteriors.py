"""What extract_teacher.py does with a list of recognisers: their posteriors, cached."""

import math
import os
import random
import time
from importlib.metadata import version

import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataset import FilteredSortedDynamicItemDataset
from torch.utils.data import DataLoader
from tqdm import tqdm

from cif_lobes.cache.build import (
    build_command,
    check_sample,
    is_up_to_date,
    resumable,
)
from cif_lobes.cache.ensemble import PARTS, expand, truncate, utterance_keys
from cif_lobes.cache.reader import DTYPES, TeacherCache
from cif_lobes.cache.writer import CacheWriter
from cif_lobes.data.batches import make_dataset
from cif_lobes.data.manifest import read_manifest
from cif_lobes.decoding.scoring import ErrorRate
from cif_lobes.losses.multi_teacher import greedy_labels
from cif_lobes.teachers.recognizers import read_teachers

SAMPLE = 20  # utterances computed again by verify
# Of a probability. float16 moves one by 0.4 % at most, another teacher by far more.
TOLERANCE = 0.01


def run(verb, hparams):
    """Build, inspect or verify the cache of an ensemble's yaml.

    Arguments
    ---------
    verb : str
        "build", "inspect" or "verify".
    hparams : dict
        The loaded yaml: manifest, teachers, cache, overwrite, top_n, dtype,
        batch_seconds, device, sample_rate, error_unit, tokenizer.
    """
    utterances = {u.id: u for u in read_manifest(hparams["manifest"])}
    hparams["tokenizer"].fit(u.wrd for u in utterances.values())
    keys = utterance_keys(utterances.values(), hparams["tokenizer"])
    {"build": build, "inspect": inspect, "verify": verify}[verb](
        hparams, utterances, keys
    )


def build(hparams, utterances, keys):
    """Make the cache unless it is there; go on with one that was interrupted.

    Arguments
    ---------
    hparams : dict
        The loaded yaml.
    utterances : dict of str to cif_lobes.data.manifest.Utterance
        By id.
    keys : dict of str to str
        From `utterance_keys`.
    """
    path, top_n = hparams["cache"], hparams["top_n"]
    _check_top_n(hparams)
    teachers = read_teachers(hparams["teachers"], hparams["device"])
    identity = _identity(teachers, hparams)
    if is_up_to_date(path, keys, identity, hparams["overwrite"]):
        return
    # Like lengths together; equal ones by id.
    order = sorted(utterances, key=lambda i: (-utterances[i].duration, i))
    rows = {keys[i]: _rows(utterances[i], teachers, hparams) for i in order}
    shape = (len(teachers), 2 * top_n or teachers[0].vocab_size)
    states, number = sum(map(sum, rows.values())), torch.empty(0, dtype=_dtype(hparams))
    print(
        f"{path}: {len(keys):,} utterances, {len(teachers)} teachers, "
        f"{states * math.prod(shape) * number.itemsize / 1e6:,.1f} MB",
        flush=True,
    )
    notes = {
        "teacher": [t.path for t in teachers],
        "versions": ", ".join(f"{n} {version(n)}" for n in ("torch", "h5py")),
        "command": build_command(),
    }
    started = time.monotonic()
    arguments = (rows, keys, shape, hparams["dtype"], identity, notes)
    with CacheWriter(
        path, *arguments, hparams["overwrite"], parts=list(PARTS)
    ) as writer:
        with resumable(writer, len(keys), "utterances"):
            for batch in _batches(hparams, order[writer.committed :]):
                parts = posteriors(teachers, batch, hparams)
                writer.append(torch.cat([_lay(*p, top_n) for p in parts]), len(parts))
        writer.finish()
    print(f"{path}: {time.monotonic() - started:.0f} s")
    print("\n".join(describe(TeacherCache(path))))


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


def inspect(hparams, utterances, keys):
    """Print what a cache holds; the teachers are not loaded."""
    cache = TeacherCache(hparams["cache"])
    tokenizer = hparams["tokenizer"]
    problems = cache.problems(
        keys,
        tokenizer_fingerprint=tokenizer.fingerprint,
        text_normalization=tokenizer.language,
    )
    print("\n".join([*describe(cache), *(f"  PROBLEM {p}" for p in problems)]))


def verify(hparams, utterances, keys):
    """Check a cache against manifest and settings, and a sample against the teachers.

    Raises
    ------
    ValueError
        With all that does not fit.
    """
    cache = TeacherCache(hparams["cache"])
    teachers = read_teachers(hparams["teachers"], hparams["device"])
    cache.check(keys, **_identity(teachers, hparams))
    sample = random.sample(list(utterances), min(SAMPLE, len(utterances)))
    check_sample(
        cache,
        len(keys),
        _compute_again(cache, teachers, sample, hparams),
        TOLERANCE,
        "a probability",
    )


def _compute_again(cache, teachers, sample, hparams):
    """Utterance and largest difference of a probability, for each of the sample."""
    for batch in _batches(hparams, sample):
        results = posteriors(teachers, batch, hparams)
        for utt_id, parts in zip(batch.id, results, strict=True):
            errors = []
            for ours, stored in zip(
                parts[:2], cache.parts(utt_id).values(), strict=False
            ):
                stored = expand(
                    stored.float(), hparams["top_n"], teachers[0].vocab_size
                )
                known = stored.isfinite()
                errors.append((ours.exp() - stored.exp())[known].abs().max())
            yield utt_id, torch.stack(errors).max().item()


def _identity(teachers, hparams):
    """Attributes that decide the posteriors; teachers that cannot be paired fail."""
    tokenizer = hparams["tokenizer"]
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
    return {
        "teacher_weights": [t.weights_hash for t in teachers],
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "text_normalization": tokenizer.language,
        "vocab_size": tokenizer.vocab_size,
        "error_unit": hparams["error_unit"],
        "top_n": hparams["top_n"],
        "dtype": hparams["dtype"],
    }


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


def _rows(utterance, teachers, hparams):
    """Rows of each part of an utterance."""
    # A resampled recording has its last sample rounded up; durations have 1e-6 s.
    samples = math.ceil(utterance.duration * hparams["sample_rate"] - 0.1)
    tokens = hparams["tokenizer"].encode(utterance.wrd)
    return _frames(teachers[0], samples), len(tokens) + 1, 1


def _frames(teacher, samples):
    return int(teacher.output_lengths(torch.tensor(samples)))


def _dtype(hparams):
    return DTYPES[hparams["dtype"]][0]


def _lay(ctc, seq, errors, top_n):
    """Rows of an utterance as the cache has them."""
    ctc, seq = truncate(ctc, top_n), truncate(seq, top_n)
    row = torch.zeros_like(seq[:1])
    row[0, :, :2] = errors
    return torch.cat([ctc, seq, row])


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
    loader = DataLoader(
        FilteredSortedDynamicItemDataset(data, ids),
        batch_sampler=batches,
        collate_fn=PaddedBatch,
    )
    return tqdm(loader, unit=" batches", disable=None)
