"""Long recordings in windows: cut at pauses, and not read at once."""

import itertools
import sys
import types

import numpy as np
import pytest
import soundfile
import torch
from conftest import speak
from test_inference import edits

from cif_lobes.data.batches import read_audio
from cif_lobes.inference.command import main
from cif_lobes.inference.recognizer import CIFRecognizer
from cif_lobes.inference.vad import WebRtcVad
from cif_lobes.inference.windows import cut_at_pauses, read_windows

RATE = 16000


@pytest.fixture(scope="module")
def recognizer(exported):
    return CIFRecognizer.from_export(exported)


def concatenate(texts):
    """Waveform, and where each utterance begins, in samples."""
    parts = [torch.from_numpy(speak(t, seed=i)) for i, t in enumerate(texts)]
    return torch.cat(parts), np.cumsum([0, *(len(part) for part in parts)])


@pytest.mark.parametrize("block", [1, 1000, 10**7])
def test_cut_at_pauses(block):
    """All of the signal once, and every cut within the silence of a seam."""
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcd"), rng.integers(2, 6))) for _ in range(40)]
    signal, seams = concatenate(texts)
    signal = signal.numpy()[: 10**5 if block == 1 else None]
    blocks = (signal[i : i + block] for i in range(0, len(signal), block))
    windows = list(cut_at_pauses(blocks, RATE, max_seconds=5))
    assert np.array_equal(np.concatenate(windows), signal)
    lengths = [len(window) / RATE for window in windows]
    assert 5 / 3 - 0.01 <= min(lengths) and max(lengths) <= 5
    cuts = np.cumsum([len(window) for window in windows])[:-1]
    assert len(cuts) >= len(signal) / RATE / 5 - 1
    distances = np.abs(cuts[:, None] - seams[None]).min(1) / RATE
    assert distances.max() < 0.05


@pytest.mark.parametrize("seconds", [2.0, 2.1, 2.6, 2.7, 3.9])
def test_no_window_is_short(seconds):
    signal = np.random.default_rng(0).standard_normal(round(seconds * RATE))
    lengths = [len(w) / RATE for w in cut_at_pauses([signal], RATE, max_seconds=2)]
    assert sum(lengths) == pytest.approx(seconds)
    assert len(lengths) == 1 if seconds == 2 else len(lengths) >= 2
    assert 2 / 3 - 0.01 < min(lengths) <= max(lengths) <= 2


def test_an_hour_is_not_read_at_once(recognizer, monkeypatch):
    """Of blocks that never end, no more is read than the windows that are wanted."""
    endless, read = itertools.repeat(speak("abcdabcd")), []
    blocks = (read.append(len(block)) or block for block in endless)
    windows = cut_at_pauses(blocks, RATE, max_seconds=3)
    taken = sum(len(next(windows)) for _ in range(5))
    assert sum(read) - taken < 3 * 4 / 3 * RATE + len(speak("abcdabcd"))


def test_windows_of_a_file_in_its_own_rate(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.random.randn(30000, 2) / 9, 8000)
    windows = list(read_windows(tmp_path / "a.wav", RATE, 1.0))
    assert {rate for _, _, rate in windows} == {8000}
    ends = np.cumsum([len(signal) / 8000 for signal, _, _ in windows])
    assert ends[-1] == pytest.approx(30000 / 8000)
    assert [start for _, start, _ in windows] == pytest.approx([0, *ends[:-1]])


@pytest.mark.parametrize("beam_size", [1, 3])
def test_long_recording(exported, tmp_path, beam_size):
    """Four utterances in one file: as each alone, with times from its beginning."""
    recognizer = CIFRecognizer.from_export(exported, {"beam_size": beam_size})
    signal, seams = concatenate(["abcda", "dcabc", "bdbac", "cabdd"])
    soundfile.write(tmp_path / "long.flac", signal.numpy(), RATE, "PCM_24")
    (found,) = recognizer.transcribe([tmp_path / "long.flac"], max_seconds=1.6)

    long = read_audio(tmp_path / "long.flac", RATE).numpy()
    windows = list(cut_at_pauses([long], RATE, 1.6))
    assert len(windows) == 4
    parts = recognizer.transcribe(windows, max_seconds=1.6)
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


class StandIn:
    """Of the package webrtcvad: what is louder than 0.1 is speech."""

    def __init__(self, strictness):
        assert strictness in range(4)

    def is_speech(self, frame, rate):
        samples = np.frombuffer(frame, "<i2")
        assert rate == 16000 and len(samples) == 160
        return bool(np.abs(samples).max() > 0.1 * 32767)


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_a_detector_says_where_to_cut(monkeypatch, rate):
    """Not in the quietest place of all, which is in a word."""
    stand_in = types.SimpleNamespace(Vad=StandIn)
    monkeypatch.setitem(sys.modules, "webrtcvad", stand_in)
    tone = 0.2 * np.sin(2 * np.pi * 200 * np.arange(3 * rate) / rate)
    pause, faint = slice(rate, rate * 5 // 4), slice(rate * 3 // 2, rate * 7 // 4)
    tone[pause] *= 0.4
    tone[faint] *= 0.2
    for sample in range(4):
        tone[faint][sample :: rate // 100] = 0.15  # a click in each 10 ms
    (first, *_) = cut_at_pauses([tone], rate, max_seconds=2.9)
    assert faint.start < len(first) < faint.stop
    (first, *_) = cut_at_pauses([tone], rate, max_seconds=2.9, vad=WebRtcVad())
    assert pause.start < len(first) < pause.stop


def test_a_detector_that_is_not_installed(exported, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "webrtcvad", None)
    with pytest.raises(ValueError, match="--vad: .* pip install webrtcvad-wheels"):
        main([str(exported), "a.wav", "--vad"])


# --- command line ---
