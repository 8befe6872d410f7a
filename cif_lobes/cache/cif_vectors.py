"""CIF vectors of a frozen recogniser in a cache, so that an epoch need not run its encoder.

An utterance has one vector for each token of its transcript, end of sentence included, of
its whole, unchanged waveform. And copies of it, if asked for, fired through the masks of
SpecAugment: of speech that it was trained on, a recogniser fires better vectors than of any
other, and who learns from those alone learns to trust them.
"""

import json
import time

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from cif_lobes.cache.audio_keys import audio_keys, memory_of
from cif_lobes.cache.build import build_command, is_up_to_date, resumable
from cif_lobes.cache.reader import TeacherCache
from cif_lobes.cache.writer import CacheWriter
from cif_lobes.data.batches import read_utterance
from cif_lobes.data.manifest import read_manifest


def build(
    path,
    recognizer,
    manifests,
    dtype,
    batch_seconds,
    overwrite=False,
    masked_copies=0,
    augment=None,
    heard=None,
):
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
    masked_copies : int
        Copies of each utterance that are fired through masks.
    augment : cif_lobes.training.augment.SpecAugment, optional
        Which masks.
    heard : TeacherCache, optional
        States of the recogniser's pretrained ears, read in place of audio.

    Returns
    -------
    TeacherCache
        Of vectors [U, D] by utterance id; with masked copies [U, 1 + copies, D], the
        first without masks.

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
    audio = audio_keys(utterances, memory_of(path))
    keys = {u.id: f"{audio[u.id]}: {tokenizer.normalize(u.wrd)}" for u in utterances}
    identity = {
        "recognizer_weights": recognizer.weights_hash,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "dtype": dtype,
    }
    shape = (recognizer.vector_size,)
    if masked_copies:
        masks = {
            name: value
            for name, value in sorted(vars(augment).items())
            if name != "training" and not name.startswith("_")
        }
        identity |= {"masked_copies": masked_copies, "masks": json.dumps(masks)}
        shape = (1 + masked_copies, *shape)
    if is_up_to_date(path, keys, identity, overwrite):
        return TeacherCache(path)
    counts = {keys[u.id]: len(tokenizer.encode(u.wrd)) + 1 for u in utterances}
    notes = {"recognizer": recognizer.path, "command": build_command()}
    with CacheWriter(
        path,
        counts,
        keys,
        shape,
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
                    signals = [
                        read_utterance(u, recognizer.sample_rate)
                        if heard is None
                        else heard[u.id]
                        for u in batch
                    ]
                    # The same, whoever builds it, and however often it was interrupted.
                    seed = writer.committed
                    vectors = _encode(
                        recognizer, batch, signals, masked_copies, augment, seed
                    )
                    writer.append(torch.cat(vectors), len(batch))
                    bar.update(len(batch))
        writer.finish()
    print(f"{path}: {len(keys):,} utterances, {time.monotonic() - started:.0f} s")
    return TeacherCache(path)


def _encode(recognizer, utterances, signals, copies=0, augment=None, seed=0):
    """Vectors [U, D] of each utterance, or [U, 1 + copies, D] with masked copies."""
    tokenizer = recognizer.tokenizer
    tokens = [
        torch.tensor([*tokenizer.encode(u.wrd), tokenizer.eos_index])
        for u in utterances
    ]
    lengths = [len(ids) for ids in tokens]
    targets = torch.tensor(lengths), pad_sequence(tokens, batch_first=True)
    # Heard once: pretrained ears take nearly all of the time.
    x, x_lengths = recognizer.hear(
        pad_sequence(signals, batch_first=True),
        torch.tensor([len(signal) for signal in signals]),
    )
    fired = [recognizer.fire(x, x_lengths, *targets)]
    device = recognizer.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for _ in range(copies):
            masked = augment(x, x_lengths)
            fired.append(recognizer.fire(masked, x_lengths, *targets))
    vectors = torch.stack([f.embeddings.cpu() for f in fired], dim=2)
    vectors = vectors if copies else vectors.squeeze(2)
    return [x[:U] for x, U in zip(vectors, lengths, strict=True)]
