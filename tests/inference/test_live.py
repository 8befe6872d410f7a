"""cif-transcribe --stream: text while it is spoken, from files, stdin and microphone."""

import io
import sys
import types

import numpy as np
import pytest
import soundfile
import torch
from conftest import speak
from test_streaming import RATE, parts  # noqa: F401  the fixture

from cif_lobes.inference import lines, live
from cif_lobes.inference.command import main
from cif_lobes.inference.live import microphone, print_stream, raw_samples
from cif_lobes.inference.stream import StreamingRecognizer

SPEECH = speak("abcdbdac")


@pytest.fixture
def recognizer(parts, monkeypatch):  # noqa: F811
    """What the command opens, whatever the model is called."""
    recognizer = StreamingRecognizer(parts)
    monkeypatch.setattr(StreamingRecognizer, "from_folder", lambda *_: recognizer)
    return recognizer


def text_of(parts, signal):  # noqa: F811
    recognizer = StreamingRecognizer(parts)
    tokens = [*recognizer.push(signal), *recognizer.finish()]
    assert tokens[-1].text == "".join(token.token for token in tokens)
    return tokens[-1].text


def test_words_are_shown_with_their_spaces(parts, capsys):  # noqa: F811
    """Though no token alone has one."""
    words = types.SimpleNamespace(decode=lambda ids: " ".join(f"w{i}" for i in ids))
    recognizer = StreamingRecognizer({**parts, "tokenizer": words})
    print_stream(recognizer, np.split(SPEECH, 8))
    said = capsys.readouterr().out
    assert said.count(" w") > 5 and said.count("\n") == 1
    tokens = [*recognizer.push(SPEECH), *recognizer.finish()]
    assert said == f"{tokens[-1].text}\n"


def test_a_line_is_an_utterance(recognizer, parts, monkeypatch, capsys):  # noqa: F811
    """It ends at a pause, long before the end, and what comes later is another one."""
    # It has learnt nothing, and says an end of sentence anywhere.
    monkeypatch.setattr(StreamingRecognizer, "ended", False)
    said = text_of(parts, SPEECH)
    pause = np.zeros(4 * RATE, np.float32)
    signal = np.concatenate([SPEECH, pause, SPEECH])
    shown = []

    def chunks():
        for first in range(0, len(signal), 640):
            shown.append(capsys.readouterr().out)
            yield signal[first : first + 640]

    print_stream(recognizer, chunks())
    shown.append(capsys.readouterr().out)
    lines = "".join(shown).split("\n")
    # It has learnt nothing, so the second after the speech has some text, too.
    assert lines[2:] == [""] and lines[0].startswith(said)
    ended = next(number for number, text in enumerate(shown) if "\n" in text)
    assert len(SPEECH) < ended * 640 < len(SPEECH) + len(pause)
    assert lines[1] == text_of(parts, signal[ended * 640 :]) != ""
    # As it was spoken: most of it before the speech ended.
    spoken = "".join(shown[: len(SPEECH) // 640])
    assert len(spoken) > len(said) / 2 and "\n" not in spoken


def test_silence_and_long_talks(recognizer, monkeypatch, capsys):
    print_stream(recognizer, iter([np.zeros(RATE, np.float32)] * 5))
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(lines, "MAX_UTTERANCE", 1.0)
    print_stream(recognizer, np.split(np.resize(SPEECH, 3 * RATE), 75))
    assert capsys.readouterr().out.count("\n") == 3


def test_files(recognizer, parts, tmp_path, capsys):  # noqa: F811
    """Of another rate too; what cannot be read does not keep the others waiting."""
    soundfile.write(tmp_path / "a.wav", SPEECH, RATE, "FLOAT")
    soundfile.write(tmp_path / "nan.wav", np.full(RATE, np.nan), RATE, "FLOAT")
    soundfile.write(tmp_path / "b.wav", speak("abcdbdac", 8000), 8000)
    files = [str(tmp_path / name) for name in ("a.wav", "lost.wav", "nan.wav", "b.wav")]
    with pytest.raises(SystemExit, match="2 of 4 files could not be read"):
        main(["run", *files, "--stream"])
    out, err = capsys.readouterr()
    assert out.startswith(f"{files[0]}:\n{text_of(parts, SPEECH)}\n")
    assert len(out.split(f"{files[3]}:\n")[1]) > 5
    assert f"skipped {files[1]}: no such file" in err
    assert f"skipped {files[2]}: sample 0 (0.00 s) is NaN" in err
    main(["run", files[0], "--stream"])
    assert capsys.readouterr().out == f"{text_of(parts, SPEECH)}\n"


def test_stdin(recognizer, parts, monkeypatch, capsys):  # noqa: F811
    samples = (SPEECH * 32768).astype("<i2")
    pipe = types.SimpleNamespace(buffer=io.BytesIO(samples.tobytes()))
    monkeypatch.setattr(sys, "stdin", pipe)
    main(["run", "-", "--stream"])
    heard = torch.from_numpy(samples.astype("float32") / 32768)
    assert capsys.readouterr().out == f"{text_of(parts, heard)}\n"
    assert next(raw_samples(io.BytesIO(b"\x00\x80\xff\x7f\x01"), RATE)).tolist() == [
        -1.0,
        32767 / 32768,
    ]
    pipe.buffer = io.BytesIO(b"RIFF and so on")
    with pytest.raises(SystemExit, match="1 of 1"):
        main(["run", "-", "--stream"])
    assert "skipped -: a stream is of raw samples" in capsys.readouterr().err


class PortAudioError(Exception):
    """Of the stand-in."""


class StandIn:
    """Of sounddevice's InputStream: says SPEECH, is interrupted, or is not there."""

    broken = False

    def __init__(self, rate, size, channels, dtype, callback):
        assert (rate, channels, dtype) == (RATE, 1, "float32")
        if self.broken:
            raise PortAudioError("Error querying device -1")
        self.callback, self.size = callback, size

    def __enter__(self):
        for first in range(0, len(SPEECH), self.size):
            self.callback(SPEECH[first : first + self.size, None], 0, None, "")

    def __exit__(self, *_):
        pass


def test_a_microphone(recognizer, parts, monkeypatch, capsys):  # noqa: F811
    package = types.SimpleNamespace(InputStream=StandIn, PortAudioError=PortAudioError)
    monkeypatch.setitem(sys.modules, "sounddevice", package)
    waiting = live.queue.Queue.get

    def get(self):
        if self.empty():
            raise KeyboardInterrupt
        return waiting(self)

    monkeypatch.setattr(live.queue.Queue, "get", get)
    with pytest.raises(KeyboardInterrupt):
        main(["run", "--microphone"])
    out, err = capsys.readouterr()
    assert out == f"{text_of(parts, SPEECH)}\n" and "listening, Ctrl-C ends" in err
    monkeypatch.setattr(StandIn, "broken", True)
    with pytest.raises(ValueError, match="--microphone: Error querying.*plugged in"):
        main(["run", "--microphone"])


def test_no_microphone_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(ValueError, match="--microphone: .*pip install sounddevice"):
        next(microphone(RATE))


class Talker:
    """Says an end of sentence after every third chunk, and hears nothing behind it."""

    sample_rate, gate = 16000, types.SimpleNamespace(passed=1, silence=0.0)

    def __init__(self):
        self.said, self.heard = "", 0

    @property
    def ended(self):
        return len(self.said) == 3

    def push(self, letter):
        self.heard += 1
        if self.ended:
            return []
        self.said += letter
        return [types.SimpleNamespace(text=self.said)]

    def finish(self):
        self.said = ""
        return []


def test_what_follows_an_end_of_sentence_is_another_line(capsys):
    print_stream(Talker(), "abcdefgh")
    assert capsys.readouterr().out == "abc\ndef\ngh\n"


def test_raw_files_are_passed_over(recognizer, parts, tmp_path, capsys):  # noqa: F811
    """soundfile has a TypeError for them."""
    soundfile.write(tmp_path / "a.wav", SPEECH, RATE)
    (tmp_path / "b.raw").write_bytes(bytes(3200))
    files = [str(tmp_path / name) for name in ("b.raw", "a.wav")]
    with pytest.raises(SystemExit):
        main(["run", *files, "--stream"])
    out, err = capsys.readouterr()
    assert "b.raw: raw samples do not say their rate" in err
    assert text_of(parts, SPEECH)[:5] in out
