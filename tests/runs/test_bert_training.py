"""Runs whose decoder is a BERT: begun with it, and then complete without its folder."""

import json
import pathlib
import shutil

import pytest
import torch
from conftest import ROOT, epochs, last_checkpoint, stop_after, tiny_arguments, train
from programs import run_python
from tiny_bert import LETTERS, make_bert
from tiny_ears import ears_arguments, make_folder
from tiny_teacher import VOCAB

from cif_lobes.inference.export import export_run
from cif_lobes.inference.onnx_export import export_onnx
from cif_lobes.inference.recognizer import CIFRecognizer
from cif_lobes.inference.stream import StreamingRecognizer
from cif_lobes.runs.cif import load_run
from cif_lobes.storage.parameters import read_parameters

pytestmark = pytest.mark.slow

DECODER = """decoder: !new:cif_lobes.nets.bert_decoder.BERTDecoder
    vocab_size: !ref <vocab_size>
    d_model: !ref <d_model>
    source: {source}
    width: 16
    num_layers: 2
    nhead: 2
    d_ffn: 32
    true_share: [0.5, 0.0]
    falls: [0.0, 0.5]
    dropout: 0.0
bert_lr: 2.0e-3
bert_trained_from: 10
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A BERT with its head, and a Whisper, as the hub has them."""
    folder = tmp_path_factory.mktemp("hub")
    return make_bert(folder / "bert"), make_folder("whisper", folder / "whisper")


def arguments(corpus, folder, hub, **changes):
    """Command line of w2v_cif_bert_small.yaml, tiny, on the tone corpus."""
    bert, ears = hub
    settings = {
        "ears_layers": "[3]",
        "bert": bert,
        "bert_width": 16,
        "bert_heads": 2,
        "bert_ffn": 32,
        "bert_layers": 2,
        "bert_trained_from": 6,
        "bert_lr": 1e-3,
        **changes,
    }
    yaml = ROOT / "recipes/AISHELL-1/hparams/w2v_cif_bert_small.yaml"
    return ears_arguments(yaml, corpus, folder, ears, **settings)


def parts(parameters, begin):
    """Those of a BERT's layers, or of its embeddings."""
    return {
        k: v for k, v in parameters.items() if k.startswith(f"decoder.bert.{begin}")
    }


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_it_learns_and_needs_no_bert_folder(corpus, tmp_path, signals):
    """Recognition, export, scoring and going on: all from the run alone."""
    source = make_bert(tmp_path / "bert")
    yaml, *flags = tiny_arguments(corpus, tmp_path, number_of_epochs=30, lr=4e-3)
    head, _, rest = (
        pathlib.Path(yaml)
        .read_text()
        .partition("decoder: !new:cif_lobes.nets.decoder.CIFDecoder\n")
    )
    rest = rest[rest.index("\nctc_head:") :]
    (tmp_path / "bert.yaml").write_text(head + DECODER.format(source=source) + rest)
    flags = [str(tmp_path / "bert.yaml"), *flags]
    train(flags)
    run = tmp_path / "run"
    record = json.loads((run / "run.json").read_text())
    assert record["results"]["set2"]["error_rate"] < 30
    note = json.loads((run / "bert.json").read_text())
    assert note["source"] == source and note["missing"] == []
    assert len(note["hash"]) == 16

    shutil.move(tmp_path / "bert", tmp_path / "away")
    moved = shutil.copytree(run, tmp_path / "moved")
    found = CIFRecognizer.from_run(moved).transcribe(signals)
    export_run(moved, tmp_path / "exported")
    assert CIFRecognizer.from_export(tmp_path / "exported").transcribe(signals) == found
    said = next(f for f in found if f.tokens)
    assert all(0 < token.confidence <= 1 for token in said.tokens)
    assert all(token.start < token.end for token in said.tokens)
    for signal, together in zip(signals[:4], found, strict=False):
        assert CIFRecognizer.from_run(moved).transcribe(signal).text == together.text
    run_python(["evaluate.py", moved, "--split", "valid"])
    flags[flags.index("--number_of_epochs") + 1] = "31"
    train(flags)
    assert len(epochs(run)) == 31

    with pytest.raises(ValueError, match="a BERTDecoder, or one with autoregressive"):
        StreamingRecognizer.from_run(run)
    with pytest.raises(ValueError, match="a BERTDecoder or autoregressive: False"):
        export_onnx(run, tmp_path / "onnx")


def test_resuming_equals_running_through(corpus, hub, tmp_path):
    """BERT begins at its update, its embeddings never; what is shown is the same."""
    whole, split = tmp_path / "whole", tmp_path / "split"
    train(arguments(corpus, whole, hub))
    stopped = arguments(corpus, split, hub)
    stop_after(5, stopped)
    first = last_checkpoint(split / "run")
    train(stopped)
    ours, theirs = last_checkpoint(whole / "run"), last_checkpoint(split / "run")
    assert equal(ours, theirs)
    assert epochs(whole / "run")[-1]["train"] == epochs(split / "run")[-1]["train"]
    _, hparams = load_run(whole / "run")
    assert hparams["decoder"].source == hub[0]
    # Not a bit of it has moved after five updates, and all of it after more.
    begun = arguments(corpus, tmp_path / "frozen", hub, bert_trained=False)
    train(begun)
    kept = last_checkpoint(tmp_path / "frozen/run")
    assert equal(parts(kept, ""), parts(first, ""))
    assert equal(parts(ours, "embeddings"), parts(first, "embeddings"))
    assert not equal(parts(ours, "layers"), parts(first, "layers"))
    assert not torch.equal(
        kept["decoder.project.weight"], first["decoder.project.weight"]
    )


def test_another_bert_is_refused(corpus, hub, tmp_path):
    train(arguments(corpus, tmp_path, hub, number_of_epochs=1))
    other = make_bert(tmp_path / "other"), hub[1]
    done = train(arguments(corpus, tmp_path, other), check=False)
    assert done.returncode and "is a run with the BERT" in done.stderr


def test_random_weights_no_bert_and_two_processes(corpus, hub, tmp_path):
    """A BERT that waits, and one that is shown nothing, under DistributedDataParallel."""
    none = {"bert": "null", "bert_share": 0.0}
    train(arguments(corpus, tmp_path / "none", hub, number_of_epochs=1, **none))
    assert not parts(read_parameters(tmp_path / "none/run"), "")
    assert not (tmp_path / "none/run/bert.json").exists()
    random = arguments(corpus, tmp_path / "two", hub, bert="null", bert_trained_from=3)
    train([*random, "--distributed_backend", "gloo"], processes=2)
    run = tmp_path / "two/run"
    assert json.loads((run / "bert.json").read_text()) == {"source": None}
    assert epochs(run)[-1]["valid"]["loss"] < epochs(run)[0]["valid"]["loss"]


def test_tokens_that_are_missing(corpus, tmp_path, hub):
    """One of eight is named; too few would be refused."""
    vocab = tuple(v for v in (*VOCAB, *LETTERS) if v != "d")
    bert = make_bert(tmp_path / "bert", vocab=vocab)
    done = train(
        arguments(corpus, tmp_path, (bert, hub[1]), number_of_epochs=1), check=False
    )
    assert done.returncode and "cannot write 1 of 8 tokens: d" in done.stderr


def test_wordpieces_of_english(corpus, hub, tmp_path):
    """LibriSpeech's yaml, with a wav2vec 2.0 of which a layer learns."""
    vocab = (*VOCAB, *LETTERS, *(f"##{c}" for c in LETTERS))
    bert = make_bert(tmp_path / "bert", vocab=vocab)
    ears = make_folder("wav2vec2", tmp_path / "wav2vec2")
    changes = {"ears_trained": 1, "ears_trained_from": 2, "vocab_size": 12}
    _, *flags = arguments(
        corpus, tmp_path, (bert, ears), number_of_epochs=1, pool_after="[]", **changes
    )
    yaml = ROOT / "recipes/LibriSpeech/hparams/w2v_cif_bert.yaml"
    train([str(yaml), *flags], recipe="LibriSpeech")
    _, hparams = load_run(tmp_path / "run")
    assert "##b" in hparams["tokenizer"].symbols
    note = json.loads((tmp_path / "run/bert.json").read_text())
    assert note["missing"] == []
