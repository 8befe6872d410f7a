"""Chosen layers of a speech teacher in a teacher cache, one state per frame and layer.

Running the teacher in every epoch takes more time, keeping its states more disk: all
twelve layers of 100 hours take 332 GB in float16, three take 83 GB. What is cached
belongs to whole, unchanged waveforms, which are what `training.fithubert` trains on.
"""

import os
import random
import time

import soundfile
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from cif_lobes.cache.build import (
    build_command,
    check_sample,
    is_up_to_date,
    relative_error,
    resumable,
)
from cif_lobes.cache.reader import DTYPES, TeacherCache
from cif_lobes.cache.writer import CacheWriter
from cif_lobes.data.batches import read_utterance
from cif_lobes.data.manifest import read_manifest
from cif_lobes.nets.fithubert import num_frames
from cif_lobes.teachers.speech import SpeechTeacher

SAMPLE = 20  # utterances computed again by verify
# Of a state's length. bfloat16 moves it by 0.2 %, and larger batches by less.
TOLERANCE = 0.01


def run(verb, hparams):
    """Build, inspect or verify the cache of a speech teacher's yaml.

    Arguments
    ---------
    verb : str
        "build", "inspect" or "verify".
    hparams : dict
        The loaded yaml, see `build`.
    """
    {"build": build, "inspect": inspect, "verify": verify}[verb](hparams)


def build(hparams):
    """Make the cache unless it is there; go on with one that was interrupted.

    Arguments
    ---------
    hparams : dict
        The loaded yaml: teacher, layers, cache, manifests, sample_rate, dtype,
        batch_seconds, device, overwrite.

    Raises
    ------
    ValueError
        If the teacher lacks a layer, or the cache is there and is another.
    OSError
        If the disk is too small.
    """
    path, layers = hparams["cache"], sorted(hparams["layers"])
    teacher = SpeechTeacher(hparams["teacher"])
    outside = [n for n in layers if not 1 <= n <= teacher.num_layers]
    if outside:
        raise ValueError(
            f"layers: {outside[0]} is none of the teacher's, 1 to {teacher.num_layers}"
        )
    # Those of like durations side by side, for batches with little padding.
    utterances = sorted(_utterances(hparams), key=lambda u: (-u.duration, u.id))
    keys = {u.id: _key(u) for u in utterances}
    identity = {
        "teacher_weights": teacher.weights_hash,
        "layers": layers,
        "dtype": hparams["dtype"],
    }
    if is_up_to_date(path, keys, identity, hparams["overwrite"]):
        return
    frames = {
        keys[u.id]: _count_frames(u, hparams["sample_rate"], teacher)
        for u in utterances
    }
    total, state = sum(frames.values()), len(layers) * teacher.width
    size = total * state * DTYPES[hparams["dtype"]][0].itemsize
    print(f"{path}: {total:,} frames, layers {layers}: {size / 1e9:.2f} GB", flush=True)
    with CacheWriter(
        path,
        frames,
        keys,
        (len(layers), teacher.width),
        hparams["dtype"],
        identity,
        {
            "teacher": str(hparams["teacher"]),
            "command": build_command(),
        },
        hparams["overwrite"],
    ) as writer:
        started = time.monotonic()
        with resumable(writer, len(keys), "utterances"):
            left = utterances[writer.committed :]
            with tqdm(
                total=sum(u.duration for u in left), unit=" s", disable=None
            ) as bar:
                for batch, states in _encode(teacher, layers, left, hparams):
                    writer.append(torch.cat(states), len(batch))
                    bar.update(sum(u.duration for u in batch))
        writer.finish()
    print(f"{path}: {len(keys):,} utterances, {time.monotonic() - started:.0f} s")


def inspect(hparams):
    """Print what a cache holds; the teacher is not loaded."""
    cache = TeacherCache(hparams["cache"])
    made, keys = cache.attributes, {u.id: _key(u) for u in _utterances(hparams)}
    covered, size = sum(utt_id in cache for utt_id in keys), os.path.getsize(cache.path)
    lines = [
        cache.path,
        f"  teacher   {made['teacher']}, weights {made['teacher_weights']}",
        f"  layers    {', '.join(map(str, made['layers']))}",
        f"  states    {cache.total_states:,} frames x "
        f"{' x '.join(map(str, cache.shape))} {made['dtype']}",
        f"  coverage  {covered:,} of {len(keys):,} utterances of the manifests; "
        f"{len(cache):,} in the cache",
        f"  size      {size:,} bytes, {size / len(cache) / 1000:.1f} kB per utterance",
        f"  made by   {made['command']}",
    ]
    print("\n".join([*lines, *(f"  PROBLEM   {p}" for p in cache.problems(keys))]))


def verify(hparams):
    """Check a cache against manifests and settings, and a sample against the teacher.

    Raises
    ------
    ValueError
        With all that does not fit.
    """
    layers = sorted(hparams["layers"])
    teacher = SpeechTeacher(hparams["teacher"])
    cache = open_speech_cache(hparams["cache"], teacher, layers, hparams["manifests"])
    utterances = _utterances(hparams)
    sample = random.sample(utterances, min(SAMPLE, len(utterances)))
    sample.sort(key=lambda u: -u.duration)
    differences = (
        (u.id, relative_error(cache[u.id].float(), expected))
        for batch, states in _encode(
            teacher, cache.attributes["layers"], sample, hparams
        )
        for u, expected in zip(batch, states, strict=True)
    )
    check_sample(
        cache, len(utterances), differences, TOLERANCE, "a state", " of its length"
    )


def open_speech_cache(path, teacher, taught, manifests):
    """A cache that serves all that a training asks for.

    Arguments
    ---------
    path : str
        From `extract_teacher.py build`.
    teacher : SpeechTeacher
        The one that the states must be of.
    taught : list of int
        Layers that the student learns.
    manifests : list of str
        csv files of training and validation.

    Returns
    -------
    TeacherCache
        Of states [T, L, H] by utterance id; `attributes["layers"]` names the L layers.

    Raises
    ------
    ValueError
        If it is of other weights, layers or recordings.
    """
    cache = TeacherCache(path)
    keys = {u.id: _key(u) for m in manifests for u in read_manifest(m)}
    layers = cache.attributes.get("layers", [])
    problems = cache.problems(keys, teacher_weights=teacher.weights_hash)
    missing = sorted(set(taught) - set(layers))
    if missing:
        problems.append(f"it has layers {layers}, layer {missing[0]} is taught as well")
    if problems:
        raise ValueError(
            f"teacher cache {path}: {'; '.join(problems)}. With the teacher and "
            f"manifests of now, run: {cache.build_command} --overwrite True"
        )
    return cache


def _utterances(hparams):
    """Of all manifests, each once."""
    manifests = hparams["manifests"]
    return list({u.id: u for m in manifests for u in read_manifest(m)}.values())


def _key(utterance):
    """What stands for an utterance's text: another recording has another length."""
    return f"{utterance.id}, {utterance.duration:.3f} s of audio"


def _count_frames(utterance, sample_rate, teacher):
    """The teacher's frames of an utterance, from its file's header."""
    info = soundfile.info(utterance.wav)
    count = info.frames
    if utterance.offset is not None:
        count -= round(utterance.offset * info.samplerate)
        count = min(count, round(utterance.duration * info.samplerate))
    samples = -(-count * sample_rate // info.samplerate)  # as resampling rounds
    return int(num_frames(torch.tensor(samples), teacher.reach, teacher.hop))


def _encode(teacher, layers, utterances, hparams):
    """Batches of utterances, the longest first, with the states [T, L, H] of each."""
    teacher = teacher.to(hparams["device"])
    left = utterances
    while left:
        # The longest comes first, so this many fit, padding included.
        count = max(1, int(hparams["batch_seconds"] / left[0].duration))
        batch, left = left[:count], left[count:]
        signals = [read_utterance(u, hparams["sample_rate"]) for u in batch]
        states, x_lengths = teacher(
            pad_sequence(signals, batch_first=True).to(hparams["device"]),
            torch.tensor([len(s) for s in signals], device=hparams["device"]),
        )
        chosen = torch.stack([states[n] for n in layers], dim=2).cpu()
        yield batch, [x[:T] for x, T in zip(chosen, x_lengths.tolist(), strict=True)]
