"""Recordings of any length as windows that a network can take, read as they are needed.

Without PyTorch, for the ONNX recogniser.
"""

import itertools
from typing import Any, NamedTuple

import numpy as np

from cif_lobes.inference.recordings import (
    is_waveform,
    open_sound,
    read_blocks,
    waveform_blocks,
)

MAX_SECONDS = 20.0  # of a window, if nothing is known about the durations of training
PAUSE = 0.2  # seconds; the closure of a stop consonant is shorter


def check_longest(max_seconds):
    """The longest window in seconds, if there can be such."""
    if not 1 <= max_seconds < float("inf"):
        raise ValueError(f"max_seconds is {max_seconds:g}, must be at least 1")
    return max_seconds


class Window(NamedTuple):
    """A stretch of a recording that is recognised at once."""

    recording: int
    """int: number of the recording."""
    start: float
    """float: seconds of the recording before it."""
    signal: Any
    """[samples], float32, at the rate of the recogniser."""
    lost: tuple = ()
    """tuple: what of it the network does not hear, see `pauses.true_time`."""


def read_windows(recording, sample_rate, max_seconds, channel=None, vad=None):
    """Cut a recording at pauses, holding no more of it than the next window needs.

    Arguments
    ---------
    recording : str, os.PathLike, numpy.ndarray or torch.Tensor
        File, or waveform [samples].
    sample_rate : int
        Hz, of a waveform.
    max_seconds : float
        Longest window in seconds, at least 1.
    channel : int, optional
        Of a file with several, from 1. Without it, the mean of all.
    vad : callable, optional
        See `find_pause`.

    Yields
    ------
    signal : numpy.ndarray, [samples], float32
        A window.
    start : float
        Seconds of the recording before it.
    rate : int
        Hz, of the signal.

    Raises
    ------
    OSError, soundfile.SoundFileError, ValueError
        As `cif_lobes.inference.recordings.read_blocks` and `waveform_blocks`.
    """
    rate, done = sample_rate, 0
    if is_waveform(recording):
        blocks = waveform_blocks(recording, rate)
    else:
        with open_sound(recording) as file:
            rate = file.samplerate
        blocks = read_blocks(recording, channel)
    for signal in cut_at_pauses(blocks, rate, max_seconds, vad):
        yield signal, done / rate, rate
        done += len(signal)


def cut_at_pauses(blocks, sample_rate, max_seconds, vad=None):
    """Cut a long signal where it is quietest, so that no window is too long.

    A cut is the middle of the quietest 0.2 s between a third of the longest window and
    its end. So no window is shorter than that third, every sample is in one window, and
    a word is cut only where there is no pause for two thirds of a window.

    Arguments
    ---------
    blocks : iterable of numpy.ndarray, [samples], float32
        The signal, in pieces of any size.
    sample_rate : int
        Hz.
    max_seconds : float
        Longest window in seconds, at least 1.
    vad : callable, optional
        See `find_pause`.

    Yields
    ------
    numpy.ndarray, [samples]
        In order; together, the signal.

    Example
    -------
    >>> words, pause = np.ones(800), np.zeros(400)
    >>> signal = np.concatenate([words, pause, words, pause, words])
    >>> [len(window) for window in cut_at_pauses([signal], 1000, max_seconds=2)]
    [906, 1196, 1098]
    """
    longest = int(max_seconds * sample_rate)
    shortest, rest = longest // 3, np.zeros(0, np.float32)
    for block in itertools.chain(blocks, [None]):
        if block is not None:
            rest = np.concatenate([rest, block])
        # Enough to leave a window that is not too short, or the end.
        enough = longest + (shortest if block is not None else 1)
        while len(rest) >= enough:
            last = min(longest, len(rest) - shortest)
            cut = shortest + find_pause(rest[shortest:last], sample_rate, vad)
            yield rest[:cut]
            rest = rest[cut:]
    yield rest


def find_pause(signal, sample_rate, vad=None):
    """Where to cut a signal: the middle of its quietest 0.2 s.

    Arguments
    ---------
    signal : numpy.ndarray, [samples], float32
        At least 0.2 s.
    sample_rate : int
        Hz.
    vad : callable, optional
        From a signal and its rate to the probability of speech in each 10 ms. The cut
        is then where it is least, and the quietest of several such places.

    Returns
    -------
    int
        Samples before the cut.
    """
    hop = sample_rate // 100
    count, width = len(signal) // hop, round(PAUSE * 100)
    loudness = np.square(signal[: count * hop].reshape(count, hop)).sum(axis=1)
    if vad is not None:
        loudness = vad(signal, sample_rate)[:count] + loudness / (loudness.sum() + 1e-9)
    quietest = np.convolve(loudness, np.ones(width), "valid").argmin()
    return int(quietest + width // 2) * hop
