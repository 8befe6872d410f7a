"""Where the lines of a stream end."""

import types

import numpy as np
import pytest

from cif_lobes.inference.gate import SpeechGate
from cif_lobes.inference.lines import PAUSE, Lines

RATE = 1000
WORD = (np.sin(np.arange(0.5 * RATE)) * np.linspace(0, 1, RATE // 2)).astype(np.float32)


class Words:
    """Writes an "a" for each time that its gate opens."""

    sample_rate, ended = RATE, False

    def __init__(self):
        self._reset()

    def push(self, signal):
        self.gate.push(signal)
        text = "a" * len(self.gate.openings)
        return [types.SimpleNamespace(text=text)] if text else []

    def finish(self):
        self._reset()
        return []

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
    lines = Lines(Words())
    pause = silence(PAUSE - 1)
    say(lines, silence(9), WORD, pause, WORD, pause, WORD, chunk=chunk)
    assert (lines.finished, lines.growing) == ([], "aaa")
    say(lines, silence(PAUSE + 1), WORD, chunk=chunk)
    assert (lines.finished, lines.growing) == (["aaa"], "a")
    lines.finish()
    assert (lines.finished, lines.growing) == (["aaa", "a"], "")


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
