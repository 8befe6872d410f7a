"""Ranking by the CTC head from the command line: scored, swept, exported, recognised."""

import json
import re
import shutil

import pytest
import soundfile
import torch
from speechbrain.inference.ASR import EncoderDecoderASR

from cif_lobes.commands import evaluate
from cif_lobes.data.manifest import read_manifest
from cif_lobes.inference.export import open_run
from cif_lobes.inference.fires import find_fires
from cif_lobes.inference.recognizer import CIFRecognizer
from cif_lobes.runs import sweep
from cif_lobes.runs.cif import load_run

WEIGHT = 0.9


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the tiny run, to write into, whose decoder is spoilt."""
    shutil.copytree(trained, tmp_path / "run")
    noise = torch.Generator().manual_seed(0)
    for path in (tmp_path / "run").glob("save/CKPT*/model.ckpt"):
        parameters = torch.load(path)
        weight = parameters["decoder.project_out.weight"]
        weight += weight.std() * torch.randn(weight.shape, generator=noise)
        torch.save(parameters, path)
    return tmp_path / "run"


def call(*arguments):
    """evaluate.py in this process."""
    evaluate.main(evaluate.parse_arguments([*map(str, arguments)]))


def figures(run):
    return json.loads((run / "run.json").read_text())["results"]


def test_the_head_corrects_a_weak_decoder(run):
    """And what was swept is what one setting alone gives."""
    call(run, "--split", "valid", "--beam", 5)
    call(run, "--split", "valid", "--beam", 5, "--ctc_weight_decode", WEIGHT)
    plain = figures(run)["valid_beam=5"]
    ranked = figures(run)[f"valid_beam=5_ctc_weight_decode={WEIGHT}"]
    assert ranked["error_rate"] < plain["error_rate"]
    assert ranked["ctc_weight_decode"] == WEIGHT
    call(run, "--sweep", *"--beam 1 5 --tail_threshold 0.4".split())
    rows = json.loads((run / sweep.FILE).read_text())["table"]
    tried = [(row["beam"], row["ctc_weight_decode"]) for row in rows]
    assert tried == [(1, 0.0), (5, 0.0), (5, 0.2), (5, 0.5)]
    one = "--sweep --beam 5 --tail_threshold 0.4 --ctc_weight_decode"
    call(run, *one.split(), WEIGHT)
    record = json.loads((run / sweep.FILE).read_text())
    assert record["chosen"]["ctc_weight_decode"] == WEIGHT
    assert record["error_rate"] == pytest.approx(ranked["error_rate"])
    call(run, "--split", "valid", "--swept")
    assert figures(run)["valid_swept"]["error_rate"] == ranked["error_rate"]


def test_an_export_ranks_as_its_run(run, tmp_path):
    """In every way that recordings are heard; its card has the figures of that beam."""
    chosen = ["--beam", "5", "--ctc_weight_decode", str(WEIGHT)]
    call(run, "--split", "valid", *chosen)
    call(run, "--split", "valid", "--beam", 5)
    evaluate.export([str(run), str(tmp_path / "out"), *chosen])
    recognizer = CIFRecognizer.from_folder(tmp_path / "out")
    by_hand = {"beam_size": 5, "ctc_weight_decode": WEIGHT}
    of_run = CIFRecognizer(open_run(run, by_hand))
    sentences = read_manifest(load_run(run)[1]["valid_csv"])
    files = [u.wav for u in sentences]
    found = recognizer.transcribe(files)
    assert found == of_run.transcribe(files)
    texts = [transcript.text for transcript in found]
    wrong = sum(t != u.wrd for t, u in zip(texts, sentences, strict=True))
    rate = figures(run)[f"valid_beam=5_ctc_weight_decode={WEIGHT}"]
    assert wrong == round(rate["utterance_error_rate"] * len(files) / 100)
    assert texts != [
        t.text
        for t in CIFRecognizer.from_folder(run, {"beam_size": 5}).transcribe(files)
    ]
    heard = EncoderDecoderASR.from_hparams(
        source=str(tmp_path / "out"), savedir=str(tmp_path / "kept")
    )
    assert heard.transcribe_file(str(files[0])) == texts[0]
    signal = torch.from_numpy(soundfile.read(files[0], dtype="float32")[0])
    assert find_fires(recognizer, signal).text == texts[0]
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{rate['error_rate']:.2f}" in card.split("\n---\n")[0]


def test_without_a_head_there_is_no_ranking(run, tmp_path):
    yaml = run / "hyperparams.yaml"
    text = re.sub(r"(?m)^ctc_weight: .*", "ctc_weight: 0", yaml.read_text())
    assert text != yaml.read_text()
    yaml.write_text(text)
    for attempt in (
        lambda: call(run, "--split", "valid", "--beam", 5, "--ctc_weight_decode", 1),
        lambda: evaluate.export(
            [str(run), str(tmp_path / "x"), "--ctc_weight_decode=1"]
        ),
    ):
        with pytest.raises(ValueError, match="no CTC head to rank.*ctc_weight 0"):
            attempt()


def test_onnx_has_nothing_to_rank(run, tmp_path, capsys):
    """Asked for, it is refused; what a sweep chose is left out."""
    onnx = [str(run), str(tmp_path / "o"), "--format", "onnx"]
    with pytest.raises(SystemExit):
        evaluate.export([*onnx, "--ctc_weight_decode", "1"])
    assert "ranks a beam of a recogniser" in capsys.readouterr().err
    (run / sweep.FILE).write_text('{"chosen": {"ctc_weight_decode": 0.5, "beam": 1}}')
    evaluate.export([*onnx, "--swept"])
    assert (tmp_path / "o" / "recognizer.json").exists()


def test_a_beam_is_there_to_be_ranked(run, tmp_path):
    """Ten hypotheses unless told, and a sweep of one has nothing to rank."""
    call(run, "--split", "valid", "--ctc_weight_decode", 0.5)
    assert figures(run)["valid_ctc_weight_decode=0.5"]["beam"] == 10
    evaluate.export([str(run), str(tmp_path / "x"), "--ctc_weight_decode", "0.5"])
    assert CIFRecognizer.from_folder(tmp_path / "x").searcher.beam_size == 10
    one = "--tail_threshold 0.4 --ctc_weight_decode"
    call(run, "--sweep", "--beam", 1, *one.split(), 0.2, 0.5)
    assert len(json.loads((run / sweep.FILE).read_text())["table"]) == 2
    with pytest.raises(ValueError, match="beem_size"):
        CIFRecognizer.from_run(run, {"beem_size": 4})
