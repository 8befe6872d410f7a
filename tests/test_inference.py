"""Recognisers of a trained run and of its export: as the run itself, and SpeechBrain."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from conftest import speak
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.inference.ASR import EncoderDecoderASR

from cif_lobes.cif import CIF
from cif_lobes.dataio import read_audio
from cif_lobes.decoder import CIFDecoder
from cif_lobes.encoder import ConformerEncoder
from cif_lobes.export import NETWORK, FireEncoder, export_run, open_run
from cif_lobes.features import LogMel
from cif_lobes.inference import CIFRecognizer, main, split_at_pauses
from cif_lobes.manifest import read_manifest
from cif_lobes.searcher import BeamSearcher
from cif_lobes.tokens import SentencePieceTokenizer
from cif_lobes.transcript import Token, Transcript, as_ctm, as_srt

RATE = 16000


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "tones"
    export_run(trained, folder)
    return folder


@pytest.fixture(scope="module")
def recognizer(exported):
    return CIFRecognizer.from_export(exported)


@pytest.fixture(scope="module")
def utterances(corpus):
    """Validation utterances: file, waveform, text."""
    rows = read_manifest(corpus[1])
    return [(u.wav, read_audio(u.wav, RATE), u.wrd) for u in rows]


@pytest.fixture(scope="module")
def signals(utterances):
    return [signal for _, signal, _ in utterances]


@pytest.fixture(scope="module")
def found_by_the_run(trained, signals):
    """Token ids that the training code's own searcher finds."""
    from speechbrain import Stage

    from cif_lobes.experiment import load_run

    brain, _ = load_run(trained)
    brain.on_evaluate_start()
    brain.modules.eval()
    batch = PaddedBatch([{"signal": signal} for signal in signals])
    with torch.no_grad():
        return brain.transcribe(*brain.encode(batch, Stage.TEST))[0]


def pad(signals, value=0.0):
    """Batch and relative lengths, as SpeechBrain wants them."""
    lengths = torch.tensor([len(signal) for signal in signals])
    waves = torch.nn.utils.rnn.pad_sequence(signals, True, value)
    return waves, lengths / waves.shape[1]


def edits(a, b):
    """Edit distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        before, row = row, [i]
        for j, y in enumerate(b, start=1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
    return row[-1]


# --- export ---


def test_speechbrain_transcribes_as_the_run(
    exported, utterances, signals, found_by_the_run, tmp_path
):
    """Files alone, and a batch; through the links that SpeechBrain makes in savedir."""
    savedir = tmp_path / "saved"
    asr = EncoderDecoderASR.from_hparams(source=str(exported), savedir=str(savedir))
    assert (savedir / "model.ckpt").is_symlink()
    texts, tokens = asr.transcribe_batch(*pad(signals))
    assert tokens == found_by_the_run
    assert texts == [asr.tokenizer.decode(ids) for ids in found_by_the_run]
    assert texts == [asr.transcribe_file(str(file)) for file, _, _ in utterances]
    assert len(set(texts)) > 5  # or nothing has been shown


def test_padding_is_not_read(exported, signals):
    asr = EncoderDecoderASR.from_hparams(source=str(exported))
    zeros, other = (asr.encode_batch(*pad(signals, value)) for value in (0.0, 0.5))
    assert zeros.lengths.sum() > 20
    torch.testing.assert_close(other, zeros)


def test_export_can_be_moved_and_overridden(exported, signals, tmp_path):
    moved = shutil.copytree(exported, tmp_path / "elsewhere" / "model")
    overrides = {"beam_size": 4, "tail_threshold": 0.9}
    asr = EncoderDecoderASR.from_hparams(source=str(moved), overrides=overrides)
    assert asr.tokenizer.path.parent == moved
    assert asr.mods.encoder.cif.tail_threshold == 0.9
    recognizer = CIFRecognizer.from_export(moved, overrides)
    texts, _ = asr.transcribe_batch(*pad(signals))
    assert texts == [t.text for t in recognizer.transcribe(signals)]
    assert len(recognizer.transcribe(signals[:1])[0].nbest) == 4


def test_export_holds_the_recogniser_only(trained, exported):
    names = {"hyperparams.yaml", "model.ckpt", "tokenizer.ckpt"}
    assert {path.name for path in exported.iterdir()} == names
    parameters = torch.load(exported / "model.ckpt")
    assert {name.split(".")[0] for name in parameters} <= set(NETWORK)
    settings = (exported / "hyperparams.yaml").read_text()
    for word in (
        str(trained),
        "ctc_head",
        "checkpointer",
        "optimizer",
        "augment",
        "seed",
    ):
        assert word not in settings


def test_export_averages_the_checkpoints_asked_for(trained, exported, tmp_path):
    name = "decoder.project_out.weight"
    folders = sorted(
        (f for f in trained.glob("save/CKPT*") if "error_rate" in _meta(f)),
        key=lambda f: int(_meta(f).split("epoch: ")[1].split()[0]),
    )
    last, before = (torch.load(f / "model.ckpt")[name] for f in folders[:-3:-1])
    assert not torch.equal(last, before)
    average = torch.load(exported / "model.ckpt")[name]
    torch.testing.assert_close(average, (last + before) / 2)
    export_run(trained, tmp_path / "last", num_checkpoints=1)
    assert torch.equal(torch.load(tmp_path / "last/model.ckpt")[name], last)


def _meta(folder):
    return (folder / "CKPT.yaml").read_text().replace("end-of-epoch: ", "")


def test_loading_a_run_does_not_seed(trained):
    """The whole yaml would: what is drawn afterwards would always be the same."""

    def draw(seed):
        torch.manual_seed(seed)
        open_run(trained)
        return torch.rand(1)

    assert draw(1) != draw(2)


def test_export_refuses(trained, exported, tmp_path):
    with pytest.raises(
        FileNotFoundError, match="not a run folder: no hyperparams.yaml"
    ):
        export_run(tmp_path, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="not a run folder: no save"):
        export_run(exported, tmp_path / "out")
    with pytest.raises(FileExistsError, match="not empty"):
        export_run(trained, exported)
    with pytest.raises(FileNotFoundError, match="evaluate.py export RUN"):
        CIFRecognizer.from_export(trained)
    run = shutil.copytree(trained, tmp_path / "run")
    for checkpoint in run.glob("save/CKPT*"):
        shutil.rmtree(checkpoint)
    with pytest.raises(FileNotFoundError, match="no checkpoint of a whole epoch"):
        open_run(run)
    yaml = (run / "hyperparams.yaml").read_text()
    yaml = yaml.replace("GreedySearcher\n", "BeamSearcher\n  scorer: [1]\n")
    (run / "hyperparams.yaml").write_text(yaml)
    with pytest.raises(ValueError, match="has a scorer"):
        open_run(run)


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


def test_nothing_said(recognizer):
    """No fire, no token, one hypothesis."""
    recognizer.fire.cif.threshold, threshold = 1e3, recognizer.fire.cif.threshold
    (found,) = recognizer.transcribe([torch.randn(RATE)])
    recognizer.fire.cif.threshold = threshold
    assert found[:4] == ("", 0.0, [], []) and len(found.nbest) == 1


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
    seconds = np.random.default_rng(0).permutation(np.linspace(0.3, 1.8, 16))
    noise = [torch.randn(int(s * RATE)) for s in seconds]
    recognizer.transcribe(noise, batch_seconds=4)
    lengths = [length for batch in batches for length in batch]
    assert len(lengths) == 16 and lengths == sorted(lengths, reverse=True)
    assert all(len(batch) * max(batch) <= 4 for batch in batches)
    assert len(batches) < 8


# --- long recordings ---


def concatenate(texts):
    """Waveform, and where each utterance begins, in samples."""
    parts = [torch.from_numpy(speak(t, seed=i)) for i, t in enumerate(texts)]
    return torch.cat(parts), np.cumsum([0, *(len(part) for part in parts)])


def test_split_at_pauses():
    """All of the signal once, and every cut within the silence of a seam."""
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcd"), rng.integers(2, 6))) for _ in range(40)]
    signal, seams = concatenate(texts)
    windows = split_at_pauses(signal, RATE, max_seconds=5)
    assert torch.equal(torch.cat(windows), signal)
    lengths = [len(window) / RATE for window in windows]
    assert 5 / 3 - 0.01 <= min(lengths) and max(lengths) <= 5
    cuts = np.cumsum([len(window) for window in windows])[:-1]
    assert len(cuts) >= 8
    distances = np.abs(cuts[:, None] - seams[None]).min(1) / RATE
    assert distances.max() < 0.05


def test_short_recordings_are_not_split():
    signal = torch.randn(2 * RATE)
    assert split_at_pauses(signal, RATE, 2) == [signal]


@pytest.mark.parametrize("beam_size", [1, 3])
def test_long_recording(exported, tmp_path, beam_size):
    """Four utterances in one file: as each alone, with times from its beginning."""
    recognizer = CIFRecognizer.from_export(exported, {"beam_size": beam_size})
    signal, seams = concatenate(["abcda", "dcabc", "bdbac", "cabdd"])
    soundfile.write(tmp_path / "long.flac", signal.numpy(), RATE, "PCM_24")
    (found,) = recognizer.transcribe([tmp_path / "long.flac"], max_seconds=1.6)

    windows = split_at_pauses(read_audio(tmp_path / "long.flac", RATE), RATE, 1.6)
    assert len(windows) == 4
    parts = recognizer.transcribe(windows)
    assert found.text == "".join(part.text for part in parts)
    assert found.score == pytest.approx(sum(part.score for part in parts), abs=1e-3)
    starts = np.cumsum([0, *(len(window) / RATE for window in windows[:-1])])
    expected = [
        (token.start + start, token.end + start)
        for part, start in zip(parts, starts, strict=True)
        for token in part.tokens
    ]
    times = [(token.start, token.end) for token in found.tokens]
    assert np.allclose(times, expected, atol=1e-3)
    assert len(found.nbest) == beam_size
    assert len({t.text for t in found.nbest}) == beam_size

    apart = recognizer.transcribe(
        [signal[a:b] for a, b in zip(seams[:-1], seams[1:], strict=True)]
    )
    assert edits(found.text, "".join(t.text for t in apart)) <= 2


class Babble(BeamSearcher):
    """Finds whatever comes to mind, three times."""

    def nbest(self, vectors, lengths):
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


def test_words_of_pieces(babbler):
    """A word lasts as long as its pieces and is as probable as all of them."""
    signal = torch.randn(9 * RATE)
    (found,) = babbler.transcribe([signal], max_seconds=2)
    best = -len(split_at_pauses(signal, RATE, 2))
    assert [t.score for t in found.nbest] == [best, best - 1, best - 1]
    for hypothesis in found.nbest:
        words, tokens = hypothesis.words, hypothesis.tokens
        assert [word.token for word in words] == hypothesis.text.split()
        assert 5 < len(words) < len(tokens)
        assert "<unk>" in hypothesis.text
        starts, ends = [t.start for t in tokens], [t.end for t in tokens]
        assert (np.diff(starts) > 0).all() and ends[-1] <= 9
        assert np.less_equal(ends[:-1], np.add(starts[1:], 1e-6)).all()
        rest = [token for token in tokens if token.token]
        for word in words:
            pieces = [t for t in rest if word.start <= t.start and t.end <= word.end]
            assert "".join(piece.token for piece in pieces) == word.token
            assert word.start == pieces[0].start and word.end == pieces[-1].end
            product = np.prod([piece.confidence for piece in pieces])
            assert word.confidence == pytest.approx(product)


# --- command line ---


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


def test_command_line_refuses(trained, tmp_path, capsys):
    for arguments, message in (
        ([tmp_path, "a.wav"], "is not a run folder: no hyperparams.yaml"),
        ([trained, "a.wav", "b.wav", "--format", "srt"], "srt is for one file, got 2"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


WORDS = [
    Token("so", 0.0, 2.5, 0.9),
    Token("it", 2.5, 2.75, 0.81),
    Token("is", 2.75, 6.25, 0.5),
    Token("done", 6.375, 6.5, 1.0),
]
SPOKEN = Transcript("so it is done", -1.0, [], WORDS)


def test_ctm():
    assert as_ctm("a/my talk.wav", SPOKEN).splitlines()[1] == (
        "my_talk 1 2.500 0.250 it 0.8100"
    )


def test_srt():
    """The pauses before "so" and "is" are in their spans, but in no subtitle."""
    assert as_srt("a.wav", SPOKEN) == (
        "1\n00:00:01,500 --> 00:00:02,750\nso it\n\n"
        "2\n00:00:05,250 --> 00:00:06,500\nis done\n\n"
    )
    hour = [Token("好", 3601.0, 3601.5, 1.0), Token("的", 3601.5, 3602.25, 1.0)]
    assert as_srt("a.wav", Transcript("好的", 0.0, hour, hour)) == (
        "1\n01:00:01,000 --> 01:00:02,250\n好的\n\n"
    )
    steady = [Token("a", 0.5 * i, 0.5 * i + 0.5, 1.0) for i in range(21)]
    cues = as_srt("a.wav", Transcript("a a", 0.0, [], steady)).split("\n\n")
    assert [cue.count("a") for cue in cues] == [10, 10, 1, 0]


def test_no_training_code_is_imported(trained, utterances):
    """Neither by the import nor by recognising; nor a teacher, nor its cache."""
    code = """
import sys
from cif_lobes.inference import CIFRecognizer
recognizer = CIFRecognizer.from_run(sys.argv[1])
assert recognizer.transcribe(sys.argv[2:])[0].text
unwanted = {"transformers", "h5py", "matplotlib"}
rooms = "brain experiment losses distillation teachers teacher_cache validation"
unwanted |= {f"cif_lobes.{room}" for room in rooms.split()}
print(sorted(unwanted & {*sys.modules}))
"""
    command = [sys.executable, "-c", code, str(trained), str(utterances[0][0])]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
