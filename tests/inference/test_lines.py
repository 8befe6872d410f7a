"""Where the lines of a stream end."""

import types

import numpy as np
import pytest
import torch
from conftest import speak
from test_streaming import LETTERS, parts, pieces_of  # noqa: F401  the fixture

from cif_lobes.inference.gate import SpeechGate
from cif_lobes.inference.lines import PAUSE, Lines
from cif_lobes.inference.stream import StreamingRecognizer

RATE = 1000
SPEECH = speak("abcdbdac")
WORD = (np.sin(np.arange(0.5 * RATE)) * np.linspace(0, 1, RATE // 2)).astype(np.float32)


class Words:
    """Writes an "a" for each time that its gate opens; sentences have `words` of them."""

    sample_rate, ended = RATE, False

    def __init__(self, words):
        self.words, self.asked = words, 0
        self._reset()

    def push(self, signal):
        self.gate.push(signal)
        text = "a" * len(self.gate.openings)
        return [types.SimpleNamespace(text=text)] if text else []

    def finish(self):
        self._reset()
        return []

    def is_complete(self):
        self.asked += 1
        return len(self.gate.openings) == self.words

    def _reset(self):
        self.gate = SpeechGate(RATE)


def say(lines, *sounds, chunk=100):
    sound = np.concatenate(sounds)
    for i in range(0, len(sound), chunk):
        lines.push(sound[i : i + chunk])


def silence(seconds):
    return np.zeros(round(seconds * RATE), np.float32)


@pytest.mark.parametrize("chunk", [7, 100, 1000])
def test_a_pause_in_a_sentence_does_not_end_it(chunk):
    lines = Lines(Words(9))
    pause = silence(PAUSE - 1)
    say(lines, silence(9), WORD, pause, WORD, pause, WORD, chunk=chunk)
    assert (lines.finished, lines.growing) == ([], "aaa")
    say(lines, silence(PAUSE + 1), WORD, chunk=chunk)
    assert (lines.finished, lines.growing) == (["aaa"], "a")
    lines.finish()
    assert (lines.finished, lines.growing) == (["aaa", "a"], "")


@pytest.mark.parametrize("chunk", [7, 100, 1000])
def test_a_sentence_that_is_complete_ends_at_a_pause(chunk):
    words = Words(2)
    lines, pause = Lines(words), silence(PAUSE - 1)
    say(lines, WORD, pause, WORD, pause, WORD, pause, chunk=chunk)
    assert (lines.finished, lines.growing) == (["aa"], "a")
    assert words.asked == 3  # once a pause


def test_silence_is_counted_from_the_end_of_speech():
    gate = SpeechGate(RATE)
    gate.push(silence(5))
    assert gate.silence == 0  # nobody has spoken
    gate.push(WORD)
    assert gate.is_open and gate.silence == 0
    gate.push(silence(0.5))
    assert gate.silence == 0  # not decided yet
    gate.push(silence(2))
    assert gate.silence == pytest.approx(2.5, abs=0.25)
    gate.push(WORD)
    assert gate.silence == 0


@pytest.mark.parametrize("hotwords", [None, [f"{a}b" for a in LETTERS]])
def test_asking_changes_nothing(parts, hotwords, monkeypatch):  # noqa: F811
    """Not the tokens and their times, wherever one asks; no part of the network is copied."""
    copied = []
    monkeypatch.setattr(torch.nn.Module, "__deepcopy__", copied.append, raising=False)
    silent, asked = StreamingRecognizer(parts), StreamingRecognizer(parts)
    network = {*parts["modules"]["encoder"].modules()}
    for recognizer in (silent, asked):
        recognizer.use_hotwords(hotwords, 2.0)
    for seed, size in enumerate((1600, 333, 16000)):
        expected, got = [], []
        for chunk in pieces_of(speak("abcdbdac", seed=seed), size):
            expected += silent.push(chunk)
            got += asked.push(chunk)
            asked.is_complete()
            for stream in (asked.features, asked.encoder, asked.weights, asked.cif):
                held = vars(stream).values()
                modules = [v for v in held if isinstance(v, torch.nn.Module)]
                assert {*modules} <= network
        assert got + asked.finish() == expected + silent.finish() != []
    assert copied == []


def test_complete_is_what_finish_ends_with(parts, monkeypatch):  # noqa: F811
    """Of what has been said up to any time; a letter that it says is the end."""
    recognizer, answers = StreamingRecognizer(parts), []
    assert not recognizer.is_complete()  # nothing has been said
    said = recognizer.push(SPEECH) + recognizer.finish()
    (end,) = parts["tokenizer"].encode(said[-1].token)
    monkeypatch.setattr(parts["searcher"], "eos_index", end)
    recognizer = StreamingRecognizer(parts)
    for samples in range(3200, len(SPEECH) + 1, 1600):
        recognizer.push(SPEECH[:samples])
        answers.append(recognizer.is_complete())
        path = recognizer.path
        recognizer.finish()
        assert answers[-1] == path.ended
    assert {*answers} == {True, False}
