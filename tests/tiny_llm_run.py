"""A run of train_llm.py that has been begun and saved, without having learnt much."""

import torch
from conftest import ROOT
from hyperpyyaml import load_hyperpyyaml, resolve_references

from cif_lobes.nets.opened_llm import read_note
from cif_lobes.runs.speech_llm import keep_identity, make_brain


def make_llm_run(folder, recognizer, llm, corpus, **changes):
    """Write the run folder; returns its Brain. Its adapter has random weights."""
    settings = {
        "output_folder": str(folder),
        "manifest_folder": str(folder),
        "recognizer": str(recognizer),
        "llm": llm,
        "llm_width": 32,
        "cif_width": 32,
        "prompt": "S:{speech}T:",
        "language": "zh",
        "error_unit": "char",
        "train_csv": str(corpus[0]),
        "valid_csv": str(corpus[1]),
        "test_csv": [],
        "num_workers": 0,
        "beam_size": 2,
        **changes,
    }
    with open(ROOT / "recipes/MiniSpeech/hparams/llm.yaml") as file:
        text = resolve_references(file, settings).getvalue()
    folder.mkdir()
    (folder / "hyperparams.yaml").write_text(text, encoding="utf-8")
    hparams = load_hyperpyyaml(text)
    brain = make_brain(hparams, {"device": "cpu"})
    # A start that is killed while data are prepared binds nobody to its language model.
    assert not read_note(folder)
    keep_identity(hparams)
    with torch.no_grad():
        for weight in brain.modules.parameters():
            weight.normal_()
    brain.hparams.record.start(folder / "hyperparams.yaml", 1986, 1, brain.device)
    brain.checkpointer.save_checkpoint({"error_rate": 1.0, "epoch": 1})
    return brain
