"""A run of train_llm.py and its export, as recognisers."""

import json
import shutil

import pytest
import torch
from tiny_llm import make_llm
from tiny_llm_run import make_llm_run

from cif_lobes.commands import evaluate
from cif_lobes.data.tokens import CharTokenizer
from cif_lobes.inference.command import main as transcribe
from cif_lobes.inference.folders import open_folder, open_recognizer
from cif_lobes.inference.recognizer import CIFRecognizer
from cif_lobes.inference.serve.worker import Worker, find_stream
from cif_lobes.inference.speech_llm import find_times, spell
from cif_lobes.inference.stream import StreamingRecognizer
from cif_lobes.inference.transcript import Token
from cif_lobes.nets.speech_llm import Written


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return make_llm(tmp_path_factory.mktemp("llm"), "llama")


@pytest.fixture(scope="module")
def run(corpus, trained, llm, tmp_path_factory):
    """Adapter and LoRA of random weights."""
    folder = tmp_path_factory.mktemp("llm_run") / "run"
    make_llm_run(folder, trained, llm, corpus, lora_rank=2)
    return folder


@pytest.fixture(scope="module")
def export(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llm_export") / "my_llm"
    evaluate.export([str(run), str(folder)])
    return folder


def test_a_run_and_its_export_write_what_is_scored(run, export, corpus, utterances):
    """The texts of evaluate.py, by both folders, with the recogniser's times."""
    files = [file for file, _, _ in utterances]
    found = CIFRecognizer.from_folder(run).transcribe(files)
    assert CIFRecognizer.from_folder(export).transcribe(files) == found
    assert any(transcript.text for transcript in found)
    evaluate.main(evaluate.parse_arguments([str(run), "--split", "valid"]))
    figures = json.loads((run / "run.json").read_text())["results"]["valid"]
    assert figures["beam"] == 2
    wrong = 0
    for transcript, (_, _, text) in zip(found, utterances, strict=True):
        wrong += _distance(text, transcript.text)
        assert transcript.text == "".join(t.token for t in transcript.words)
        assert transcript.nbest[0].text == transcript.text
        assert len(transcript.nbest) == 2
        assert all(0 <= t.confidence <= 1 for t in transcript.words)
        times = [x for t in transcript.words for x in (t.start, t.end)]
        assert times == sorted(times)
    assert wrong == errors_of(figures)
    # Greedily, in both.
    evaluate.main(
        evaluate.parse_arguments([str(run), "--split", "valid", "--beam", "1"])
    )
    results = json.loads((run / "run.json").read_text())["results"]
    greedy = CIFRecognizer.from_folder(export, {"beam_size": 1}).transcribe(files)
    assert errors_of(results["valid_beam=1"]) == sum(
        _distance(text, t.text)
        for t, (_, _, text) in zip(greedy, utterances, strict=True)
    )


def errors_of(figures):
    return sum(figures[n] for n in ("substitutions", "deletions", "insertions"))


def _distance(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def test_an_export_names_the_model_and_holds_it_not(export, llm, run):
    files = {path.name for path in export.iterdir()}
    assert files == {
        "hyperparams.yaml",
        "adapter.safetensors",
        "llm.json",
        "recognizer",
        "README.md",
    }
    assert (export / "adapter.safetensors").stat().st_size < 50_000
    note = json.loads((export / "llm.json").read_text())
    assert note == json.loads((run / "llm.json").read_text())
    assert set(note) == {
        "prompt",
        "prompt in its template",
        "chat",
        "end",
        "width",
        "tokenizer",
        "weights",
        "recognizer",
        "lora",
    }
    card = (export / "README.md").read_text()
    assert llm in card and note["weights"] in card
    CIFRecognizer.from_export(export / "recognizer")  # whole by itself
    moved = shutil.copytree(llm, export.parent / "moved")
    assert open_folder(export, {"llm": str(moved)})["writer"].beam_size == 2


def test_what_is_not_the_same_is_refused(run, export, tmp_path, corpus, exported, llm):
    other = make_llm(tmp_path / "other", "llama", seed=2)
    for folder in (run, export):
        with pytest.raises(ValueError, match="trained with weights other than"):
            open_folder(folder, {"llm": other})
        with pytest.raises(ValueError, match="none: neither a folder"):
            open_folder(folder, {"llm": str(tmp_path / "none")})
    copy = shutil.copytree(export, tmp_path / "copy")
    path = copy / "recognizer/model.safetensors"
    from safetensors.torch import load_file, save_file

    weights = load_file(path)
    weights["cif.linear.bias"] += 1
    save_file(weights, path)
    with pytest.raises(ValueError, match="trained with recognizer other than"):
        open_folder(copy)
    with pytest.raises(SystemExit, match="--hotwords is for a recogniser"):
        words = [str(run), "--hotwords", "names.txt"]
        evaluate.main(evaluate.parse_arguments(words))
    with pytest.raises(
        ValueError, match="--tail_threshold is not for a language model"
    ):
        evaluate.export([str(run), str(tmp_path / "a"), "--tail_threshold", "0.3"])
    with pytest.raises(SystemExit):
        evaluate.export([str(run), str(tmp_path / "b"), "--format", "onnx"])
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_it_is_served_and_transcribed_and_not_streamed(export, utterances, capsys):
    file, _, _ = utterances[0]
    recognizer, hparams = open_recognizer(export, beam=1)
    assert find_stream(hparams, "cpu") is None
    worker = Worker(recognizer)
    served = worker.transcribe(str(file)).result()
    with pytest.raises(ValueError, match="hotwords are for the search of a recogniser"):
        worker.transcribe(str(file), ["ab"]).result()
    worker.close()
    transcribe([str(export), str(file), "--beam", "1", "--format", "json"])
    row = json.loads(capsys.readouterr().out)
    assert row["text"] == served.text
    assert [w["token"] for w in row["words"]] == [w.token for w in served.words]
    with pytest.raises(ValueError, match="a stream has no end"):
        StreamingRecognizer.from_folder(export)


def test_silence_has_no_text(export):
    recognizer = CIFRecognizer.from_folder(export)
    assert recognizer.transcribe(torch.zeros(16000)).text == ""


def test_words_have_the_probability_of_their_pieces(tmp_path):
    """Pieces that are in two words, and one that ends within a character."""
    pieces = {3: "a", 4: "b c", 5: " d", 2: ""}
    tokenizer = CharTokenizer(tmp_path / "x.txt", 9, "en")
    half = torch.tensor(0.5).log().item()

    def decode(ids):
        return "".join(pieces[i] for i in ids)

    found = spell(decode, Written([3, 4, 5, 2], [half] * 4), tokenizer)
    assert [word for word, _ in found] == ["ab", "c", "d"]
    assert [c for _, c in found] == pytest.approx([0.25, 0.5, 0.5])
    texts = ["\ufffd", "\u4f60", "\u4f60\u597d"]
    tokenizer = CharTokenizer(tmp_path / "y.txt", 9, "zh")
    found = spell(
        lambda ids: texts[len(ids) - 1], Written([3, 4, 5], [half] * 3), tokenizer
    )
    assert [word for word, _ in found] == ["\u4f60", "\u597d"]
    assert [c for _, c in found] == pytest.approx([0.25, 0.5])
    assert spell(lambda ids: "", Written([], []), tokenizer) == []


def test_times_come_from_like_words():
    heard = [
        Token(w, i, i + 1.0, 1.0) for i, w in enumerate("the cat sad hear".split())
    ]
    there = find_times("the cat sat on the mat here".split(), heard)
    assert there[:2] == [(0, 1.0), (1, 2.0)]
    assert there[2] == (2, pytest.approx(2.4)) and there[-1][1] == pytest.approx(4.0)
    assert find_times(["a", "the"], heard[:1]) == [(0, 0), (0, 1.0)]
    assert find_times(["the"], heard) == [(0, 1.0)]
    assert find_times(["a", "b"], [], 3.0) == [(3.0, 3.0), (3.0, 3.0)]
