"""States of pretrained ears, computed once: no audio is read and no encoder run again.

The format is a teacher's. An utterance stands under the hash of its recording; the states
are those of `cif_lobes.nets.ears.PretrainedEars.listen`, before anything that learns.
They belong to whole, unchanged recordings: what changes waveforms in training is refused
together with a cache (`cif_lobes.runs.ears`).
"""

import os
import random
import time

import soundfile
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from cif_lobes.cache.audio_keys import audio_keys
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
from cif_lobes.nets.pretrained import load_encoder
from cif_lobes.nets.speech_encoder import WhisperEars

SAMPLE = 20  # utterances computed again by verify
# Of a state's length. bfloat16 moves it by 0.4 %, and larger batches by less.
TOLERANCE = 0.02


def run(verb, hparams):
    """Build, inspect or verify the cache of a yaml with `ears`.

    Arguments
    ---------
    verb : str
        "build", "inspect" or "verify".
    hparams : dict
        The loaded yaml: ears, ears_layers, ears_silence_seconds, cache, manifests,
        sample_rate, dtype, batch_seconds, device, overwrite.
    """
    {"build": build, "inspect": inspect, "verify": verify}[verb](hparams)


def identity_of(encoder, layers):
    """Attributes that decide the states."""
    silence = encoder.silence if isinstance(encoder, WhisperEars) else 0
    return {
        "ears_weights": encoder.weights_hash,
        "layer": sorted(layers),
        "silence_samples": silence,
    }


def build(hparams):
    """Make the cache unless it is there; go on with one that was interrupted.

    Raises
    ------
    ValueError
        If the ears lack a layer, an utterance is too long for them, or the cache is there
        and is another.
    OSError
        If the disk is too small.
    """
    path, layers = hparams["cache"], sorted(hparams["ears_layers"])
    encoder = _encoder(hparams)
    # Those of like durations side by side, for batches with little padding.
    utterances = sorted(_utterances(hparams), key=lambda u: (-u.duration, u.id))
    check_durations(utterances, encoder.max_samples, hparams["sample_rate"])
    keys = audio_keys(utterances, memory_of(path))
    identity = {**identity_of(encoder, layers), "dtype": hparams["dtype"]}
    if is_up_to_date(path, keys, identity, hparams["overwrite"]):
        return
    frames = {
        keys[u.id]: _count_frames(u, hparams["sample_rate"], encoder)
        for u in utterances
    }
    total, state = sum(frames.values()), len(layers) * encoder.width
    size = total * state * DTYPES[hparams["dtype"]][0].itemsize
    print(f"{path}: {total:,} frames, layers {layers}: {size / 1e9:.2f} GB", flush=True)
    with CacheWriter(
        path,
        frames,
        keys,
        (len(layers), encoder.width),
        hparams["dtype"],
        identity,
        {"ears": str(hparams["ears"]), "command": build_command()},
        hparams["overwrite"],
    ) as writer:
        started = time.monotonic()
        with resumable(writer, len(keys), "utterances"):
            left = utterances[writer.committed :]
            seconds = sum(u.duration for u in left)
            with tqdm(total=seconds, unit=" s", disable=None) as bar:
                for batch, states in _encode(encoder, layers, left, hparams):
                    writer.append(torch.cat(states), len(batch))
                    bar.update(sum(u.duration for u in batch))
        writer.finish()
    took = time.monotonic() - started
    print(f"{path}: {len(keys):,} utterances, {seconds:,.0f} s in {took:.0f} s")


def inspect(hparams):
    """Print what a cache holds; the ears are not loaded."""
    cache, utterances = TeacherCache(hparams["cache"]), _utterances(hparams)
    made, size = cache.attributes, os.path.getsize(cache.path)
    keys = audio_keys(utterances, memory_of(cache.path))
    covered = sum(utt_id in cache for utt_id in keys)
    lines = [
        cache.path,
        f"  ears      {made['ears']}, weights {made['ears_weights']}",
        f"  layers    {', '.join(map(str, made['layer']))}",
        f"  silence   {made['silence_samples']:,} samples behind each utterance",
        f"  states    {cache.total_states:,} frames x "
        f"{' x '.join(map(str, cache.shape))} {made['dtype']}",
        f"  coverage  {covered:,} of {len(keys):,} utterances of the manifests; "
        f"{len(cache):,} in the cache",
        f"  size      {size:,} bytes, {size / len(cache) / 1000:.1f} kB per utterance",
        f"  made by   {made['command']}",
    ]
    print("\n".join([*lines, *(f"  PROBLEM   {p}" for p in cache.problems(keys))]))


def verify(hparams):
    """Check a cache against manifests and settings, and a sample against the ears.

    Raises
    ------
    ValueError
        With all that does not fit.
    """
    encoder, layers = _encoder(hparams), sorted(hparams["ears_layers"])
    cache = open_ears_cache(hparams["cache"], encoder, layers, hparams["manifests"])
    utterances = _utterances(hparams)
    sample = random.sample(utterances, min(SAMPLE, len(utterances)))
    sample.sort(key=lambda u: -u.duration)
    differences = (
        (u.id, relative_error(cache[u.id].float(), expected))
        for batch, states in _encode(encoder, layers, sample, hparams)
        for u, expected in zip(batch, states, strict=True)
    )
    unit, scale = "a state", " of its length"
    check_sample(cache, len(utterances), differences, TOLERANCE, unit, scale)


def open_ears_cache(path, encoder, layers, manifests):
    """A cache that serves all that a run asks for.

    Arguments
    ---------
    path : str
        From `extract_teacher.py build`.
    encoder : cif_lobes.nets.speech_encoder.SpeechEncoder
        The ears that the states must be of.
    layers : list of int
        Those wanted, in this order.
    manifests : iterable of str
        csv files of training, validation and test.

    Returns
    -------
    TeacherCache
        Of states [T, L, H] by utterance id.

    Raises
    ------
    ValueError
        If it is of other ears, layers or recordings.
    """
    cache = TeacherCache(path)
    utterances = [u for m in manifests for u in read_manifest(m)]
    keys = audio_keys(utterances, memory_of(path))
    expected, stored = identity_of(encoder, layers), cache.attributes.get("layer", [])
    del expected["layer"]  # more than those will do
    problems = cache.problems(keys, **expected)
    problems = [
        p.replace("transcripts differ", "recordings differ").partition(": the manif")[0]
        for p in problems
    ]
    missing = sorted({*layers} - {*stored})
    if missing:
        problems.append(f"it has layers {stored}, ears_layers names {missing[0]}")
    if problems:
        raise ValueError(
            f"ears cache {path}: {'; '.join(problems)}. With the ears and manifests of "
            f"now, run: {cache.build_command} --overwrite True"
        )
    cache.use_layers(list(layers))
    return cache


def memory_of(path):
    """Where a cache's hashes of recordings are remembered."""
    return f"{path}.audio.json"


def check_durations(utterances, max_samples, sample_rate):
    """Refuse utterances that are too long for the ears, before any is heard.

    Arguments
    ---------
    utterances : iterable of cif_lobes.data.manifest.Utterance
    max_samples : int or None
    sample_rate : int
        Hz.

    Raises
    ------
    ValueError
        Names the longest.
    """
    longest = max(utterances, key=lambda u: u.duration)
    most = max_samples and max_samples / sample_rate
    if most and longest.duration > most:
        raise ValueError(
            f"utterance {longest.id} of {longest.duration:.1f} s is longer than these "
            f"ears hear: {most:.1f} s, Whisper's 30 s without ears_silence_seconds. Cut "
            "it at pauses, or leave it out"
        )


def _encoder(hparams):
    """The ears of a yaml, which have all of its layers."""
    encoder = load_encoder(hparams["ears"], hparams["ears_silence_seconds"])
    outside = [n for n in hparams["ears_layers"] if not 1 <= n <= encoder.num_layers]
    if outside:
        raise ValueError(
            f"ears_layers: {outside[0]} is none of the ears', 1 to {encoder.num_layers}"
        )
    return encoder


def _utterances(hparams):
    """Of all manifests, each once."""
    manifests = hparams["manifests"]
    return list({u.id: u for m in manifests for u in read_manifest(m)}.values())


def _count_frames(utterance, sample_rate, encoder):
    """The frames of an utterance, from its file's header."""
    info = soundfile.info(utterance.wav)
    count = info.frames
    if utterance.offset is not None:
        count -= round(utterance.offset * info.samplerate)
        count = min(count, round(utterance.duration * info.samplerate))
    samples = -(-count * sample_rate // info.samplerate)  # as resampling rounds
    return int(encoder.output_lengths(torch.tensor(samples)))


@torch.no_grad()
def _encode(encoder, layers, utterances, hparams):
    """Batches of utterances, the longest first, with the states [T, L, H] of each."""
    encoder = encoder.to(hparams["device"])
    left = utterances
    while left:
        # The longest comes first, so this many fit, padding included.
        count = max(1, int(hparams["batch_seconds"] / left[0].duration))
        batch, left = left[:count], left[count:]
        signals = [read_utterance(u, hparams["sample_rate"]) for u in batch]
        states, x_lengths = encoder(
            pad_sequence(signals, batch_first=True).to(hparams["device"]),
            torch.tensor([len(s) for s in signals], device=hparams["device"]),
        )
        chosen = torch.stack([states[n] for n in layers], dim=2).cpu()
        yield batch, [x[:T] for x, T in zip(chosen, x_lengths.tolist(), strict=True)]
