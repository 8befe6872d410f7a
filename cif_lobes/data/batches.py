"""Manifests to batches: audio and token ids of an utterance, batched by duration."""

import functools
import logging
import math
from functools import partial

import numpy as np
import torch
import torchaudio
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.sampler import DynamicBatchSampler

from cif_lobes.data import audio_files
from cif_lobes.data.manifest import Utterance, read_manifest
from cif_lobes.data.update_batches import UpdateBatches
from cif_lobes.devices.processes import rank_and_processes

logger = logging.getLogger(__name__)

# Filters of odd rates take gigabytes: 22,254 Hz to 16,000 Hz has 0.4 GB of them.
LARGEST_KEPT = 1000


def read_audio(path, sample_rate, offset=None, duration=None):
    """Read any file libsndfile reads, or a stretch of it, as mono at the wanted rate.

    Arguments
    ---------
    path : str
        Audio file: wav, flac, mp3, ogg, opus; any rate, any number of channels.
    sample_rate : int
        Wanted rate in Hz.
    offset, duration : float, optional
        Begin and length of the stretch in seconds; by default, the whole file.

    Returns
    -------
    torch.Tensor, [samples], float32

    Raises
    ------
    cif_lobes.data.audio_files.UnusableAudio
        See `cif_lobes.data.audio_files.read`.
    """
    audio, rate = audio_files.read(path, offset, duration)
    audio = torch.from_numpy(np.ascontiguousarray(audio))
    return resample(audio, rate, sample_rate)


def resample(audio, rate, sample_rate):
    """Waveform [samples] of `rate` Hz at `sample_rate` Hz."""
    if rate == sample_rate:
        return audio
    if rate // math.gcd(rate, sample_rate) > LARGEST_KEPT:
        return torchaudio.functional.resample(audio, rate, sample_rate)
    return _resampler(rate, sample_rate)(audio)


@functools.lru_cache(maxsize=16)
def _resampler(rate, sample_rate):
    """`torchaudio.functional.resample`, which computes its filters for every clip anew.

    In float32 they have its bits.
    """
    return torchaudio.transforms.Resample(rate, sample_rate, dtype=torch.float32)


def read_utterance(u, sample_rate):
    """The audio of a `cif_lobes.data.manifest.Utterance`; see `read_audio`.

    Raises
    ------
    cif_lobes.data.audio_files.UnusableAudio
        Names the utterance as well.
    """
    # Of a whole file the manifest's duration may be a guess, as an mp3's is.
    stretch = () if u.offset is None else (u.offset, u.duration)
    try:
        return read_audio(u.wav, sample_rate, *stretch)
    except audio_files.UnusableAudio as error:
        message = f"utterance {u.id} cannot be read: {error}"
        raise audio_files.UnusableAudio(message) from None


def at_speed(name, speed):
    """What an utterance, a recording or an item is called at a speed of so many %."""
    return name if speed == 100 else f"{name} at {speed:g} %"


def signal_item(sample_rate):
    """The dynamic item `signal` of rows from `dataset_rows`.

    Arguments
    ---------
    sample_rate : int
        Hz.

    Returns
    -------
    dict
        For `DynamicItemDataset`. It raises UnusableAudio with the utterance's name.
    """

    takes = ["id", "wav", "offset", "duration"]
    func = partial(_read_signal, sample_rate)
    return {"func": func, "takes": takes, "provides": "signal"}


# Items are functions of the module: workers that are not forked unpickle them.
def _read_signal(sample_rate, utt_id, wav, offset, duration):
    u = Utterance(utt_id, duration, wav, "", None, offset)
    return read_utterance(u, sample_rate)


def _heard(cache, speed, utt_id):
    return cache[at_speed(utt_id, speed)]


def _encode(tokenizer, wrd):
    return torch.tensor(tokenizer.encode(wrd) + [tokenizer.eos_index])


def dataset_rows(manifest):
    """What datasets know of each utterance, as dict of dict by its id."""
    return {
        u.id: {"duration": u.duration, "wav": u.wav, "wrd": u.wrd, "offset": u.offset}
        for u in read_manifest(manifest)
    }


def make_dataset(
    manifest, tokenizer, sample_rate, teacher_cache=None, ears_cache=None, speeds=()
):
    """A dataset over one manifest.

    Its items are `id`, `signal` [samples], `tokens` [U + 1] ending in end of sentence,
    `text`, the normalised transcript, and with a cache `teacher` [U + 1, H]. With cached
    states of pretrained ears, `heard` [T, L, H] stands in place of `signal`, and beside it
    those of other speeds, named by `at_speed`.

    Arguments
    ---------
    manifest : str
        csv with the columns of `cif_lobes.data.manifest`.
    tokenizer : cif_lobes.data.tokens.Tokenizer
        Fitted.
    sample_rate : int
        Hz.
    teacher_cache : cif_lobes.cache.reader.TeacherCache, optional
        States of every utterance; checked beforehand.
    ears_cache : cif_lobes.cache.reader.TeacherCache, optional
        Likewise, of `cif_lobes.cache.ears`: no recording is read.
    speeds : iterable of float
        In %, at which the ears have heard these utterances as well.

    Returns
    -------
    DynamicItemDataset

    Raises
    ------
    ValueError
        If the manifest has an utterance without transcript.
    """
    rows = dataset_rows(manifest)
    silent = [utt_id for utt_id, row in rows.items() if not row["wrd"]]
    if silent:
        raise ValueError(
            f"{manifest}: {silent[0]} has no transcript ({len(silent):,} of {len(rows):,} "
            "have none): there is nothing to learn from it or to score it by. Take such "
            "rows out, or recognise the files with: python -m cif_lobes.inference"
        )

    heard = {"takes": ["id"], "provides": "heard"}
    items = [
        {"func": ears_cache.__getitem__, **heard}
        if ears_cache is not None
        else signal_item(sample_rate),
        {"func": partial(_encode, tokenizer), "takes": ["wrd"], "provides": "tokens"},
        {"func": tokenizer.normalize, "takes": ["wrd"], "provides": "text"},
    ]
    if ears_cache is not None:
        items += [
            {
                "func": partial(_heard, ears_cache, speed),
                "takes": ["id"],
                "provides": at_speed("heard", speed),
            }
            for speed in speeds
            if speed != 100
        ]
    if teacher_cache is not None:
        read = teacher_cache.__getitem__
        items.append({"func": read, "takes": ["id"], "provides": "teacher"})
    keys = ["id", *(item["provides"] for item in items)]
    return DynamicItemDataset(rows, dynamic_items=items, output_keys=keys)


def check_tokens(dataset, tokenizer, count_frames, name):
    """Find tokens that cannot be learnt, before anything is trained.

    An utterance with more tokens than encoder frames can be trained on (CIF fires
    several in a frame, CTC ignores it) but not recognised, as a frame weighs one token
    at most: it is reported. So is a part of the validation text that the vocabulary
    cannot write, as with word pieces of a small corpus; a vocabulary that does not know
    the training text is an error.

    Arguments
    ---------
    dataset : DynamicItemDataset
        From `make_dataset`.
    tokenizer : cif_lobes.data.tokens.Tokenizer
        That of the dataset.
    count_frames : callable
        From a list of seconds to one of encoder frames.
    name : str
        "train" or "valid".

    Returns
    -------
    list of str
        Ids of the utterances with too many tokens.

    Raises
    ------
    ValueError
        If more than 5 % of the training tokens or half of the validation tokens are
        unknown to the tokenizer.
    """
    too_long, total, unknown = [], 0, 0
    # All at once: a tensor for each takes ten seconds of a large corpus.
    frames = count_frames([row["duration"] for row in dataset.data.values()])
    for (utterance_id, row), room in zip(dataset.data.items(), frames, strict=True):
        tokens = tokenizer.encode(row["wrd"])
        total += len(tokens)
        unknown += tokens.count(tokenizer.unk_index)
        if len(tokens) + 1 > room:
            too_long.append(utterance_id)
    if unknown > 0.05 * total:
        message = (
            f"{name}: {unknown:,} of {total:,} tokens are unknown to {tokenizer.path}"
        )
        if name == "train" or unknown > 0.5 * total:
            raise ValueError(
                f"{message}: it was made from other text. Run with another "
                "--manifest_folder, or delete the file to make it from this training set"
            )
        logger.warning(
            f"{message}: the training text does not have them, so they cannot be "
            "recognised. Use smaller units, such as SentencePiece's, to have fewer"
        )
    if too_long:
        logger.warning(
            f"{name}: {len(too_long):,} of {len(dataset):,} utterances have more "
            f"tokens than the encoder has frames, first {too_long[0]}: their text may "
            "be wrong, or the tokens too small for this frame rate. Use larger units "
            "(vocab_size) or less pooling"
        )
    return too_long


def train_loader_options(
    dataset, batch_seconds, device_batch_seconds, num_buckets, sorting, seed, workers
):
    """DataLoader options of training: updates of like durations and a bounded sum.

    Arguments
    ---------
    dataset : DynamicItemDataset
        From `make_dataset`.
    batch_seconds : float
        Seconds of audio in an optimizer update, over all processes, padding included.
    device_batch_seconds : float
        Seconds of audio that a device takes at a time, padding included. A process whose
        share of an update is larger takes it in several passes.
    num_buckets : int
        Classes of durations; more pad less and mix less.
    sorting : str
        Order of the updates: "random" or "ascending".
    seed : int
        Of the order.
    workers : int
        Processes that read audio.

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        If an utterance is longer than device_batch_seconds.
    """
    durations = [row["duration"] for row in dataset.data.values()]
    longest = max(dataset.data, key=lambda i: dataset.data[i]["duration"])
    if max(durations) > device_batch_seconds:
        raise ValueError(
            f"device_batch_seconds {device_batch_seconds} is less than the longest "
            f"training utterance, {longest} of {max(durations):.1f} s: raise it if the "
            "device's memory allows, or cut the utterance"
        )
    alone = sum(duration > batch_seconds for duration in durations)
    if alone:
        logger.warning(
            f"batch_seconds {batch_seconds:g} is less than {alone:,} of {len(durations):,} "
            f"training utterances, the longest {longest} of {max(durations):.1f} s: each of "
            "them is an update of its own. Raise it, or cut them"
        )
    sampler = DynamicBatchSampler(
        dataset,
        batch_seconds,
        lengths_list=durations,
        # Equal steps in log-duration pad every bucket alike; SpeechBrain's own
        # quantiles reach up to batch_seconds and leave most buckets empty.
        bucket_boundaries=_boundaries(dataset, num_buckets),
        batch_ordering=sorting,
        seed=seed,
    )
    return {
        "batch_sampler": UpdateBatches(
            sampler, durations, device_batch_seconds, *rank_and_processes()
        ),
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
