"""A training of an adapter into a language model, from its yaml to its figures."""

import json
import pathlib

from speechbrain.utils.distributed import run_on_main

from cif_lobes.data.batches import make_dataset
from cif_lobes.nets.opened_llm import (
    check_identity,
    identity_of,
    open_llm,
    read_note,
)
from cif_lobes.runs.ears import open_ears_cache
from cif_lobes.runs.evaluation import score
from cif_lobes.runs.stages import (
    assemble,
    finish,
    fit,
    load_settings,
    prepare_data,
)
from cif_lobes.settings.safe_yaml import build
from cif_lobes.storage.atomic_files import write_atomically
from cif_lobes.storage.checkpoints import SafeCheckpointer
from cif_lobes.storage.run_files import LLM_NOTE, keep_tokenizer
from cif_lobes.teachers.cif_recognizer import FrozenRecognizer
from cif_lobes.training.speech_llm import SpeechLLMBrain


def run(hparams_file, run_opts, overrides, prepare):
    """Prepare the data, train the adapter, and score; see `cif_lobes.runs`.

    Returns
    -------
    dict
        Summary of each set but "train", by name.
    """
    hparams = load_settings(hparams_file, run_opts, overrides)
    # Before the data: what does not fit is said before hours of audio are decoded.
    brain = make_brain(hparams, run_opts)
    manifests = prepare_data(hparams, prepare)
    # Checkpoints, if there are any, are loaded later.
    hparams["adapter"].start_like(brain.llm.embed.weight)
    run_on_main(keep_tokenizer, args=[hparams])
    run_on_main(keep_identity, args=[hparams])
    datasets = make_datasets(hparams, manifests)
    fit(brain, hparams_file, hparams, datasets)
    tests = {n: d for n, d in datasets.items() if n != "train"}
    results = score(brain, hparams, tests, **how(hparams))
    finish()
    return results


def load_run(folder, overrides=None, run_opts=None):
    """The Brain and settings of a run folder; see `cif_lobes.runs.cif.load_run`.

    Raises
    ------
    FileNotFoundError, ValueError
        If recogniser or language model are not where the yaml says, or are others.
    """
    folder = pathlib.Path(folder)
    own = {"output_folder": str(folder), "save_folder": str(folder / "save")}
    hparams = build(folder / "hyperparams.yaml", {**own, **(overrides or {})})
    counter = {"counter": hparams["epoch_counter"]}
    hparams["checkpointer"] = SafeCheckpointer(folder / "save", counter)
    return make_brain(hparams, run_opts or {"device": "cpu"}), hparams


def make_brain(hparams, run_opts):
    """The Brain of a loaded yaml, with recogniser and language model beside it.

    Adds `llm_identity` to the settings, for `keep_identity`.

    Raises
    ------
    ValueError
        If they do not fit the adapter, or are not those of an earlier start.
    """
    recognizer = FrozenRecognizer(hparams["recognizer"], run_opts["device"])
    network = recognizer.network
    hparams |= {
        "tokenizer": recognizer.tokenizer,
        "sample_rate": recognizer.sample_rate,
    }
    hparams |= {"features": network.features, "encoder": network.encoder}
    llm, lora = open_llm(hparams, hparams["output_folder"])
    for name, ours, theirs in [
        ("cif_width", hparams["cif_width"], recognizer.vector_size),
        ("llm_width", hparams["llm_width"], llm.width),
    ]:
        if ours != theirs:
            raise ValueError(
                f"{name} is {ours}, that of the model is {theirs}: --{name} {theirs}"
            )
    hparams["llm_identity"] = identity_of(llm, lora, recognizer.weights_hash)
    folder = hparams["output_folder"]
    if read_note(folder):
        check_identity(folder, hparams["llm_identity"], hparams["llm"])
    return assemble(
        SpeechLLMBrain,
        hparams,
        run_opts,
        hparams["modules"] | ({"lora": lora} if lora else {}),
        recognizer=recognizer,
        llm=llm,
    )


def make_datasets(hparams, manifests, open_heard=open_ears_cache):
    """Data sets of manifests, by name, once `make_brain` has brought the recogniser.

    Arguments
    ---------
    hparams : dict
        The loaded yaml.
    manifests : dict of str to str
        csv files.
    open_heard : callable
        As `cif_lobes.runs.ears.open_ears_cache`.

    Raises
    ------
    FileNotFoundError, ValueError
        See `open_ears_cache`.
    """
    heard = open_heard(hparams, manifests)
    speeds = {"train": hparams.get("speeds", ())}
    return {
        name: make_dataset(
            path,
            hparams["tokenizer"],
            hparams["sample_rate"],
            ears_cache=heard,
            speeds=speeds.get(name, ()),
        )
        for name, path in manifests.items()
    }


def how(hparams):
    """What is kept beside figures."""
    names = {"beam": "beam_size", "llm": "llm", "recognizer": "recognizer"}
    return {name: hparams[setting] for name, setting in names.items()}


def keep_identity(hparams):
    """Write down what the adapter is trained for, as its training begins."""
    path = pathlib.Path(hparams["output_folder"]) / LLM_NOTE
    write_atomically(path, json.dumps(hparams["llm_identity"], indent=1) + "\n")
