"""TF32 is off wherever float32 is promised, and in training if the yaml says so."""

import pytest
import torch
from conftest import ROOT, TINY, pad
from hyperpyyaml import load_hyperpyyaml
from speechbrain import Stage
from speechbrain.utils.quirks import allow_tf32

from cif_lobes.cif import CIF
from cif_lobes.data.batches import (
    eval_loader_options,
    make_dataset,
    train_loader_options,
)
from cif_lobes.data.manifest import read_manifest
from cif_lobes.devices.precision import full_float32, set_tf32, tf32_allowed
from cif_lobes.inference.onnx_export import export_onnx
from cif_lobes.inference.recognizer import CIFRecognizer
from cif_lobes.runs.cif import load_run, make_brain
from cif_lobes.training.cif import CIFBrain

ON, OFF = (True, True), (False, False)


@pytest.fixture(autouse=True)
def as_speechbrain_leaves_it():
    """TF32 allowed, as after an import of SpeechBrain by anyone."""
    allow_tf32()
    yield
    set_tf32(False)


def spy(monkeypatch, owner, name):
    """List of what is allowed at each call of a method."""
    seen, method = [], getattr(owner, name)

    def spying(*args, **kwargs):
        seen.append(tf32_allowed())
        return method(*args, **kwargs)

    monkeypatch.setattr(owner, name, spying)
    return seen


@pytest.mark.parametrize("allowed", [ON, OFF])
def test_both_forms_of_the_setting_agree(allowed):
    """PyTorch raises where they do not, and torch.compile reads the older one."""
    set_tf32(allowed[0])
    assert tf32_allowed() == allowed
    assert torch.backends.cuda.matmul.allow_tf32 == allowed[0]
    assert torch.backends.cudnn.allow_tf32 == allowed[1]
    assert torch.backends.cudnn.rnn.fp32_precision == ("tf32" if allowed[1] else "ieee")
    precision = torch.get_float32_matmul_precision()
    assert precision == ("high" if allowed[0] else "highest")


def test_what_others_have_set_does_not_come_through():
    torch.backends.fp32_precision = torch.backends.cudnn.fp32_precision = "tf32"
    try:
        set_tf32(False)
        assert tf32_allowed() == OFF
    finally:
        torch.backends.fp32_precision = torch.backends.cudnn.fp32_precision = "none"


@pytest.mark.parametrize("before", [ON, OFF, (False, True)])
def test_full_float32_gives_back_what_it_found(before):
    set_tf32(*before)
    with pytest.raises(KeyError), full_float32():
        assert tf32_allowed() == OFF
        raise KeyError
    assert tf32_allowed() == before


def test_the_weights_of_cif_are_float32(monkeypatch):
    """Even in a training that allows TF32."""
    seen = spy(monkeypatch, torch.nn.Linear, "forward")
    CIF(8)(torch.rand(1, 20, 8), torch.tensor([20]), torch.tensor([3]))
    assert seen == [OFF] and tf32_allowed() == ON


@pytest.mark.parametrize("tf32", [False, True])
def test_stages_of_a_run(corpus, tmp_path, monkeypatch, tf32):
    settings = {"tf32": tf32, "number_of_epochs": 2, "output_folder": str(tmp_path)}
    settings |= {"manifest_folder": str(tmp_path), "pool_after": [1]}
    with open(ROOT / "recipes/AISHELL-1/hparams/cif_mini.yaml") as file:
        hparams = load_hyperpyyaml(file, {**TINY, **settings})
    tokenizer = hparams["tokenizer"]
    tokenizer.fit(u.wrd for u in read_manifest(corpus[0]))
    train, valid = (make_dataset(path, tokenizer, 16000) for path in corpus)

    brain = make_brain(hparams, {"device": "cpu", "noprogressbar": True})
    assert tf32_allowed() == OFF
    seen = {stage: set() for stage in Stage}
    forward = CIFBrain.compute_forward

    def spying(self, batch, stage):
        seen[stage].add(tf32_allowed())
        return forward(self, batch, stage)

    monkeypatch.setattr(CIFBrain, "compute_forward", spying)
    brain.fit(
        hparams["epoch_counter"],
        train,
        valid,
        train_loader_kwargs=train_loader_options(train, 10, 10, 3, "random", 0, 0),
        valid_loader_kwargs=eval_loader_options(valid, 10, 0),
    )
    assert tf32_allowed() == OFF
    allow_tf32()
    brain.evaluate(valid, test_loader_kwargs=eval_loader_options(valid, 10, 0))
    assert seen == {
        Stage.TRAIN: {ON if tf32 else OFF},
        Stage.VALID: {OFF},
        Stage.TEST: {OFF},
    }


def test_a_loaded_run_is_float32(trained):
    load_run(trained)
    assert tf32_allowed() == OFF


def test_recognition_is_float32(trained, exported, signals, monkeypatch, tmp_path):
    """And what the process had allowed is allowed again."""
    from speechbrain.inference.ASR import EncoderDecoderASR

    allow_tf32()  # importing the fixtures' Brain has forbidden it
    seen = spy(monkeypatch, torch.nn.Linear, "forward")
    CIFRecognizer.from_run(trained).transcribe(signals[:2])
    asr = EncoderDecoderASR.from_hparams(source=str(exported), savedir=str(tmp_path))
    asr.transcribe_batch(*pad(signals[:2]))
    assert set(seen) == {OFF} and tf32_allowed() == ON


def test_an_export_is_float32(trained, tmp_path, monkeypatch):
    seen = spy(monkeypatch, torch.onnx, "export")
    export_onnx(trained, tmp_path / "onnx")
    assert set(seen) == {OFF} and tf32_allowed() == ON
