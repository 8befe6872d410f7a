"""Long pauses are shortened; speech, and times, stay what they are."""

import numpy as np
import pytest
from conftest import speak

from cif_lobes.inference.pauses import shorten_pauses, true_time

RATE = 16000
RNG = np.random.default_rng(0)


def noise(seconds, db):
    return 10 ** (db / 20) * RNG.standard_normal(round(seconds * RATE)).astype(
        np.float32
    )


SPEECH = speak("abcdbdac").astype(np.float32)


@pytest.mark.parametrize("db", [-120, -60, -45])
@pytest.mark.parametrize("place", ["before", "behind", "within"])
def test_five_seconds_become_some_tenths(db, place):
    parts = [SPEECH, noise(5, db)]
    if place == "before":
        parts.reverse()
    if place == "within":
        parts.append(SPEECH)
    whole = np.concatenate(parts)
    shorter, openings = shorten_pauses(whole, RATE)
    lost = (len(whole) - len(shorter)) / RATE
    assert 4.3 <= lost <= 5.1  # the speech itself has silence at its ends
    assert openings[-1][1] == pytest.approx(lost)


def test_no_sample_of_speech_is_lost_and_its_times_are_true():
    words = [(1 + 0.1 * i) * SPEECH[: 8000 + 800 * i] for i in range(4)]
    gaps = [0.1, 0.7, 3.0, 0.3, 8.0]
    pieces, begins, at = [], [], 0
    for gap, word in zip(gaps, [*words, SPEECH[:0]], strict=True):
        pieces += [noise(gap, -120), word]
        at += round(gap * RATE)
        begins.append(at)
        at += len(word)
    whole = np.concatenate(pieces)
    shorter, openings = shorten_pauses(whole, RATE)
    assert len(shorter) < len(whole) - 9 * RATE
    for begin, word in zip(begins, words, strict=False):
        # Where the word is in what is heard.
        places = np.flatnonzero(shorter == word[0])
        (place,) = [
            p for p in places if np.array_equal(shorter[p : p + len(word)], word)
        ]
        assert true_time(place / RATE, openings, RATE) == pytest.approx(begin / RATE)
    end = true_time(len(shorter) / RATE, openings, RATE)
    assert end == pytest.approx(len(whole) / RATE)


def vowel(seconds):
    return 0.3 * np.sin(2 * np.pi * 150 * np.arange(seconds * RATE) / RATE)


@pytest.mark.parametrize(
    "signal",
    [
        SPEECH,
        np.zeros(5 * RATE, np.float32),  # nobody speaks: another's business
        noise(5, -30),
        noise(0.3, -120),
        SPEECH[:0],
        np.concatenate([SPEECH, noise(0.5, -120), SPEECH]),  # a short pause
        np.concatenate([SPEECH, vowel(3).astype(np.float32), SPEECH]),  # a held vowel
        # Somebody far away, 20 dB fainter, speaks for seconds.
        np.concatenate([SPEECH, 0.1 * SPEECH, 0.1 * SPEECH, SPEECH]),
    ],
)
def test_what_may_be_speech_is_left_alone(signal):
    shorter, openings = shorten_pauses(signal, RATE)
    assert shorter is signal and openings == []
