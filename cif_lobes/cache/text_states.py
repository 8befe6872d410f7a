"""What extract_teacher.py does: from manifests and a text teacher to a cache."""

import os
import random
import time
from importlib.metadata import version

from hyperpyyaml import load_hyperpyyaml
from tqdm import tqdm

from cif_lobes.cache import ears as ears_cache
from cif_lobes.cache import posteriors as ensemble_extraction
from cif_lobes.cache import speech_states as speech_cache
from cif_lobes.cache.build import (
    build_command,
    check_sample,
    is_up_to_date,
    relative_error,
    resumable,
)
from cif_lobes.cache.inspection import describe
from cif_lobes.cache.reader import TeacherCache
from cif_lobes.cache.writer import CacheWriter
from cif_lobes.data.manifest import read_manifest
from cif_lobes.devices.precision import full_float32
from cif_lobes.devices.processes import check_device
from cif_lobes.teachers.text import TextTeacher, token_batches

# Of a state's length. Rounding to bfloat16 moves it by 0.2 %, another text by far more.
TOLERANCE = 0.01
SAMPLE = 200  # utterances computed again
MAX_UNKNOWN = 0.05  # share of the teacher's pieces that may be its unknown token
VERSIONS_OF = ("torch", "transformers", "tokenizers", "h5py")


@full_float32()
def run(verb, hparams_file, run_opts, overrides):
    """Build, inspect or verify the cache of a yaml.

    Arguments
    ---------
    verb : str
        "build", "inspect" or "verify".
    hparams_file : str
        A recipe's extract_*.yaml.
    run_opts : RunOptions
        Not used: the device is a setting of the yaml.
    overrides : str
        Settings of the command line, as YAML.
    """
    with open(hparams_file, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, overrides)
    check_device(hparams["device"])
    if "teachers" in hparams:
        ensemble_extraction.run(verb, hparams)
        return
    if "ears" in hparams:
        ears_cache.run(verb, hparams)
        return
    if "layers" in hparams:
        speech_cache.run(verb, hparams)
        return
    tokenizer = hparams["tokenizer"]
    texts = read_texts(hparams["manifests"], tokenizer.normalize)
    tokenizer.fit(texts.values())
    {"build": build, "inspect": inspect, "verify": verify}[verb](hparams, texts)


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


def build(hparams, texts):
    """Make the cache unless it is there; go on with one that was interrupted.

    Arguments
    ---------
    hparams : dict
        The loaded yaml.
    texts : dict of str to str
        From `read_texts`.
    """
    path, tokenizer = hparams["cache"], hparams["tokenizer"]
    teacher = TextTeacher(
        hparams["teacher"],
        hparams["layer"],
        hparams["device"],
        hparams.get("pooling"),
    )
    identity = _identity(teacher, hparams)
    if is_up_to_date(path, texts, identity, hparams["overwrite"]):
        return

    utterance_of = {text: utt_id for utt_id, text in reversed(texts.items())}
    aligned = teacher.align(utterance_of, tokenizer)
    check_known(teacher, aligned)
    notes = {
        "teacher": teacher.source,
        "versions": ", ".join(f"{name} {version(name)}" for name in VERSIONS_OF),
        "command": build_command(),
    }
    started = time.monotonic()
    with CacheWriter(
        path,
        {a.text: len(a.ranges) for a in aligned},
        texts,
        teacher.state_shape,
        hparams["dtype"],
        identity,
        notes,
        hparams["overwrite"],
    ) as writer:
        with resumable(writer, len(aligned), "texts"):
            encode(teacher, aligned, writer, hparams["batch_tokens"])
        writer.finish()
    print(
        f"{path}: {len(texts):,} utterances, {len(aligned):,} distinct texts, "
        f"{os.path.getsize(path) / 1e6:,.1f} MB, {time.monotonic() - started:.0f} s\n"
        "Look at it with the verb inspect before training on it"
    )


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


def encode(teacher, aligned, writer, batch_tokens):
    """Write the states of all texts that the writer does not have yet.

    Arguments
    ---------
    teacher : TextTeacher
    aligned : list of AlignedText
        From `teacher.align`, in the order of the writer's texts.
    writer : CacheWriter
        Not finished.
    batch_tokens : int
        Teacher pieces in a batch, padding included.
    """
    done = sum(len(a.ranges) for a in aligned[: writer.committed])
    total = sum(len(a.ranges) for a in aligned)
    with tqdm(
        total=total, initial=done, unit=" tokens", unit_scale=True, disable=None
    ) as bar:
        for batch in token_batches(aligned[writer.committed :], batch_tokens):
            states = teacher(batch)
            writer.append(states, len(batch))
            bar.update(len(states))


def inspect(hparams, texts):
    """Print what a cache holds.

    Arguments
    ---------
    hparams : dict
        The loaded yaml. The teacher is not loaded.
    texts : dict of str to str
        From `read_texts`.
    """
    cache = TeacherCache(hparams["cache"])
    print("\n".join(describe(cache, texts, hparams["tokenizer"])))


def verify(hparams, texts):
    """Check a cache against manifests and settings, and a sample against the teacher.

    Arguments
    ---------
    hparams : dict
        The loaded yaml.
    texts : dict of str to str
        From `read_texts`.

    Raises
    ------
    ValueError
        With all that does not fit.
    """
    cache = TeacherCache(hparams["cache"])
    teacher = TextTeacher(
        hparams["teacher"],
        hparams["layer"],
        hparams["device"],
        hparams.get("pooling"),
    )
    identity = _identity(teacher, hparams)
    cache.check(texts, **identity)

    sample = random.sample(list(texts), min(SAMPLE, len(texts)))
    utterance_of = {texts[utt_id]: utt_id for utt_id in sample}
    aligned = teacher.align(utterance_of, hparams["tokenizer"])
    check_sample(
        cache,
        len(texts),
        _compute_again(cache, teacher, aligned, hparams["batch_tokens"]),
        TOLERANCE,
        "a state",
        " of its length",
    )


def _compute_again(cache, teacher, aligned, batch_tokens):
    """Utterance and largest difference of a state, for each text."""
    for batch in token_batches(aligned, batch_tokens):
        states = teacher(batch).cpu().split([len(a.ranges) for a in batch])
        for a, expected in zip(batch, states, strict=True):
            yield a.utt_id, relative_error(cache[a.utt_id].float(), expected)


def _identity(teacher, hparams):
    """Attributes that decide the states."""
    return {
        "teacher_weights": teacher.weights_hash,
        "layer": teacher.layer,
        "teacher_tokenizer": teacher.tokenizer_hash,
        "tokenizer_fingerprint": hparams["tokenizer"].fingerprint,
        "text_normalization": hparams["tokenizer"].language,
        "dtype": hparams["dtype"],
        # Caches from before it could be chosen do not name it.
        **({} if teacher.pooling == "mean" else {"pooling": teacher.pooling}),
    }
