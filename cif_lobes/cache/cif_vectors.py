"""CIF vectors of a frozen recogniser in a cache, so that an epoch need not run its encoder.

An utterance has one vector for each token of its transcript, end of sentence included, of
its whole, unchanged waveform.
"""

import time

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from cif_lobes.cache.build import build_command, is_up_to_date, resumable
from cif_lobes.cache.reader import TeacherCache
from cif_lobes.cache.writer import CacheWriter
from cif_lobes.data.batches import read_utterance
from cif_lobes.data.manifest import read_manifest


def build(path, recognizer, manifests, dtype, batch_seconds, overwrite=False):
    """Make the cache unless it is there; go on with one that was interrupted.

    Arguments
    ---------
    path : str
        HDF5 file.
    recognizer : cif_lobes.teachers.cif_recognizer.FrozenRecognizer
    manifests : list of str
        csv files of training and validation.
    dtype : str
        "float16", "bfloat16" or "float32".
    batch_seconds : float
        Seconds of audio encoded at a time, padding included.
    overwrite : bool
        Whether to replace a cache that is another.

    Returns
    -------
    TeacherCache
        Of vectors [U, D] by utterance id.

    Raises
    ------
    ValueError
        If a cache of another recogniser, or of other recordings or transcripts, is there.
    OSError
        If the disk is too small.
    """
    tokenizer = recognizer.tokenizer
    utterances = {u.id: u for m in manifests for u in read_manifest(m)}.values()
    # Those of like durations side by side, for batches with little padding.
    utterances = sorted(utterances, key=lambda u: (-u.duration, u.id))
    keys = {u.id: _key(u, tokenizer) for u in utterances}
    identity = {
        "recognizer_weights": recognizer.weights_hash,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "dtype": dtype,
    }
    if is_up_to_date(path, keys, identity, overwrite):
        return TeacherCache(path)
    counts = {keys[u.id]: len(tokenizer.encode(u.wrd)) + 1 for u in utterances}
    notes = {"recognizer": recognizer.path, "command": build_command()}
    with CacheWriter(
        path,
        counts,
        keys,
        (recognizer.vector_size,),
        dtype,
        identity,
        notes,
        overwrite,
    ) as writer:
        started = time.monotonic()
        left = utterances[writer.committed :]
        with resumable(writer, len(keys), "utterances"):
            with tqdm(total=len(left), unit=" utterances", disable=None) as bar:
                while left:
                    # The longest comes first, so this many fit, padding included.
                    size = max(1, int(batch_seconds / left[0].duration))
                    batch, left = left[:size], left[size:]
                    vectors = _encode(recognizer, batch)
                    writer.append(torch.cat(vectors), len(batch))
                    bar.update(len(batch))
        writer.finish()
    print(f"{path}: {len(keys):,} utterances, {time.monotonic() - started:.0f} s")
    return TeacherCache(path)


def _key(utterance, tokenizer):
    """What an utterance's vectors belong to: a recording and a text."""
    text = tokenizer.normalize(utterance.wrd)
    return f"{utterance.id}, {utterance.duration:.3f} s of audio: {text}"


def _encode(recognizer, utterances):
    """Vectors [U, D] of each utterance."""
    tokenizer = recognizer.tokenizer
    tokens = [
        torch.tensor([*tokenizer.encode(u.wrd), tokenizer.eos_index])
        for u in utterances
    ]
    lengths = [len(ids) for ids in tokens]
    signals = [read_utterance(u, recognizer.sample_rate) for u in utterances]
    fired = recognizer(
        pad_sequence(signals, batch_first=True),
        torch.tensor([len(signal) for signal in signals]),
        torch.tensor(lengths),
        pad_sequence(tokens, batch_first=True),
    )
    return [x[:U].cpu() for x, U in zip(fired.embeddings, lengths, strict=True)]
