"""A training of ColDec, from the yaml to the loss on the validation set."""

import os
import pathlib

from speechbrain.utils.distributed import if_main_process, run_on_main

from cif_lobes.cache import cif_vectors
from cif_lobes.cache.reader import TeacherCache
from cif_lobes.data.tokens import CharTokenizer
from cif_lobes.decoding.context import RECOGNIZER
from cif_lobes.runs.coldec_start import start_from_recognizer
from cif_lobes.runs.ears import open_ears_cache_if_it_serves
from cif_lobes.runs.stages import assemble, finish, fit_tokens, load_settings
from cif_lobes.runs.teacher import meet_cached_teacher
from cif_lobes.storage.atomic_files import write_atomically
from cif_lobes.storage.run_files import keep_tokenizer
from cif_lobes.teachers.cif_recognizer import FrozenRecognizer
from cif_lobes.training.coldec import ColDecBrain, VectorSet


def run(hparams_file, run_opts, overrides):
    """Cache the recogniser's CIF vectors unless that is done, train, and measure.

    See `cif_lobes.runs`; the figures are those of `fit_tokens`, and `utterances`.
    """
    hparams = load_settings(hparams_file, run_opts, overrides)
    tokenizer = hparams["tokenizer"]
    recognizer = FrozenRecognizer(hparams["recognizer"], run_opts["device"])
    _check(hparams, recognizer)
    if not run_opts.get("test_only"):
        # Checkpoints, if there are any, are loaded later.
        start_from_recognizer(hparams)
    manifests = {"train": hparams["train_csv"], "valid": hparams["valid_csv"]}
    run_on_main(_build, args=[hparams, recognizer, manifests])
    cache = TeacherCache(hparams["cache"])
    sets = {n: VectorSet(path, tokenizer, cache) for n, path in manifests.items()}
    run_on_main(_keep, args=[hparams, recognizer.weights_hash])
    if not run_opts.get("test_only"):
        meet_cached_teacher(hparams, cache)
    # From here on nothing of it is needed: its vectors are on the disk.
    del recognizer
    brain = assemble(ColDecBrain, hparams, run_opts, hparams["modules"])
    figures = fit_tokens(brain, hparams_file, hparams, sets)
    figures |= {"utterances": len(sets["valid"])}
    if if_main_process():
        folder = hparams["output_folder"]
        print(f"valid: loss {figures['loss']:.3f}, {brain.describe(figures)}; {folder}")
        print(
            f"to use it: python evaluate.py {hparams['recognizer']} --coldec {folder} "
            "--hotwords FILE"
        )
    hparams["record"].result("valid", figures, tokenizer=tokenizer.fingerprint)
    finish()
    return figures


def _check(hparams, recognizer):
    """See that a ColDec fits the recogniser that it is trained on."""
    tokenizer, theirs = hparams["tokenizer"], recognizer.tokenizer
    if tokenizer.fingerprint != theirs.fingerprint:
        raise ValueError(
            f"recognizer {recognizer.path} counts in the tokens of {theirs.path} "
            f"({theirs.fingerprint}), this yaml in those of {tokenizer.path} "
            f"({tokenizer.fingerprint}): --tokenizer_folder {theirs.path.parent}"
        )
    letters = hparams["max_letters"]
    if letters and (letters < 3 or not isinstance(tokenizer, CharTokenizer)):
        raise ValueError(
            f"max_letters is {letters}: it is 3 at least, and for recognisers that write "
            "characters; pieces of words are others where a word is cut. Run with "
            "--max_letters 0"
        )
    if hparams["vector_size"] != recognizer.vector_size:
        raise ValueError(
            f"vector_size is {hparams['vector_size']}, the CIF vectors of recognizer "
            f"{recognizer.path} are {recognizer.vector_size} wide: "
            f"--vector_size {recognizer.vector_size}"
        )


def _build(hparams, recognizer, manifests):
    heard = None
    # What the ears have heard is not needed any more where vectors are.
    if hparams["overwrite"] or not os.path.exists(hparams["cache"]):
        of_recognizer = {
            "features": recognizer.network.features,
            "sample_rate": recognizer.sample_rate,
        }
        heard = open_ears_cache_if_it_serves(hparams | of_recognizer, manifests)
    cif_vectors.build(
        hparams["cache"],
        recognizer,
        list(manifests.values()),
        hparams["dtype"],
        hparams["device_batch_seconds"],
        hparams["overwrite"],
        hparams["masked_copies"],
        hparams["augment"],
        heard,
    )


def _keep(hparams, weights_hash):
    """Write into the run folder what it can be used with."""
    keep_tokenizer(hparams)
    path = pathlib.Path(hparams["output_folder"]) / RECOGNIZER
    if path.exists() and path.read_text(encoding="utf-8").split()[0] != weights_hash:
        raise ValueError(
            f"{path.parent} was begun on another recogniser, or {hparams['recognizer']} "
            "was trained on since: train into another --output_folder"
        )
    write_atomically(path, f"{weights_hash} {hparams['recognizer']}\n")
