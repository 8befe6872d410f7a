"""What a training would cost, from a few of its updates; nothing is kept of them."""

import atexit
import datetime
import json
import os
import pathlib
import shutil
import tempfile
import time
from functools import partial

import speechbrain as sb
import torch

from cif_lobes.data.validation import MEMORY
from cif_lobes.storage.atomic_files import bring
from cif_lobes.storage.record import peak_memory

WARM_UP, MEASURED, VALIDATED = 2, 10, 3  # updates, updates, batches


def into_nowhere(settings, overrides):
    """Have a run write into folders that are gone at its end.

    What decoding the recordings has found stays: hours of it need not be found again.

    Arguments
    ---------
    settings : dict
        From `cif_lobes.runs.start.read_plain`.
    overrides : str or dict
        Settings of the command line.

    Returns
    -------
    dict or str
        With other folders. Manifests and vocabulary that are there already are copied.

    Raises
    ------
    ValueError
        Under torchrun.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("--dry_run measures one process: run it without torchrun")
    nowhere = pathlib.Path(tempfile.mkdtemp(prefix="dry_run_"))
    atexit.register(shutil.rmtree, nowhere, ignore_errors=True)
    folders = {"output_folder": str(nowhere / "run")}
    there = settings.get("manifest_folder")
    if there is not None:
        folders["manifest_folder"] = str(nowhere / "manifests")
        if os.path.isdir(there):
            shutil.copytree(there, folders["manifest_folder"])
        # Called before the folder is removed: the last that is registered is the first.
        found = pathlib.Path(folders["manifest_folder"], MEMORY)
        atexit.register(bring, found, pathlib.Path(there).absolute() / MEMORY)
    if isinstance(overrides, dict):
        return {**overrides, **folders}
    lines = (overrides or "").splitlines()
    kept = [line for line in lines if line.partition(":")[0] not in folders]
    return "\n".join(kept + [f"{k}: {json.dumps(v)}" for k, v in folders.items()])


def measure(brain, hparams, datasets, train_options, valid_options):
    """Train some updates, validate some batches, and print what all of them would take.

    Arguments
    ---------
    brain : cif_lobes.training.brain.TrainingBrain
    hparams : dict
        The loaded yaml.
    datasets : dict of str to Dataset
        "train" and "valid".
    train_options, valid_options : dict
        Of their DataLoaders.

    Returns
    -------
    dict
        updates and epochs, seconds of an epoch's `training` and `validation`, frames of
        the encoder to a token (None if nothing is recognised),
        `checkpoint` and `disk` in bytes, peak `memory` in GB.
    """
    loader = brain.make_dataloader(datasets["train"], sb.Stage.TRAIN, **train_options)
    training = _time_training(brain, loader, train_options["num_workers"])
    loader = brain.make_dataloader(datasets["valid"], sb.Stage.VALID, **valid_options)
    rows = datasets["valid"].data.values()
    # Those of a language model are texts.
    durations = [row.get("duration", 0.0) for row in rows]
    workers = valid_options["num_workers"]
    validation = _time_validation(brain, loader, workers, durations)
    state = [*hparams["model"].state_dict().values()]
    adam = [p for p in hparams["model"].parameters() if p.requires_grad]
    checkpoint = sum(x.numel() * x.element_size() for x in (*state, *adam, *adam))
    estimate = {
        "updates": brain.train_sampler.num_updates,
        "epochs": hparams["number_of_epochs"],
        "frames_to_a_token": _frames_to_a_token(brain, hparams, datasets["train"]),
        "training": training,
        "validation": validation,
        "checkpoint": checkpoint,
        # The last ones and the best ones, and one that is being written.
        "disk": (2 * hparams["num_checkpoints"] + 1) * checkpoint,
        "memory": peak_memory(brain.device),
    }
    print(describe(estimate, brain.device), flush=True)
    return estimate


def describe(estimate, device):
    """The estimate in words."""
    epoch = estimate["training"] + estimate["validation"]
    whole = datetime.timedelta(seconds=round(epoch * estimate["epochs"]))
    frames = estimate["frames_to_a_token"]
    tokens = f"  a token   {frames:.1f} frames of the encoder\n" if frames else ""
    return (
        f"dry run on {device}, from {MEASURED} of {estimate['updates']:,} updates and "
        f"{VALIDATED} batches of the validation set; nothing was kept:\n"
        f"  an epoch   {epoch:,.0f} s, {estimate['validation']:,.0f} s of it validation\n"
        f"  all {estimate['epochs']} epochs   {whole}, without the test sets\n"
        f"  a checkpoint   {estimate['checkpoint'] / 1e6:,.0f} MB, at most "
        f"{estimate['disk'] / 1e9:,.2f} GB of them\n"
        # Whole runs had 1.4 to 1.6 times that on CPUs: docs/benchmarks/dry_run.md.
        f"{tokens}  memory   {estimate['memory']:,.1f} GB"
        f"{' at least' if torch.device(device).type == 'cpu' else ''}"
    )


def _time_training(brain, loader, workers):
    """Seconds of an epoch's updates."""
    brain.interrupted = brain.stopping = brain.stopped = brain.saving = False
    brain.failure = None
    brain.on_fit_start()
    brain.on_stage_start(sb.Stage.TRAIN, 1)
    brain.progress.shown = False  # what is measured is no epoch
    brain.modules.train()
    sampler = brain.train_sampler
    sizes = [_padded(sampler, u) for u in range(sampler.num_updates)]
    chosen = _spread(sampler.num_updates, WARM_UP + MEASURED)
    seconds = size = 0.0
    for number, update in enumerate(chosen):
        spent = 0.0
        for n in range(sampler.first_pass(update), sampler.first_pass(update + 1)):
            brain.step = n + 1
            batch, loading = _load(loader, sampler[n].indices)
            spent += _spent(loading, _clock(brain, brain.fit_batch, batch), workers)
        if number >= WARM_UP or number == len(chosen) - 1:
            seconds, size = seconds + spent, size + sizes[update]
    # The largest, which may not be among them, decides what memory is needed.
    silence = getattr(brain.hparams, "insert_silence", None)
    more = silence.seconds if silence and silence.probability else 0.0
    largest = max(range(len(sampler)), key=partial(_padded_pass, sampler, more=more))
    brain.step = largest + 1
    for part in (silence, getattr(brain.hparams, "speed_perturb", None)):
        if part:
            part.longest = True
    brain.fit_batch(_load(loader, sampler[largest].indices)[0])
    return seconds * sum(sizes) / size


def _time_validation(brain, loader, workers, durations):
    """Seconds of a validation; durations of its utterances say which batch is largest."""
    brain.on_stage_start(sb.Stage.VALID, 1)
    brain.modules.eval()
    batches = list(loader.batch_sampler)
    chosen = _spread(len(batches), VALIDATED)
    seconds = 0.0
    with torch.no_grad():
        for number in chosen:
            batch, loading = _load(loader, batches[number])
            took = _clock(brain, brain.evaluate_batch, batch, sb.Stage.VALID)
            seconds += _spent(loading, took, workers)
        largest = max(batches, key=lambda b: len(b) * max(durations[i] for i in b))
        brain.evaluate_batch(_load(loader, largest)[0], sb.Stage.VALID)
    return seconds * len(batches) / len(chosen)


def _frames_to_a_token(brain, hparams, dataset):
    """Mean over some utterances, end of sentence included."""
    if not hasattr(brain, "count_frames"):
        return None
    rows = list(dataset.data.values())
    rows = [rows[n] for n in _spread(len(rows), 1000)]
    tokens = sum(len(hparams["tokenizer"].encode(row["wrd"])) + 1 for row in rows)
    return sum(brain.count_frames([row["duration"] for row in rows])) / tokens


def _load(loader, indices):
    """A batch, and the seconds that it took to read."""
    start = time.monotonic()
    batch = loader.collate_fn([loader.dataset[i] for i in indices])
    return batch, time.monotonic() - start


def _clock(brain, compute, *arguments):
    """Seconds until the device has done it."""
    start = time.monotonic()
    compute(*arguments)
    if torch.device(brain.device).type == "cuda":
        torch.cuda.synchronize(brain.device)
    return time.monotonic() - start


def _spent(loading, computing, workers):
    """Workers read while the network computes."""
    return max(computing, loading / workers) if workers else loading + computing


def _padded(sampler, update):
    """Size of an update, padding included."""
    passes = range(sampler.first_pass(update), sampler.first_pass(update + 1))
    return sum(_padded_pass(sampler, n) for n in passes)


def _padded_pass(sampler, number, more=0.0):
    """The same of one pass of an update, whose utterances are each so much longer."""
    part = sampler[number]
    if not part.counts:
        return 0.0
    return len(part.indices) * (max(sampler.sizes[i] for i in part.indices) + more)


def _spread(total, wanted):
    """At most so many numbers below total, evenly apart, out of order of size."""
    wanted = min(wanted, total)
    return [round((n + 0.5) * total / wanted - 0.5) for n in range(wanted)]
