"""A run of a CIF recogniser, from its yaml to its figures."""

import pathlib

from speechbrain.utils.distributed import run_on_main

from cif_lobes.data.batches import make_dataset
from cif_lobes.devices.processes import check_device
from cif_lobes.nets.kept_ears import open_ears
from cif_lobes.runs.bert import begin_with_bert
from cif_lobes.runs.ears import open_ears_cache
from cif_lobes.runs.init_from import start_from
from cif_lobes.runs.stages import (
    assemble,
    fit_tokenizer,
    start,
    train_and_score,
    used_modules,
)
from cif_lobes.runs.teacher import meet_cached_teacher
from cif_lobes.settings.safe_yaml import build
from cif_lobes.storage.checkpoints import SafeCheckpointer
from cif_lobes.storage.run_files import kept_tokenizer
from cif_lobes.training.cif import CIFBrain
from cif_lobes.training.distillation import add_teacher


def run(hparams_file, run_opts, overrides, prepare):
    """Prepare the data, train, and score; see `cif_lobes.runs` and `train_and_score`."""
    brain, hparams, datasets = begin(hparams_file, run_opts, overrides, prepare)
    return train_and_score(brain, hparams_file, hparams, datasets)


def begin(hparams_file, run_opts, overrides, prepare):
    """All that a run needs before its first update; see `cif_lobes.runs`.

    Returns
    -------
    brain : CIFBrain
    hparams : dict
        The loaded yaml.
    datasets : dict of str to DynamicItemDataset
        "train", "valid" and the test sets.
    """
    hparams, manifests = start(hparams_file, run_opts, overrides, prepare)
    tokenizer = hparams["tokenizer"]
    run_on_main(fit_tokenizer, args=[hparams, manifests["train"]])
    # Only training reads the teacher's states.
    learning = not run_opts.get("test_only")
    cache = add_teacher(hparams, manifests["train"]) if learning else None
    if cache is not None:
        meet_cached_teacher(hparams, cache)
    heard = open_ears_cache(hparams, manifests)
    datasets = {
        name: make_dataset(
            path,
            tokenizer,
            hparams["sample_rate"],
            cache if name == "train" else None,
            heard,
            hparams.get("speeds", ()) if name == "train" else (),
        )
        for name, path in manifests.items()
    }
    # A run that goes on has checkpoints of its own.
    begins = learning and not hparams["checkpointer"].list_checkpoints()
    if learning:
        begin_with_bert(hparams, begins)
    brain = make_brain(hparams, run_opts)
    if begins and hparams.get("init_from"):
        start_from(hparams["model"], hparams["init_from"], tokenizer)
    return brain, hparams, datasets


def make_brain(hparams, run_opts):
    """The Brain of a loaded yaml; a CTC head that weighs nothing is left out."""
    return assemble(CIFBrain, hparams, run_opts, used_modules(hparams))


def load_run(folder, overrides=None, run_opts=None, teacher=False):
    """The Brain and settings of a run folder, wherever it has been moved to.

    Arguments
    ---------
    folder : str
        Output folder of a training run.
    overrides : dict, optional
        Settings to change.
    run_opts : dict, optional
        SpeechBrain's run options, for instance {"device": "cuda"}.
    teacher : bool
        Whether to read the distillation losses too, which scoring does not need.

    Returns
    -------
    brain : CIFBrain
        Without parameters until `brain.on_evaluate_start()` loads their average.
    hparams : dict
        The loaded yaml.

    Raises
    ------
    FileNotFoundError
        If the folder holds no run.
    ValueError
        If it holds another kind of run, or is refused by `cif_lobes.settings.safe_yaml`.
    """
    folder = pathlib.Path(folder)
    hparams_file = folder / "hyperparams.yaml"
    check_device((run_opts or {}).get("device"))
    if not hparams_file.exists():
        raise FileNotFoundError(
            f"{folder} is not a run folder: no hyperparams.yaml. Give the "
            "output_folder of a training run, for instance results/AISHELL-1/cif/1986"
        )
    overrides = {
        "output_folder": str(folder),
        "save_folder": str(folder / "save"),
        **(overrides or {}),
    }
    hparams = build(hparams_file, overrides, teacher=teacher)
    open_ears(hparams.get("features"), folder)
    if "cif" not in hparams.get("modules", ()):
        raise ValueError(
            f"{folder} is no run of a CIF recogniser. Score it with its own command, "
            "which is in its run.json, and --test_only"
        )
    counter = {"counter": hparams["epoch_counter"]}
    hparams["checkpointer"] = SafeCheckpointer(folder / "save", counter)
    hparams["tokenizer"].path = kept_tokenizer(hparams)
    return make_brain(hparams, run_opts or {"device": "cpu"}), hparams
