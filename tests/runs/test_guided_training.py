"""Runs of a GuidedCIF: trained, resumed, on two processes, exported, begun from CIF."""

import pytest
import torch
from conftest import ROOT, epochs, last_checkpoint, stop_after, tiny_arguments, train
from tiny_ears import ears_arguments, make_folder

from cif_lobes.commands import evaluate
from cif_lobes.data.manifest import read_manifest
from cif_lobes.inference.export import export_run
from cif_lobes.inference.fires import find_fires
from cif_lobes.inference.onnx_export import export_onnx
from cif_lobes.inference.recognizer import CIFRecognizer
from cif_lobes.runs.cif import load_run
from cif_lobes.runs.init_from import start_from

pytestmark = pytest.mark.slow

GUIDED = ROOT / "recipes/LibriSpeech/hparams/cif_guided_small.yaml"
# Settings of what is drawn, other numbers in other processes.
DRAWN = ["dropout", "cif_dropout", "decoder_dropout", "freq_masks", "time_masks"]
DRAWN += ["silence_probability"]


def guide(text):
    """A yaml of CIF as one of GuidedCIF, as cif_guided_small.yaml is of its base."""
    assert text.count("!new:cif_lobes.cif.CIF\n") == 1
    text = text.replace("cif_lobes.cif.CIF\n", "cif_lobes.cif.guided.GuidedCIF\n")
    head = text.index("ctc_head: !new:torch.nn.Linear")
    text = text[:head] + text[text.index("\nmodules:") + 1 :]
    return text.replace("    ctc_head: !ref <ctc_head>\n", "").replace(
        "GuidedCIF\n", "GuidedCIF\n    vocab_size: !ref <vocab_size>\n"
    )


@pytest.fixture(scope="module")
def yaml(tmp_path_factory):
    path = tmp_path_factory.mktemp("yaml") / "guided.yaml"
    path.write_text(
        guide((ROOT / "recipes/AISHELL-1/hparams/cif_mini.yaml").read_text())
    )
    return path


@pytest.fixture(scope="module")
def arguments(yaml, corpus):
    def make(folder, **changes):
        return [str(yaml), *tiny_arguments(corpus, folder, **changes)[1:]]

    return make


@pytest.fixture(scope="module")
def learnt(arguments, trained, tmp_path_factory):
    """Folder of a run that began with CIF's and has learnt the tones."""
    folder = tmp_path_factory.mktemp("guided")
    train(arguments(folder, number_of_epochs=24, init_from=trained))
    return folder / "run"


def test_it_learns_and_is_exported(learnt, corpus, tmp_path):
    """What recognises is what was scored, from the run and from the export."""
    last = epochs(learnt)[-1]["valid"]
    assert last["error_rate"] < 20 and last["accuracy"] > 0.9
    sentences = read_manifest(corpus[1])
    files = [u.wav for u in sentences]
    of_run = CIFRecognizer.from_run(learnt)
    transcripts = of_run.transcribe(files)
    right = sum(t.text == u.wrd for t, u in zip(transcripts, sentences, strict=True))
    assert right >= 9
    export_run(learnt, tmp_path / "out")
    exported = CIFRecognizer.from_export(tmp_path / "out")
    assert exported.transcribe(files) == transcripts
    for transcript in transcripts:
        times = [token.start for token in transcript.tokens]
        assert times == sorted(times)
    signal = torch.randn(8000)
    fires = find_fires(of_run, signal)
    assert sum(fires.alpha) == pytest.approx(len(fires.spans), abs=1e-4)


def test_its_own_head_ranks(learnt, corpus, tmp_path):
    out = tmp_path / "out"
    chosen = ["--beam", "4", "--ctc_weight_decode", "0.5"]
    evaluate.main(evaluate.parse_arguments([str(learnt), "--split", "valid", *chosen]))
    evaluate.export([str(learnt), str(out), *chosen])
    recognizer = CIFRecognizer.from_export(out)
    assert recognizer.searcher.ranker.head is recognizer.fire.cif.ctc_head
    files = [u.wav for u in read_manifest(corpus[1])]
    ranked = recognizer.transcribe(files[:2])
    plain = CIFRecognizer.from_run(learnt, {"beam_size": 4}).transcribe(files[:2])
    assert [t.score for t in ranked] != [t.score for t in plain]


def test_resumed_as_if_uninterrupted(arguments, tmp_path):
    """All the same updates as at once."""
    whole, split = tmp_path / "whole", tmp_path / "split"
    train(arguments(whole))
    stop_after(3, arguments(split))
    train(arguments(split))
    expected, resumed = (last_checkpoint(f / "run") for f in (whole, split))
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)


def test_two_processes_take_the_same_steps(arguments, tmp_path):
    """To rounding."""
    same = dict.fromkeys(DRAWN, 0)
    train(arguments(tmp_path / "one", **same))
    two = arguments(tmp_path / "two", **same)
    train([*two, "--distributed_backend", "gloo"], processes=2)
    for a, b in zip(
        *(epochs(tmp_path / n / "run") for n in ("one", "two")), strict=True
    ):
        for stage in ("train", "valid"):
            assert a[stage]["loss"] == pytest.approx(b[stage]["loss"], rel=1e-4)


def test_begun_from_cif_and_back(trained, learnt, arguments, tmp_path):
    """The head moves into CIF, and out of it; of other tokens it learns anew."""
    (_, plain), (_, guided) = load_run(trained), load_run(learnt)
    before = guided["cif"].ctc_head.weight.clone()
    start_from(guided["model"], trained, guided["tokenizer"])
    theirs = last_checkpoint(trained)
    assert guided["cif"].ctc_head.weight.shape == theirs["ctc_head.weight"].shape
    assert not torch.equal(guided["cif"].ctc_head.weight, before)
    start_from(plain["model"], learnt, plain["tokenizer"])
    assert plain["ctc_head"].weight.ne(theirs["ctc_head.weight"]).any()


def test_on_ears_at_three_speeds(corpus, signals, tmp_path):
    """The yaml for one's own recordings, without a cache, and its export."""
    ears = make_folder("whisper", tmp_path / "whisper")
    train(
        ears_arguments(
            GUIDED, corpus, tmp_path, ears, number_of_epochs=1, vocab_size=12
        )
    )
    export_run(tmp_path / "run", tmp_path / "out")
    found, expected = (
        CIFRecognizer.from_folder(tmp_path / name).transcribe(signals[:2])
        for name in ("out", "run")
    )
    assert found == expected


def test_what_it_is_not_for(learnt, arguments, tmp_path):
    words = [str(learnt), "--split", "valid", "--tail_threshold", "0.3"]
    with pytest.raises(SystemExit, match="counts the spikes of CTC"):
        evaluate.main(evaluate.parse_arguments(words))
    with pytest.raises(ValueError, match="not for a GuidedCIF"):
        export_onnx(learnt, tmp_path / "onnx")
    done = train(arguments(tmp_path, ctc_weight=0), check=False)
    assert done.returncode and "--ctc_weight 1, or use CIF" in done.stderr
