"""The ONNX export of a trained run against the run itself."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from conftest import speak
from speechbrain.processing.features import STFT

from cif_lobes.data.batches import read_audio
from cif_lobes.data.manifest import read_manifest
from cif_lobes.data.tokens import (
    SPACE,
    CharTokenizer,
    SentencePieceTokenizer,
    WordTokenizer,
)
from cif_lobes.inference.command import main
from cif_lobes.inference.export import open_run
from cif_lobes.inference.onnx import OnnxRecognizer
from cif_lobes.inference.onnx_export import ConvSTFT, export_onnx
from cif_lobes.inference.recognizer import CIFRecognizer
from cif_lobes.inference.stream import StreamingRecognizer

RATE = 16000


@pytest.fixture(scope="module")
def onnx(exported_onnx):
    return OnnxRecognizer(exported_onnx)


@pytest.fixture(scope="module")
def recognizer(trained):
    return CIFRecognizer.from_run(trained)


def test_same_transcripts(corpus, onnx, recognizer):
    """Of durations that the graph was not traced with: text, times, confidences."""
    files = [u.wav for u in read_manifest(corpus[1])]
    assert len({len(read_audio(file, RATE)) for file in files}) >= 3
    expected = recognizer.transcribe(files)
    for file, wanted in zip(files, expected, strict=True):
        found = onnx.transcribe(file)
        assert found.text == wanted.text
        assert found.score == pytest.approx(wanted.score, abs=1e-3)
        for one, other in zip(found.tokens, wanted.tokens, strict=True):
            assert one.token == other.token
            assert one[1:] == pytest.approx(other[1:], abs=1e-3)
    assert len({t.text for t in expected}) > 5  # or nothing has been shown


@pytest.mark.parametrize("samples", [1, 399, 1600, 16001, 5 * RATE])
def test_any_length(onnx, recognizer, samples):
    """Down to one sample, which is shorter than what one encoder frame reads."""
    signal = torch.from_numpy(speak("abcd" * 6, seed=3))[:samples]
    with torch.no_grad():
        wanted = recognizer.fire(signal[None], torch.ones(1))
    embeddings, boundaries = onnx.encoder.run(None, {"signal": signal[None].numpy()})
    assert embeddings.shape == tuple(wanted.embeddings.shape)
    np.testing.assert_allclose(embeddings, wanted.embeddings, atol=1e-3)
    np.testing.assert_allclose(boundaries, wanted.boundaries, atol=1e-3)
    (whole,) = recognizer.transcribe([signal], max_seconds=5)
    assert onnx.transcribe(signal.numpy(), max_seconds=5).text == whole.text


def test_long_recording(onnx, recognizer, tmp_path, caplog):
    """The windows of the torch recogniser, joined as it joins them."""
    texts = ["abcda", "dcabc", "bdbac", "cabdd"]
    signal = np.concatenate([speak(t, seed=i) for i, t in enumerate(texts)])
    soundfile.write(tmp_path / "long.flac", signal, RATE, "PCM_24")
    assert onnx.max_seconds == recognizer.max_seconds < len(signal) / RATE
    found = onnx.transcribe(tmp_path / "long.flac")
    wanted = recognizer.transcribe(tmp_path / "long.flac")
    assert len(found.text) > 12 and found.text == wanted.text
    assert found.score == pytest.approx(wanted.score, abs=1e-2)
    for one, other in zip(found.tokens, wanted.tokens, strict=True):
        assert one[1:] == pytest.approx(other[1:], abs=2e-3)
    # With the spaces of another language, words do not grow together.
    onnx.space = " "
    parted = onnx.transcribe(tmp_path / "long.flac").text
    onnx.space = ""
    assert parted.replace(" ", "") == found.text and parted.count(" ") >= 3


def test_a_list_gives_a_list(onnx, tmp_path):
    signal = speak("abcd")
    one = onnx.transcribe(signal)
    assert one.text and onnx.transcribe([signal, torch.from_numpy(signal)]) == [one] * 2
    errors = []
    found = onnx.transcribe(
        [signal, "lost.wav"], on_error=lambda *e: errors.append(e[0])
    )
    assert found == [one, None] and errors == ["lost.wav"]
    with pytest.raises(ValueError, match="max_seconds is 0.5, must be at least 1"):
        onnx.transcribe(signal, max_seconds=0.5)


@pytest.mark.parametrize(
    "hotwords, weight, least, most",
    [
        ([("dddd", 1.0), ("caca", 2.0), ("bb", 1.0)], 0.0, 0, 0),
        ([("dddd", 1.0), ("caca", 2.0), ("bb", 1.0)], 2.0, 4, 12),
        (["adbc", "ccab", "dbca"], 0.2, 0, 1),  # nobody says these
    ],
)
def test_hotwords(corpus, onnx, recognizer, hotwords, weight, least, most):
    """Those of the torch recogniser, in a batch as alone; scores have the weights."""
    files = [u.wav for u in read_manifest(corpus[1])]
    plain = [t.text for t in recognizer.transcribe(files)]
    recognizer.use_hotwords(hotwords, weight)
    onnx.use_hotwords(hotwords, weight)
    wanted = recognizer.transcribe(files)
    for file, transcript in zip(files, wanted, strict=True):
        (alone,) = recognizer.transcribe([file])
        assert alone.text == transcript.text
        found = onnx.transcribe(file)
        assert found.text == transcript.text
        assert found.score == pytest.approx(transcript.score, abs=1e-3)
        for one, other in zip(found.tokens, transcript.tokens, strict=True):
            assert one[1:] == pytest.approx(other[1:], abs=1e-3)
    changed = sum(a != b.text for a, b in zip(plain, wanted, strict=True))
    assert least <= changed <= most
    for one in (recognizer, onnx):
        one.use_hotwords(None)
        assert [t.text for t in one.transcribe(files)] == plain


def test_hotwords_of_an_export_without_tokenizer(onnx):
    with_one = onnx.settings
    onnx.settings = {k: v for k, v in with_one.items() if k != "tokenizer"}
    with pytest.raises(ValueError, match="has no tokenizer.*export the run again"):
        onnx.use_hotwords(["ab"])
    onnx.settings = with_one


def test_nothing_said(onnx):
    """No vector, no step."""
    assert onnx._search(np.zeros((1, 0, 32), np.float32)) == []


def test_stft_as_a_convolution():
    stft, signal = STFT(sample_rate=RATE), torch.randn(2, 4000)
    torch.testing.assert_close(
        ConvSTFT(stft)(signal), stft(signal), atol=1e-4, rtol=1e-4
    )


def test_no_pytorch(exported_onnx, corpus, tmp_path):
    """Neither it nor SpeechBrain can be imported, and still: from wav to text."""
    (tmp_path / "names.txt").write_text("caca\nxyz\n")
    code = """
import sys
sys.modules["torch"] = sys.modules["speechbrain"] = None
from cif_lobes.inference.command import main
main(sys.argv[1:])
"""
    file = read_manifest(corpus[1])[0].wav
    command = [sys.executable, "-c", code, str(exported_onnx), str(file)]
    command += ["--hotwords", str(tmp_path / "names.txt"), "--hotword_weight", "8"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 of 2 phrases cannot be written" in done.stderr
    onnx = OnnxRecognizer(exported_onnx)
    onnx.use_hotwords(["caca"], 8)
    found = onnx.transcribe(file).text
    assert "caca" in found and done.stdout == f"{file}\t{found}\n"


def test_command_line(exported_onnx, tmp_path, capsys):
    """Another rate, two channels, json."""
    mono = speak("abcd", 44100)
    soundfile.write(tmp_path / "a.wav", np.stack([mono, mono], axis=1), 44100)
    main([str(exported_onnx), str(tmp_path / "a.wav"), "--format", "json"])
    found = json.loads(capsys.readouterr().out)
    plain = OnnxRecognizer(exported_onnx).transcribe(speak("abcd"))
    assert found["text"] == plain.text
    with pytest.raises(FileNotFoundError, match="evaluate.py export RUN"):
        OnnxRecognizer(tmp_path)
    for option in ("--beam 2", "--device cpu", "--stream"):
        with pytest.raises(SystemExit):
            main([str(exported_onnx), "a.wav", *option.split()])
        assert f"{option[:6]}" in (said := capsys.readouterr().err)
        assert "is not for an ONNX export, which is greedy" in said


def test_export_refuses(trained, exported_onnx, tmp_path):
    with pytest.raises(FileExistsError, match="not empty"):
        export_onnx(trained, exported_onnx)
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        export_onnx(tmp_path, tmp_path / "out")


def test_networks_without_a_graph_are_refused_before_anything_is_written(
    trained, tmp_path, monkeypatch
):
    hparams = open_run(trained)
    hparams["decoder"].autoregressive = False
    monkeypatch.setattr(
        "cif_lobes.inference.onnx_export.open_run", lambda *_, **__: hparams
    )
    with pytest.raises(ValueError, match="a BERTDecoder or autoregressive: False"):
        export_onnx(trained, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="waits for the end of the utterance"):
        StreamingRecognizer(hparams)


class Moody(torch.nn.Module):
    """What it does depends on what it hears, which is no graph."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.hop, self.centre = encoder, encoder.hop, encoder.centre

    def forward(self, x, x_lengths):
        return self.encoder(x if x.sum() > 0 else -x, x_lengths)


def test_an_encoder_that_is_no_graph_is_refused(trained, tmp_path, monkeypatch):
    hparams = open_run(trained)
    fire = hparams["modules"]["encoder"]
    fire.encoder = Moody(fire.encoder)
    monkeypatch.setattr("cif_lobes.inference.onnx_export.open_run", lambda *_: hparams)
    with pytest.raises(
        ValueError,
        match="write LogMel and Moody and CIF as one graph.*guard on data-dep",
    ):
        export_onnx(trained, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_that_cannot_be_read_are_skipped(exported_onnx, tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", speak("abcd"), 16000)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, "float32"), 16000)
    (tmp_path / "broken.wav").write_bytes(b"RIFF, but no more")
    files = [str(tmp_path / f"{n}.wav") for n in ("broken", "missing", "empty", "a")]
    with pytest.raises(SystemExit, match="3 of 4 files could not be read"):
        main([str(exported_onnx), *files])
    out, err = capsys.readouterr()
    assert out.startswith(f"{files[3]}\t") and out.count("\n") == 1
    for file in files[:3]:
        assert f"skipped {file}: " in err
    with pytest.raises(SystemExit):
        main([str(exported_onnx), *files, "--format", "srt"])
    assert "srt is for one file" in capsys.readouterr().err


def test_pieces_spell_what_decode_does(onnx, tmp_path):
    """Words of SentencePiece units, characters; symbols that nothing uses."""
    texts = ["the cat sat", "the dog sat", "a cat ran to the dog"]
    onnx_settings = onnx.settings
    for tokenizer in (
        SentencePieceTokenizer(tmp_path / "pieces.model", 26, "en").fit(texts),
        WordTokenizer(tmp_path / "words.txt", 12, "en").fit(texts),
        CharTokenizer(tmp_path / "chars.txt", 30, "en").fit(texts),
    ):
        pieces = tokenizer.pieces()
        assert len(pieces) == tokenizer.vocab_size
        onnx.settings = {"tokens": pieces}
        for text in texts:
            assert onnx._text(tokenizer.encode(text)) == text
        is_marked = any(piece.startswith(SPACE) for piece in pieces)
        assert is_marked != isinstance(tokenizer, CharTokenizer)
    onnx.settings = onnx_settings
