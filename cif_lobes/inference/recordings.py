"""Recordings as recognisers read them: whatever can be read, and may hold no speech.

Training is stricter (`cif_lobes.data.audio_files`). Without PyTorch, for the ONNX recogniser.
"""

import logging

import numpy as np
import soundfile

from cif_lobes.data.audio_files import breaks_off

logger = logging.getLogger(__name__)

CANCELLED_DB = 20.0  # dB by which channels in opposite phase are fainter when mixed
STEADY_DB = 1.5  # standard deviation of the level: pink noise 0.9, speech from 4.7 on
BLOCK = 0.05  # seconds over which the level is measured


def read_mono(path, channel=None):
    """Read any file that libsndfile reads, and say if a part of it is missing.

    Arguments
    ---------
    path : str
    channel : int, optional
        From 1; without it, the mean of all.

    Returns
    -------
    signal : numpy.ndarray, [samples], float32
    rate : int
        Hz.

    Raises
    ------
    soundfile.SoundFileError
        If it cannot be read.
    ValueError
        If it holds no samples, or as `mix_down`.
    """
    with soundfile.SoundFile(path) as file:
        audio, rate = file.read(dtype="float32", always_2d=True), file.samplerate
        log = file.extra_info
    if not len(audio):
        raise ValueError("it holds no samples.")
    fault = breaks_off(log, len(audio) / rate)
    if fault:
        logger.warning(f"{path}: {fault}. The rest is lost: copy or record it again")
    return mix_down(audio, channel), rate


def mix_down(audio, channel=None):
    """One channel of a recording, or the mean of all.

    Arguments
    ---------
    audio : numpy.ndarray, [samples, channels], float32
    channel : int, optional
        From 1.

    Returns
    -------
    numpy.ndarray, [samples], float32

    Raises
    ------
    ValueError
        If there is no such channel, or if the mean of all is near silence and each
        alone is not.

    Example
    -------
    >>> mix_down(np.float32([[1.0, 0.0], [3.0, 0.0]])).tolist()
    [0.5, 1.5]
    """
    channels = audio.shape[1]
    if channel is not None:
        if not 1 <= channel <= channels:
            raise ValueError(f"channel is {channel}, it has {channels}, the first is 1")
        return np.ascontiguousarray(audio[:, channel - 1])
    mixed = np.ascontiguousarray(audio.mean(axis=1))
    alone, together = np.square(audio).mean(), np.square(mixed).mean()
    if channels > 1 and together < alone * 10 ** (-CANCELLED_DB / 10) / channels:
        raise ValueError(
            f"its {channels} channels cancel each other, in opposite phase. Recognise "
            "one of them: --channel 1"
        )
    return mixed


def is_steady(signal, sample_rate):
    """Whether a signal is silence, or a noise as loud throughout, so that nobody speaks.

    The level of speech moves from sound to sound, that of a fan or of a radio between
    stations does not. Blocks far below the level are left out: noise that ends is noise.

    Arguments
    ---------
    signal : numpy.ndarray, [samples], float32
    sample_rate : int
        Hz.

    Returns
    -------
    bool

    Example
    -------
    >>> noise = np.random.default_rng(0).standard_normal(16000)
    >>> is_steady(noise, 16000), is_steady(noise * np.linspace(0, 1, 16000), 16000)
    (True, False)
    """
    return level_deviation(signal, sample_rate) < STEADY_DB


def level_deviation(signal, sample_rate):
    """Standard deviation in dB of the level of blocks, see `is_steady`; 0 for silence."""
    size = round(BLOCK * sample_rate)
    count = len(signal) // size
    blocks = np.asarray(signal[: count * size], np.float64).reshape(count, size)
    power = np.square(blocks - blocks.mean(axis=1, keepdims=True)).mean(axis=1)
    if not power.any():
        return 0.0
    level = np.square(power).sum() / power.sum()
    return float((10 * np.log10(power[power > 1e-3 * level])).std())
