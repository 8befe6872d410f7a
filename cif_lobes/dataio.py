"""Manifests to batches: audio and token ids of an utterance, batched by duration."""

import logging

import numpy as np
import soundfile
import torch
import torchaudio
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.sampler import DynamicBatchSampler

from cif_lobes.manifest import read_manifest

logger = logging.getLogger(__name__)


def read_audio(path, sample_rate):
    """Read any file libsndfile reads as mono at the wanted rate.

    Arguments
    ---------
    path : str
        Audio file: wav, flac, mp3, ogg, opus; any rate, any number of channels.
    sample_rate : int
        Wanted rate in Hz.

    Returns
    -------
    torch.Tensor, [samples], float32
    """
    audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    audio = torch.from_numpy(np.ascontiguousarray(audio.mean(axis=1)))
    if rate != sample_rate:
        audio = torchaudio.functional.resample(audio, rate, sample_rate)
    return audio


def make_dataset(manifest, tokenizer, sample_rate, teacher_cache=None):
    """A dataset over one manifest.

    Its items are `id`, `signal` [samples], `tokens` [U + 1] ending in end of sentence,
    `text`, the normalised transcript, and with a cache `teacher` [U + 1, H].

    Arguments
    ---------
    manifest : str
        csv with the columns of `cif_lobes.manifest`.
    tokenizer : cif_lobes.tokens.Tokenizer
        Fitted.
    sample_rate : int
        Hz.
    teacher_cache : cif_lobes.teacher_cache.TeacherCache, optional
        States of every utterance; checked beforehand.

    Returns
    -------
    DynamicItemDataset
    """
    rows = {
        u.id: {"duration": u.duration, "wav": u.wav, "wrd": u.wrd}
        for u in read_manifest(manifest)
    }

    def signal(wav):
        return read_audio(wav, sample_rate)

    def tokens(wrd):
        return torch.tensor(tokenizer.encode(wrd) + [tokenizer.eos_index])

    items = [
        {"func": signal, "takes": ["wav"], "provides": "signal"},
        {"func": tokens, "takes": ["wrd"], "provides": "tokens"},
        {"func": tokenizer.normalize, "takes": ["wrd"], "provides": "text"},
    ]
    if teacher_cache is not None:
        read = teacher_cache.__getitem__
        items.append({"func": read, "takes": ["id"], "provides": "teacher"})
    keys = ["id", *(item["provides"] for item in items)]
    return DynamicItemDataset(rows, dynamic_items=items, output_keys=keys)


def check_lengths(dataset, count_frames, name):
    """Say which utterances have more tokens than the encoder has frames.

    CIF training fires them (several tokens in a frame), CTC cannot align them, and at
    inference, where a frame weighs at most one token, they cannot be recognised.

    Arguments
    ---------
    dataset : DynamicItemDataset
        From `make_dataset`.
    count_frames : callable
        From seconds to encoder frames.
    name : str
        Split, for the message.

    Returns
    -------
    list of str
        Their ids.
    """
    with dataset.output_keys_as(["id", "duration", "tokens"]):
        too_long = []
        for index, utterance_id in enumerate(dataset.data_ids):
            row = dataset.data[utterance_id]
            tokens = len(dataset[index]["tokens"])
            if tokens > count_frames(row["duration"]):
                too_long.append(utterance_id)
    if too_long:
        logger.warning(
            f"{name}: {len(too_long):,} of {len(dataset):,} utterances have more tokens "
            f"than the encoder has frames, first {too_long[0]}: their text may be "
            "wrong, or the tokens too small for this frame rate. Use larger units "
            "(vocab_size) or less pooling"
        )
    return too_long


def train_loader_options(dataset, batch_seconds, num_buckets, sorting, seed, workers):
    """DataLoader options of training: batches of like durations and a bounded sum.

    Arguments
    ---------
    dataset : DynamicItemDataset
        From `make_dataset`.
    batch_seconds : float
        Seconds of audio in a batch, padding included.
    num_buckets : int
        Classes of durations; more pad less and mix less.
    sorting : str
        Order of the batches: "random" or "ascending".
    seed : int
        Of the order.
    workers : int
        Processes that read audio.

    Returns
    -------
    dict
    """
    longest = max(row["duration"] for row in dataset.data.values())
    if longest > batch_seconds:
        raise ValueError(
            f"batch_seconds {batch_seconds} is less than the longest training "
            f"utterance, {longest:.1f} s: raise it, or cut the utterance"
        )
    sampler = DynamicBatchSampler(
        dataset,
        batch_seconds,
        length_func=lambda row: row["duration"],
        # Equal steps in log-duration pad every bucket alike; SpeechBrain's own
        # quantiles reach up to batch_seconds and leave most buckets empty.
        bucket_boundaries=_boundaries(dataset, num_buckets),
        batch_ordering=sorting,
        seed=seed,
    )
    return {
        "batch_sampler": sampler,
        "num_workers": workers,
        "collate_fn": PaddedBatch,
        "persistent_workers": workers > 0,
    }


def eval_loader_options(dataset, batch_seconds, workers):
    """DataLoader options of evaluation: like durations, every utterance once."""
    longest = max(row["duration"] for row in dataset.data.values())
    sampler = DynamicBatchSampler(
        dataset,
        max(batch_seconds, longest),
        length_func=lambda row: row["duration"],
        bucket_boundaries=_boundaries(dataset, 10),
        shuffle=False,
        batch_ordering="descending",
    )
    return {
        "batch_sampler": sampler,
        "num_workers": workers,
        "collate_fn": PaddedBatch,
    }


def _boundaries(dataset, num_buckets):
    """Upper duration of each bucket: quantiles of the durations, the longest last."""
    durations = [row["duration"] for row in dataset.data.values()]
    quantiles = np.quantile(durations, np.linspace(0, 1, num_buckets + 1)[1:])
    return sorted(set(quantiles.tolist()))
