"""Long pauses are shortened before a network hears them.

Networks are trained on sentences, and write something where nobody speaks for seconds,
before, behind and within speech; how badly is in docs/benchmarks/silence.md. Without
PyTorch, for the ONNX recogniser.
"""

import bisect
import math

import numpy as np

from cif_lobes.inference.recordings import BLOCK

PAUSE = 0.6  # seconds; what is shorter stays as it is
KEPT = 0.2  # seconds of a pause that stay beside speech
STEADY_DB = 2.0  # standard deviation of the level of a pause
BELOW_DB = 10.0  # level of a pause below that of the recording, at least
FLOOR = 1e-7  # power, -70 dB of full scale: what is fainter is silence


def shorten_pauses(signal, sample_rate):
    """Cut out the middle of pauses of 0.6 s and more: silence, or a faint, steady noise.

    A pause is where the level of blocks of 50 ms moves by less than 2 dB for 0.6 s, and
    is 10 dB below that of the recording: a held vowel is as loud as the rest, music and
    other voices move. Of a pause between words 0.4 s stay, before and behind them 0.2 s.

    Arguments
    ---------
    signal : numpy.ndarray, [samples], float32
    sample_rate : int
        Hz.

    Returns
    -------
    signal : numpy.ndarray, [samples], float32
        The same array if there is no such pause.
    openings : list of (int, float)
        For `true_time`: samples that have passed, seconds that had been lost.

    Example
    -------
    >>> word, pause = np.sin(np.arange(500.0)) * np.arange(500), np.zeros(2000)
    >>> shorter, openings = shorten_pauses(np.concatenate([pause, word, pause, word]), 1000)
    >>> len(shorter), openings
    (1600, [(0, 1.8), (900, 3.4)])
    """
    size = round(BLOCK * sample_rate)
    quiet = _pauses(signal, size)
    if quiet.all() or not quiet.any():
        return signal, []
    kept = round(KEPT / BLOCK)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], quiet, [0]]).astype(int)))
    pieces, openings, passed, done = [], [], 0, 0
    for first, end in edges.reshape(-1, 2):
        # Beside speech, which does not begin or end with the recording.
        stop = size * (first + kept if first else 0)
        again = size * (end - kept) if end < len(quiet) else len(signal)
        if again <= stop:
            continue
        pieces.append(signal[done:stop])
        passed += stop - done
        done = again
        openings.append((int(passed), float(done - passed) / sample_rate))
    return np.concatenate([*pieces, signal[done:]]), openings


def _pauses(signal, size):
    """Whether each block of a signal is in a pause."""
    count, width = len(signal) // size, math.ceil(PAUSE / BLOCK)
    quiet = np.zeros(count, bool)
    if count < width:
        return quiet
    blocks = np.asarray(signal[: count * size], np.float64).reshape(count, size)
    power = np.square(blocks - blocks.mean(axis=1, keepdims=True)).mean(axis=1) + FLOOR
    level = 10 * np.log10(power)
    loud = 10 * np.log10(np.square(power).sum() / power.sum())
    stretches = np.lib.stride_tricks.sliding_window_view(level, width)
    steady = stretches.std(axis=1) < STEADY_DB
    faint = stretches.mean(axis=1) < loud - BELOW_DB
    for first in np.flatnonzero(steady & faint):
        quiet[first : first + width] = True
    return quiet


def true_time(seconds, openings, sample_rate):
    """When in the recording is what comes so many seconds after the first that is heard.

    Arguments
    ---------
    seconds : float
    openings : list of (int, float)
        Samples that had passed, seconds that had been lost.
    sample_rate : int
        Hz.

    Returns
    -------
    float
    """
    number = bisect.bisect_right(openings, (seconds * sample_rate, math.inf))
    return seconds + (openings[number - 1][1] if number else 0.0)
