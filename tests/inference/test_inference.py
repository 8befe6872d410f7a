"""Recordings to transcripts: times, confidences, long files, the command line."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from conftest import pad, speak

from cif_lobes.cif import CIF
from cif_lobes.data.manifest import read_manifest
from cif_lobes.data.tokens import SentencePieceTokenizer
from cif_lobes.decoding.searcher import BeamSearcher
from cif_lobes.inference.command import main
from cif_lobes.inference.export import FireEncoder
from cif_lobes.inference.recognizer import CIFRecognizer
from cif_lobes.inference.windows import cut_at_pauses
from cif_lobes.nets.decoder import CIFDecoder
from cif_lobes.nets.encoder import ConformerEncoder
from cif_lobes.nets.features import LogMel

RATE = 16000


@pytest.fixture(scope="module")
def recognizer(exported):
    return CIFRecognizer.from_export(exported)


def edits(a, b):
    """Edit distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        before, row = row, [i]
        for j, y in enumerate(b, start=1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
    return row[-1]


# --- transcripts ---


def test_run_and_export_transcribe_alike(
    trained, recognizer, utterances, signals, found_by_the_run
):
    """Files and waveforms, whatever the batch, in the order given."""
    files = [file for file, _, _ in utterances]
    alone = recognizer.transcribe(files, batch_seconds=0.1)
    decode = recognizer.tokenizer.decode
    assert [t.text for t in alone] == [decode(ids) for ids in found_by_the_run]
    together = CIFRecognizer.from_run(trained).transcribe(signals)
    for a, b in zip(alone, together, strict=True):
        assert a.text == b.text
        assert a.score == pytest.approx(b.score, abs=1e-3)
        for one, other in zip(a.tokens, b.tokens, strict=True):
            assert one[1:] == pytest.approx(other[1:], abs=1e-3)


def test_times(recognizer, utterances, signals):
    """Tones of 0.24 s after 0.1 s: a fire is nearer to its own end than to another."""
    late, right = [], 0
    for (_, signal, text), found in zip(
        utterances, recognizer.transcribe(signals), strict=True
    ):
        assert "".join(token.token for token in found.tokens) == found.text
        starts = [token.start for token in found.tokens]
        ends = [token.end for token in found.tokens]
        assert starts[1:] == ends[:-1]
        assert 0 <= starts[0] < ends[0] and ends[-1] <= len(signal) / RATE
        if found.text == text:
            right += 1
            late += [end - (0.34 + 0.24 * u) for u, end in enumerate(ends)]
    assert right >= 4
    assert np.abs(late).mean() < 0.12


@pytest.mark.parametrize("beam_size", [1, 4])
def test_confidence_is_the_probability_of_the_token(exported, signals, beam_size):
    """Of each hypothesis, step by step."""
    recognizer = CIFRecognizer.from_export(exported, {"beam_size": beam_size})
    decoder, tokenizer = recognizer.searcher.decoder, recognizer.tokenizer
    for signal, found in zip(
        signals[:3], recognizer.transcribe(signals[:3]), strict=True
    ):
        assert len(found.nbest) == beam_size
        assert found.text == found.nbest[0].text
        scores = [t.score for t in found.nbest]
        assert scores == sorted(scores, reverse=True)
        assert len({t.text for t in found.nbest}) == beam_size
        vectors = recognizer.fire(*pad([signal])).embeddings
        for hypothesis in found.nbest:
            expected, state = [], None
            before, previous = torch.zeros_like(vectors[:, 0]), torch.tensor([1])
            for u, token in enumerate(tokenizer.encode(hypothesis.text)):
                logits, state = decoder.step(vectors[:, u], before, previous, state)
                expected.append(logits.softmax(-1)[0, token].item())
                before, previous = vectors[:, u], torch.tensor([token])
            found_here = [token.confidence for token in hypothesis.tokens]
            assert found_here == pytest.approx(expected, abs=1e-4)


def test_hotwords_are_in_scores_and_not_in_confidences(exported, signals):
    """Of a phrase that is found anyway; a beam and a file of phrases."""
    recognizer = CIFRecognizer.from_export(exported, {"beam_size": 4})
    before = recognizer.transcribe(signals[0])
    recognizer.use_hotwords([before.text], 0.5)
    after = recognizer.transcribe(signals[0])
    assert after.text == before.text
    assert after.score == pytest.approx(before.score + 0.5 * len(before.text), abs=1e-3)
    assert [t[1:] for t in after.tokens] == [t[1:] for t in before.tokens]


def test_nothing_said(recognizer):
    """No fire, no token, one hypothesis."""
    recognizer.fire.cif.threshold, threshold = 1e3, recognizer.fire.cif.threshold
    (found,) = recognizer.transcribe([torch.from_numpy(speak("abcd"))])
    recognizer.fire.cif.threshold = threshold
    assert found[:4] == ("", 0.0, [], []) and len(found.nbest) == 1


def test_no_text_where_nobody_speaks(recognizer, tmp_path, caplog):
    """Silence, noise and a sample have none; what is lost or cancels is reported."""
    noise = 0.1 * torch.randn(3 * RATE)
    nothing = [noise, torch.zeros(RATE), torch.ones(1), torch.rand(500)]
    texts = [t.text for t in recognizer.transcribe(nothing, max_seconds=2)]
    assert texts == [""] * 4
    speech = speak("abcd")
    opposite, broken = tmp_path / "opposite.wav", tmp_path / "broken.wav"
    soundfile.write(opposite, np.stack([speech, -speech], axis=1), RATE)
    soundfile.write(broken, speech, RATE)
    broken.write_bytes(broken.read_bytes()[:-8000])
    errors = []
    found = recognizer.transcribe(
        [opposite, broken], on_error=lambda *what: errors.append(what)
    )
    assert found[0] is None and found[1].text and "it breaks off after" in caplog.text
    assert errors[0][0] == opposite and "--channel 1" in str(errors[0][1])
    alone, left = recognizer.transcribe([torch.from_numpy(speech), opposite], channel=1)
    assert alone.text == left.text


def test_one_recording_gives_one_transcript(recognizer, tmp_path):
    """A file, its path and its waveform, as torch's and as numpy's."""
    signal, path = speak("abcd"), tmp_path / "a.wav"
    soundfile.write(path, signal, RATE, "FLOAT")
    (wanted,) = recognizer.transcribe([path])
    assert wanted.text
    for one in str(path), path, signal, signal.astype(float), torch.from_numpy(signal):
        assert recognizer.transcribe(one) == wanted
    errors = []
    lost = recognizer.transcribe("lost.wav", on_error=lambda *e: errors.append(e))
    assert lost is None and errors[0][0] == "lost.wav"


@pytest.mark.parametrize(
    "signal, message",
    [
        (np.zeros((1, RATE)), r"\[samples\], not \[1, 16000\]"),
        (np.zeros(RATE, "int16"), "not of int16: divide"),
        (np.full(RATE, np.nan), r"sample 0 \(0.00 s\) is NaN or infinite"),
        (torch.zeros(0), "it holds no samples"),
        (torch.tensor(1.0), r"not \[\]"),
    ],
)
def test_what_is_no_waveform(recognizer, signal, message):
    with pytest.raises(ValueError, match=message):
        recognizer.transcribe(signal)
    good = torch.from_numpy(speak("abcd"))
    found = recognizer.transcribe([good, signal], on_error=lambda *_: None)
    assert found[0].text and found[1] is None


def test_windows_are_as_long_as_training_utterances(trained, exported, corpus):
    longest = max(u.duration for u in read_manifest(corpus[0]))
    run, export = CIFRecognizer.from_run(trained), CIFRecognizer.from_export(exported)
    assert run.max_seconds == export.max_seconds == pytest.approx(longest, abs=1e-3)
    signal = torch.from_numpy(speak("abcd" * 8))
    by_default = run.transcribe([signal])
    assert by_default == run.transcribe([signal], max_seconds=run.max_seconds)
    assert by_default != run.transcribe([signal], max_seconds=20)


@pytest.mark.parametrize("rate", [44100, 48000])
def test_any_rate_and_stereo(recognizer, tmp_path, rate):
    text = "abcd"
    mono = speak(text, rate)
    soundfile.write(tmp_path / "a.wav", np.stack([mono, 0 * mono], axis=1), rate)
    plain, stereo = recognizer.transcribe(
        [torch.from_numpy(speak(text)), tmp_path / "a.wav"]
    )
    assert edits(plain.text, text) <= 1
    assert edits(stereo.text, plain.text) <= 1
    assert stereo.tokens[-1].end == pytest.approx(plain.tokens[-1].end, abs=0.1)


def test_batches_are_of_like_durations(recognizer, monkeypatch):
    """Longest first, and no more audio in a batch than asked for, padding included."""
    batches, recognize = [], recognizer._recognize

    def spy(batch):
        batches.append([len(window.signal) / RATE for window in batch])
        return recognize(batch)

    monkeypatch.setattr(recognizer, "_recognize", spy)
    monkeypatch.setattr(recognizer, "_may_be_speech", lambda signal: True)
    seconds = np.random.default_rng(0).permutation(np.linspace(0.3, 1.8, 16))
    noise = [torch.randn(int(s * RATE)) for s in seconds]
    recognizer.transcribe(noise, batch_seconds=4, max_seconds=2)
    lengths = [length for batch in batches for length in batch]
    assert len(lengths) == 16 and lengths == sorted(lengths, reverse=True)
    assert all(len(batch) * max(batch) <= 4 for batch in batches)
    assert len(batches) < 8


# --- long recordings ---


class Babble(BeamSearcher):
    """Finds whatever comes to mind, three times."""

    def nbest(self, vectors, lengths, encoded, x_lengths):
        return [
            [(torch.randint(3, 26, (n,)).tolist(), -1.0 - k) for k in range(3)]
            for n in lengths.tolist()
        ]


@pytest.fixture(scope="module")
def babbler(tmp_path_factory):
    """An English recogniser that has learnt nothing."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("pieces") / "pieces.model"
    texts = ["the cat sat", "the dog sat", "a cat ran to the dog"]
    features = LogMel(n_mels=20)
    encoder = ConformerEncoder(20, 16, 2, 2, 32, 3, pool_after=[1, 2], conv_channels=4)
    cif = CIF(16, tail_threshold=0.0)  # the last token ends with the last frame
    decoder = CIFDecoder(26, 16, 1, 2, 32)
    network = {"features": features, "encoder": encoder, "cif": cif, "decoder": decoder}
    return CIFRecognizer(
        {
            "tokenizer": SentencePieceTokenizer(path, 26, "en").fit(texts),
            "sample_rate": RATE,
            "model": torch.nn.ModuleDict(network),
            "modules": {"encoder": FireEncoder(features, encoder, cif)},
            "searcher": Babble(decoder, beam_size=3),
        }
    )


def test_no_time_before_the_recording(babbler, monkeypatch):
    """Where the first frame's centre is less than half a frame behind its begin."""
    monkeypatch.setattr(babbler, "_may_be_speech", lambda signal: True)
    monkeypatch.setattr(babbler, "clock", babbler.clock._replace(start=-0.01))
    (found,) = babbler.transcribe([torch.randn(2 * RATE)])
    assert found.tokens[0].start == 0.0 < found.tokens[0].end


def test_words_of_pieces(babbler, monkeypatch):
    """A word lasts as long as its pieces and is as probable as all of them."""
    monkeypatch.setattr(babbler, "_may_be_speech", lambda signal: True)
    signal = torch.randn(9 * RATE)
    (found,) = babbler.transcribe([signal], max_seconds=2)
    best = -len(list(cut_at_pauses([signal.numpy()], RATE, 2)))
    assert [t.score for t in found.nbest] == [best, best - 1, best - 1]
    for hypothesis in found.nbest:
        words, tokens = hypothesis.words, hypothesis.tokens
        assert [word.token for word in words] == hypothesis.text.split()
        assert 5 < len(words) < len(tokens)
        assert "<unk>" in hypothesis.text
        starts, ends = [t.start for t in tokens], [t.end for t in tokens]
        assert (np.diff(starts) >= 0).all() and ends[-1] <= 9
        assert np.less_equal(ends[:-1], np.add(starts[1:], 1e-6)).all()
        rest = [token for token in tokens if token.token]
        for word in words:
            pieces = [rest.pop(0)]
            while len("".join(piece.token for piece in pieces)) < len(word.token):
                pieces.append(rest.pop(0))
            assert "".join(piece.token for piece in pieces) == word.token
            assert word.start == pieces[0].start and word.end == pieces[-1].end
            product = np.prod([piece.confidence for piece in pieces])
            assert word.confidence == pytest.approx(product)


# --- a voice activity detector ---


def test_command_line(exported, utterances, tmp_path, capsys):
    """Order as given; what cannot be read is named and skipped, and is not forgotten."""
    files = [file for file, _, _ in utterances][:4]
    broken, empty = tmp_path / "broken.wav", tmp_path / "empty.wav"
    broken.write_bytes(b"RIFF, but no more")
    soundfile.write(empty, np.zeros(0, "float32"), RATE)
    cut = tmp_path / "cut.flac"
    cut.write_bytes(open(files[0], "rb").read()[:-2000])
    given = [files[2], broken, files[0], tmp_path / "missing.wav", empty, cut, files[1]]
    with pytest.raises(SystemExit) as stop:
        main([str(exported), *map(str, given)])
    assert stop.value.code == "4 of 7 files could not be read"
    out, err = capsys.readouterr()
    rows = [line.split("\t") for line in out.splitlines()]
    assert [file for file, _ in rows] == [str(files[i]) for i in (2, 0, 1)]
    skipped = [line for line in err.splitlines() if line.startswith("skipped ")]
    for file in (broken, tmp_path / "missing.wav", empty, cut):
        assert any(line.startswith(f"skipped {file}: ") for line in skipped)
    assert f"skipped {tmp_path / 'missing.wav'}: no such file" in skipped

    main([str(exported), *map(str, files), "--format", "json", "--beam", "3"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    recognizer = CIFRecognizer.from_export(exported, {"beam_size": 3})
    for row, found in zip(rows, recognizer.transcribe(files), strict=True):
        assert row["text"] == found.text
        assert [t["token"] for t in row["tokens"]] == list(found.text)
        assert [t["text"] for t in row["nbest"]] == [t.text for t in found.nbest]


def test_hotwords_of_the_command_line(exported, utterances, tmp_path, capsys):
    hotwords = tmp_path / "names.txt"
    hotwords.write_text("caca\n")
    files = [str(file) for file, _, _ in utterances][:3]
    options = ["--hotwords", str(hotwords), "--hotword_weight", "8"]
    main([str(exported), *files, *options])
    said = capsys.readouterr().out.splitlines()
    assert all("caca" in line.split("\t")[1] for line in said) and len(said) == 3
    hotwords.unlink()
    with pytest.raises(FileNotFoundError, match="names.txt: no such file"):
        main([str(exported), *files, *options])


def test_command_line_refuses(trained, tmp_path, capsys):
    """In one line or two, not with all the options there are."""
    for arguments, message in (
        ([trained, "a.wav", "b.wav", "--format", "srt"], "srt is for one file, got 2"),
        ([trained, "a.wav", "--max_seconds", "0.5"], "--max_seconds 0.5: at least 1"),
        ([trained, "a.wav", "--channle", "1"], "did you mean --channel?"),
        ([trained, "a.wav", "--format", "doc"], "invalid choice: 'doc'"),
        ([trained], "give files, or --microphone"),
        ([trained, "a.wav", "--microphone"], "give files, or --microphone"),
        ([trained, "a.wav", "--format", "all"], "--format all needs --output_dir"),
        (
            [trained, "-", "--stream", "--format", "srt"],
            "--stream prints text: no --fo",
        ),
        (
            [trained, "a.wav", "--stream", "--vad"],
            "--stream is greedy and has no windows",
        ),
        ([trained, "a.wav", "--threads", "2"], "--threads is for an ONNX export"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr().err
        assert stop.value.code == 2
        assert message in said and "usage" not in said and said.count("\n") <= 2
    other = tmp_path / "lm"
    (other / "save").mkdir(parents=True)
    (other / "hyperparams.yaml").write_text("modules: {lm: 1}\n")
    with pytest.raises(FileNotFoundError, match="no hyperparams.yaml"):
        main([str(tmp_path), "a.wav"])
    with pytest.raises(ValueError, match="no run of a CIF recogniser: it trained lm"):
        main([str(other), "a.wav"])


def test_no_training_code_is_imported(trained, utterances):
    """Neither by the import nor by recognising; nor a teacher, nor its cache."""
    code = """
import sys
from cif_lobes.inference.recognizer import CIFRecognizer
recognizer = CIFRecognizer.from_run(sys.argv[1])
assert recognizer.transcribe(sys.argv[2:])[0].text
unwanted = {"transformers", "h5py", "matplotlib"}
folders = ("runs", "training", "losses", "teachers", "cache")
unwanted |= {f"cif_lobes.{folder}" for folder in folders}
unwanted.add("cif_lobes.data.validation")
print(sorted(unwanted & {*sys.modules}))
"""
    command = [sys.executable, "-c", code, str(trained), str(utterances[0][0])]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
