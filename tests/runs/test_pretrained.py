"""Training that starts from the parameters of another run."""

import os

import pytest
import torch
from conftest import last_checkpoint, tiny_arguments, train
from hyperpyyaml import load_hyperpyyaml
from tiny_asr import make_run
from tiny_bert import make_decoder

from cif_lobes.data.tokens import CharTokenizer
from cif_lobes.nets.features import LogMel
from cif_lobes.runs.cif import load_run
from cif_lobes.runs.ctc_attention import HEADS
from cif_lobes.runs.init_from import start_from, take_parameters
from cif_lobes.storage.parameters import read_parameters, run_folder


@pytest.fixture
def network(trained):
    """Model of random parameters, and vocabulary, of a run."""
    _, hparams = load_run(trained)
    return hparams["model"], hparams["tokenizer"]


def changed(model, before):
    """Modules whose parameters are not what they were."""
    after = model.state_dict()
    return {k.split(".")[0] for k in after if not torch.equal(after[k], before[k])}


def copy_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_all_of_it_is_taken(trained, network):
    model, tokenizer = network
    start_from(model, trained, tokenizer)
    for name, value in read_parameters(trained).items():
        assert torch.equal(model.state_dict()[name], value), name


def test_one_checkpoint_will_do(trained, network):
    model, tokenizer = network
    newest = max(trained.glob("save/CKPT*"), key=os.path.getmtime)
    start_from(model, newest, tokenizer)
    expected = last_checkpoint(trained)
    for name, value in model.state_dict().items():
        assert torch.equal(expected[name], value), name


def test_with_another_vocabulary_the_tokens_learn_anew(trained, network, tmp_path):
    model, _ = network
    before = copy_of(model)
    start_from(model, trained, CharTokenizer(tmp_path / "c", 8, "zh").fit(["wxyz"]))
    assert changed(model, before) == {"encoder", "cif"}


def test_the_heads_of_a_teacher_learn_anew(trained, network):
    model, tokenizer = network
    model["distillation"] = torch.nn.Linear(32, 4)
    del model["ctc_head"]
    before = copy_of(model)
    start_from(model, trained, tokenizer)
    assert changed(model, before) == {"encoder", "cif", "decoder"}


def test_features_of_another_kind_count_anew(trained, network):
    model, tokenizer = network
    model["features"] = LogMel(n_mels=40, normalization="global")
    before = copy_of(model)
    start_from(model, trained, tokenizer)
    assert changed(model, before) == {"encoder", "cif", "decoder", "ctc_head"}


def test_a_decoder_of_another_kind_learns_anew(trained, network):
    model, tokenizer = network
    model["decoder"] = make_decoder()
    before = copy_of(model)
    start_from(model, trained, tokenizer)
    assert changed(model, before) == {"encoder", "cif", "ctc_head"}


def test_another_network_is_refused(trained, network):
    model, tokenizer = network
    model["cif"] = torch.nn.Linear(2, 2)
    before = copy_of(model)
    with pytest.raises(ValueError, match="init_from .*do not fit, first cif"):
        start_from(model, trained, tokenizer)
    assert not changed(model, before)


def test_another_frozen_student_is_refused(trained, network):
    """Here a part of the encoder stands for it."""
    model, tokenizer = network
    name, value = next(iter(model["encoder"].named_parameters()))
    value.requires_grad_(False)
    with pytest.raises(ValueError, match=f"encoder.{name} is frozen .* student_run"):
        start_from(model, trained, tokenizer)
    value.copy_(read_parameters(trained)[f"encoder.{name}"])
    start_from(model, trained, tokenizer)


def test_no_run_is_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="neither a run folder nor a checkpoint"
    ):
        run_folder(tmp_path / "typo")


def test_a_recogniser_starts_from_a_run(corpus, trained, tmp_path):
    """It begins where the other ended; going on, it does not begin again."""
    settings = {"init_from": trained, "number_of_epochs": 1}
    arguments = tiny_arguments(corpus, tmp_path, **settings)
    done = train(arguments)
    log = done.stderr + (tmp_path / "run/log.txt").read_text()
    assert "parameters of cif, ctc_head, decoder, encoder" in log
    arguments += ["--number_of_epochs", "2", "--init_from", str(tmp_path / "gone")]
    train(arguments)


def test_a_ctc_attention_student_keeps_its_heads(corpus, tmp_path):
    model = torch.nn.ModuleDict(read_model(make_run(corpus, tmp_path, 7)))
    teacher = make_run(corpus, tmp_path, 1)
    before, parameters = copy_of(model), read_parameters(teacher)
    take_parameters(model, parameters, HEADS, "here")
    for name, value in model.state_dict().items():
        head = name.split(".")[0] in HEADS
        assert torch.equal(value, before[name] if head else parameters[name]), name
    wide = make_run(corpus, tmp_path, 2, rnn_neurons=48)
    with pytest.raises(ValueError, match="here.*do not fit"):
        take_parameters(model, read_parameters(wide), HEADS, "here")


def read_model(run):
    """Modules of a run of random parameters."""
    with open(run / "hyperparams.yaml") as file:
        return load_hyperpyyaml(file)["modules"]
