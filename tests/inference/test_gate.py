"""A stream in which nobody speaks for long: nothing passes, and then all of the speech."""

import numpy as np
import pytest
from conftest import speak

from cif_lobes.inference.gate import SpeechGate

RATE = 16000
SPEECH = speak("abcdabcd")


def quiet(seconds, level_db):
    """White noise, or zeros if there is no level."""
    if level_db is None:
        return np.zeros(round(seconds * RATE), "float32")
    noise = np.random.default_rng(0).standard_normal(round(seconds * RATE))
    return (10 ** (level_db / 20) * noise).astype("float32")


def push(signal, size):
    gate = SpeechGate(RATE)
    pieces = [gate.push(signal[i : i + size]) for i in range(0, len(signal), size)]
    return gate, np.concatenate(pieces)


@pytest.mark.parametrize("level_db", [None, -80, -60, -40])
def test_nothing_passes_before_speech(level_db):
    """What passes is the end of the quiet minute, and the speech as it is."""
    silence = quiet(60, level_db)
    gate, passed = push(silence, 1600)
    assert not len(passed) and gate.received == len(silence)
    sound = np.concatenate([silence, SPEECH])
    gate, passed = push(sound, 1600)
    assert len(SPEECH) < len(passed) <= len(SPEECH) + RATE // 2
    assert np.array_equal(passed, sound[-len(passed) :])
    assert gate.passed == len(passed)
    # Times are those of the stream.
    lost = (len(sound) - len(passed)) / RATE
    assert gate.true_time(0.5) == pytest.approx(lost + 0.5)


@pytest.mark.parametrize("level_db", [None, -60])
def test_a_long_pause_is_cut_short(level_db):
    silence = quiet(30, level_db)
    sound = np.concatenate([SPEECH, silence, SPEECH])
    gate, passed = push(sound, 640)
    assert np.array_equal(passed[: len(SPEECH)], SPEECH)
    assert np.array_equal(passed[-len(SPEECH) :], SPEECH)
    assert 1.5 < (len(passed) - 2 * len(SPEECH)) / RATE < 2.2
    assert gate.true_time(1.0) == 1.0
    end = gate.true_time(len(passed) / RATE)
    assert end == pytest.approx(len(sound) / RATE)


def test_the_first_second_passes():
    """Whoever speaks from the first sample on may begin softly."""
    sound = np.concatenate([quiet(0.7, None), SPEECH])
    assert np.array_equal(push(sound, 999)[1], sound)


def test_short_pauses_pass():
    sound = np.concatenate([SPEECH, quiet(0.8, None), SPEECH])
    assert np.array_equal(push(sound, 999)[1], sound)


@pytest.mark.parametrize("size", [1, 37, 799, 801, 10**6])
def test_the_same_passes_whatever_the_chunks(size):
    sound = np.concatenate([quiet(1.5, -60), speak("ab"), quiet(1.3, None)])
    gate, passed = push(sound, size)
    wanted, expected = push(sound, 160)
    assert np.array_equal(passed, expected) and 0 < len(passed) < len(sound)
    assert gate.openings == wanted.openings
