"""A training of an adapter into a language model, from its yaml to its figures."""

import json
import pathlib

from speechbrain.utils.distributed import run_on_main

from cif_lobes.data.batches import make_dataset
from cif_lobes.nets.speech_llm import SpeechLLM
from cif_lobes.runs.evaluation import score
from cif_lobes.runs.stages import assemble, finish, fit, start
from cif_lobes.storage.atomic_files import write_atomically
from cif_lobes.storage.run_files import keep_tokenizer
from cif_lobes.teachers.cif_recognizer import FrozenRecognizer
from cif_lobes.training.speech_llm import SpeechLLMBrain

IDENTITY = "llm.json"  # of a run folder: what the adapter was trained for


def run(hparams_file, run_opts, overrides, prepare):
    """Prepare the data, train the adapter, and score; see `cif_lobes.runs`.

    Returns
    -------
    dict
        Summary of each set but "train", by name.
    """
    hparams, manifests = start(hparams_file, run_opts, overrides, prepare)
    brain = make_brain(hparams, run_opts)
    run_on_main(keep_tokenizer, args=[hparams])
    datasets = {
        name: make_dataset(path, hparams["tokenizer"], hparams["sample_rate"])
        for name, path in manifests.items()
    }
    fit(brain, hparams_file, hparams, datasets)
    tests = {n: d for n, d in datasets.items() if n != "train"}
    used = {name: hparams[name] for name in ("llm", "recognizer")}
    results = score(brain, hparams, tests, beam=hparams["beam_size"], **used)
    finish()
    return results


def make_brain(hparams, run_opts):
    """The Brain of a loaded yaml, with recogniser and language model beside it.

    Raises
    ------
    ValueError
        If they do not fit the adapter, or are not those of an earlier start.
    """
    recognizer = FrozenRecognizer(
        hparams["recognizer"], run_opts.get("device") or "cpu"
    )
    network = recognizer.network
    hparams |= {
        "tokenizer": recognizer.tokenizer,
        "sample_rate": recognizer.sample_rate,
    }
    hparams |= {"features": network.features, "encoder": network.encoder}
    llm = SpeechLLM(
        hparams["llm"], hparams["prompt"], hparams["chat"], hparams["random_llm"]
    )
    for name, ours, theirs in [
        ("cif_width", hparams["cif_width"], recognizer.vector_size),
        ("llm_width", hparams["llm_width"], llm.width),
    ]:
        if ours != theirs:
            raise ValueError(
                f"{name} is {ours}, that of the model is {theirs}: --{name} {theirs}"
            )
    run_on_main(keep_identity, args=[hparams, llm, recognizer])
    return assemble(
        SpeechLLMBrain,
        hparams,
        run_opts,
        hparams["modules"],
        recognizer=recognizer,
        llm=llm,
    )


def keep_identity(hparams, llm, recognizer):
    """Write down what the adapter is trained for, or see that it is still the same."""
    path = pathlib.Path(hparams["output_folder"]) / IDENTITY
    now = {**llm.identity, "recognizer": recognizer.weights_hash}
    if not path.exists():
        write_atomically(path, json.dumps(now, indent=1) + "\n")
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        raise ValueError(
            f"{path.parent}: its adapter was trained with {' and '.join(changed)} other "
            f"than those of {hparams['llm']} and {recognizer.path}. Give the same, or "
            "train into another --output_folder"
        )
