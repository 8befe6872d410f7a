"""The stages of a run, from its yaml to its figures, which all runs share."""

import logging
import os
import pathlib
import sys

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.distributed import (
    ddp_init_group,
    run_on_main,
)

from cif_lobes.data.audio_files import UnusableAudio
from cif_lobes.data.batches import (
    check_tokens,
    eval_loader_options,
    train_loader_options,
)
from cif_lobes.data.manifest import read_manifest
from cif_lobes.data.validation import MEMORY, prepare_own_data
from cif_lobes.data.vocabulary_texts import texts_file
from cif_lobes.decoding.language_model import loader_options
from cif_lobes.devices.precision import set_tf32
from cif_lobes.devices.processes import own_device
from cif_lobes.nets.ears import PretrainedEars
from cif_lobes.runs.dry_run import into_nowhere, measure
from cif_lobes.runs.ears import load_ears, note_ears
from cif_lobes.runs.evaluation import score
from cif_lobes.runs.resume import (
    check_network,
    check_parameters,
    check_updates,
    is_done,
)
from cif_lobes.runs.start import (
    exit_to_resume,
    has_begun,
    leave,
    read_plain,
    watch_folder,
    watch_manifests,
)
from cif_lobes.runs.teacher import keep_teacher
from cif_lobes.storage.atomic_files import DiskFull
from cif_lobes.storage.lock import lock_run, release_runs
from cif_lobes.storage.record import RunRecord
from cif_lobes.storage.run_files import (
    keep_settings,
    keep_tokenizer,
    kept_tokenizer,
)
from cif_lobes.training.memory import explain_memory

logger = logging.getLogger(__name__)


def train_and_score(brain, hparams_file, hparams, datasets):
    """What a recogniser's run does once its data and Brain are made.

    Arguments
    ---------
    brain : cif_lobes.training.recognizer.RecognizerBrain
    hparams_file : str
        The recipe's yaml, for the run record.
    hparams : dict
        The loaded yaml.
    datasets : dict of str to DynamicItemDataset
        "train", "valid" and the test sets.

    Returns
    -------
    dict
        Summary of each set but "train", by name.
    """
    for name in ("train", "valid"):
        check_tokens(datasets[name], hparams["tokenizer"], brain.count_frames, name)
    fit(brain, hparams_file, hparams, datasets)
    tests = {n: d for n, d in datasets.items() if n != "train"}
    results = score(brain, hparams, tests)
    finish()
    return results


def start(hparams_file, run_opts, overrides, prepare):
    """Join the other processes, load the yaml, prepare the data.

    Arguments
    ---------
    hparams_file, run_opts, overrides, prepare
        See `cif_lobes.runs`.

    Returns
    -------
    hparams : dict
        The loaded yaml.
    manifests : dict of str to str
        See `manifest_paths`.
    """
    hparams = load_settings(hparams_file, run_opts, overrides)
    return hparams, prepare_data(hparams, prepare)


def prepare_data(hparams, prepare):
    """Write the manifests of a loaded yaml; returns them as `start` does."""
    run_on_main(_prepare_data, args=[hparams, prepare])
    return manifest_paths(hparams)


def load_settings(hparams_file, run_opts, overrides):
    """Join the other processes, load the yaml, make the output folder; see `start`."""
    _choose_device(run_opts)
    ddp_init_group(run_opts)
    settings = read_plain(hparams_file, overrides)
    if run_opts.get("dry_run"):
        overrides = into_nowhere(settings, overrides)
        settings = read_plain(hparams_file, overrides)
    watch_folder(settings["output_folder"])
    with open(hparams_file, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, overrides)
    lock_run(hparams["output_folder"])
    run_on_main(watch_manifests, args=[hparams["output_folder"]])
    load_ears(hparams)
    check_network(hparams["output_folder"], hparams["modules"], settings)
    # Only here: later on, checkpoints bring the parameters of the frozen student along.
    if "student_run" in hparams and not run_opts.get("test_only"):
        hparams["features"].load_run(hparams["student_run"])
    sb.create_experiment_directory(hparams["output_folder"])
    hparams["overrides"] = overrides
    hparams["dry_run"] = run_opts.get("dry_run", False)
    if not hparams["dry_run"]:
        note_ears(hparams)
    return hparams


def _choose_device(run_opts):
    """Once, for the Brain and for the frozen networks beside it alike."""
    device = own_device(run_opts.get("device"))
    if isinstance(run_opts, dict):
        run_opts["device"] = device
    else:  # SpeechBrain's RunOptions: frozen, and a Brain reads of it what was typed
        object.__setattr__(run_opts, "device", device)
        run_opts.overridden_args.add("device")


def fit_tokenizer(hparams, manifest):
    """Make or load the vocabulary of a training manifest; keep it in the run folder."""
    tokenizer = hparams["tokenizer"]
    # Shared by the rows of a corpus on purpose, and with a teacher's cache; by two corpora
    # perhaps not. Where it is known which texts it was made from, `fit` says more.
    known = kept_tokenizer(hparams).exists() or texts_file(tokenizer.path).exists()
    shared = hparams.get("teacher_cache") or hparams.get("dry_run")
    if tokenizer.path.exists() and not known and not shared:
        print(
            f"vocabulary: {tokenizer.path}, which is there already. For one of these "
            "transcripts give another --manifest_folder"
        )
    tokenizer.fit(u.wrd for u in read_manifest(manifest))
    found = len(tokenizer.symbols)
    if found < tokenizer.vocab_size / 2:
        logger.warning(
            f"vocab_size is {tokenizer.vocab_size:,}, the vocabulary {tokenizer.path} has "
            f"{found:,} symbols: the other outputs are never a target. --vocab_size {found}"
        )
    keep_tokenizer(hparams)


def finish():
    """Leave a distributed run together with the other processes, if it is one."""
    if torch.distributed.is_initialized():
        # Without destructors: now and then a gloo thread that is still running at exit
        # makes C++ abort a process whose work is done.
        torch.distributed.barrier()
        leave()
        release_runs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def used_modules(hparams):
    """The yaml's modules without a CTC head if CTC weighs nothing.

    An idle head would be saved, decayed, and make DistributedDataParallel wait for its
    gradient.

    Arguments
    ---------
    hparams : dict
        The loaded yaml.

    Returns
    -------
    dict of str to torch.nn.Module
    """
    modules = dict(hparams["modules"])
    if not hparams.get("ctc_weight", 0):
        modules.pop("ctc_head", None)
    return modules


def assemble(brain_class, hparams, run_opts, modules, **kwargs):
    """A Brain from a loaded yaml, to which the run record and the model are added.

    Arguments
    ---------
    brain_class : type
        A `cif_lobes.training.brain.TrainingBrain`.
    hparams : dict
        The loaded yaml.
    run_opts : dict
        SpeechBrain's run options.
    modules : dict of str to torch.nn.Module
        What checkpoints hold.
    **kwargs
        The Brain's own arguments.

    Returns
    -------
    TrainingBrain
    """
    set_tf32(False)  # SpeechBrain allows it when it is imported
    logger = hparams.get("train_logger")
    hparams["record"] = RunRecord(hparams["output_folder"], logger)
    hparams["model"] = torch.nn.ModuleDict(modules)
    hparams["checkpointer"].add_recoverable("model", hparams["model"])
    brain = brain_class(
        modules=modules,
        opt_class=hparams["optimizer"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
        **kwargs,
    )
    # In a log a bar is thousands of lines; the record prints one per epoch.
    brain.noprogressbar = brain.noprogressbar or not sys.stderr.isatty()
    return brain


def fit(brain, hparams_file, hparams, datasets):
    """Train any Brain on audio; on Ctrl-C say how to go on; see `train_and_score`."""
    train_options = train_loader_options(
        datasets["train"],
        hparams["batch_seconds"],
        hparams["device_batch_seconds"],
        hparams["num_buckets"],
        hparams["sorting"],
        hparams["seed"],
        hparams["num_workers"],
    )
    valid_options = eval_loader_options(
        datasets["valid"], hparams["eval_batch_seconds"], hparams["num_workers"]
    )
    durations = [row["duration"] for row in datasets["train"].data.values()]
    hparams["record"].longest_seconds = max(durations)
    hparams["record"].train_hours = sum(durations) / 3600
    fit_batches(brain, hparams_file, hparams, datasets, train_options, valid_options)


def fit_tokens(brain, hparams_file, hparams, sets):
    """Train on sequences of tokens, as `fit` does, and measure the best checkpoint.

    Arguments
    ---------
    sets : dict of str to TokenText or VectorSet
        "train" and "valid".

    Returns
    -------
    dict
        Figures of "valid".
    """
    at_once = hparams["device_batch_tokens"]
    train_options = loader_options(
        sets["train"], hparams["batch_tokens"], at_once, hparams["seed"]
    )
    options = loader_options(sets["valid"], at_once)
    fit_batches(brain, hparams_file, hparams, sets, train_options, options)
    brain.evaluate(sets["valid"], min_key=brain.best_key, test_loader_kwargs=options)
    return brain.test_figures


def fit_batches(brain, hparams_file, hparams, datasets, train_options, valid_options):
    """Train on whatever the DataLoaders of these options give; see `fit`."""
    if hparams.get("dry_run"):
        with explain_memory(brain):
            measure(brain, hparams, datasets, train_options, valid_options)
        finish()
        sys.exit(0)
    parameters = sum(p.numel() for p in hparams["model"].parameters())
    if isinstance(hparams.get("features"), PretrainedEars):
        parameters += hparams["features"].frozen_parameters()
    settings = read_plain(hparams_file, hparams["overrides"])
    check_parameters(hparams["output_folder"], hparams["model"], settings)

    updates = train_options["batch_sampler"].num_updates

    def begin():
        check_updates(
            hparams["output_folder"], brain.updates_of_an_epoch, updates, settings
        )
        run_on_main(keep_settings, args=[hparams, hparams_file, hparams["overrides"]])
        # Scoring alone changes nothing of what is known about the training.
        if not (brain.test_only and hparams["record"].path.exists()):
            hparams["record"].start(
                hparams_file, hparams["seed"], parameters, brain.device
            )
        if not brain.test_only:
            run_on_main(keep_teacher, args=[hparams])
        has_begun()

    # Only then: a start that is refused, or has nothing to train, leaves a run as it was.
    if brain.test_only:
        begin()
    elif not is_done(hparams, settings, updates):
        brain.on_recovered = begin
    try:
        with explain_memory(brain):
            brain.fit(
                hparams["epoch_counter"],
                datasets["train"],
                datasets["valid"],
                train_loader_kwargs=train_options,
                valid_loader_kwargs=valid_options,
            )
    except KeyboardInterrupt:
        saved = "saved" if brain.stopped else "not saved again"
        exit_to_resume(f"stopped; {saved} in {hparams['save_folder']}. Go on with")
    except (DiskFull, FloatingPointError, UnusableAudio) as error:
        exit_to_resume(f"stopped: {error}")
    hparams["record"].close()


def manifest_paths(hparams):
    """The manifests of a loaded yaml by the name of their split.

    Returns
    -------
    dict of str to str
        "train", "valid", and each test set under its file's name.
    """
    tests = {pathlib.Path(path).stem: path for path in hparams["test_csv"]}
    paths = {"train": hparams["train_csv"], "valid": hparams["valid_csv"], **tests}
    if not hparams["skip_prep"]:
        return paths
    # The user's own files are read through their checked copies.
    return {name: os.path.join(hparams["save_folder"], f"{name}.csv") for name in paths}


def _prepare_data(hparams, prepare):
    """Write the manifests: the corpus's, or checked copies of the user's own csv."""
    os.makedirs(hparams["save_folder"], exist_ok=True)
    if not hparams["skip_prep"]:
        if hparams["data_folder"] is None:
            raise ValueError(
                "data_folder is not set: run with --data_folder DIR, or with --skip_prep "
                "True --train_csv A.csv --valid_csv B.csv --test_csv '[C.csv]'"
            )
        prepare(hparams)
        return
    prepare_own_data(
        {role: hparams[f"{role}_csv"] for role in ("train", "valid", "test")},
        hparams["save_folder"],
        hparams["language"],
        max_rejected=hparams["max_rejected"],
        data_root=hparams["data_folder"],
        audio_memory=os.path.join(hparams["manifest_folder"], MEMORY),
        check_audio=hparams["check_audio"],
    )
