"""Recordings as recognisers read them: whatever can be read, and may hold no speech.

Training is stricter (`cif_lobes.data.audio_files`). Without PyTorch, for the ONNX recogniser.
"""

import logging
import os

import numpy as np
import soundfile

from cif_lobes.data.audio_files import fault_of_length, fault_of_samples

logger = logging.getLogger(__name__)

CANCELLED_DB = 20.0  # dB by which channels in opposite phase are fainter when mixed
STEADY_DB = 1.5  # standard deviation of the level: pink noise 0.9, speech from 4.7 on
# Less steady sounds are no speech either if they lack its rhythm, of syllables: brown
# noise, held chords. Speech has more of one or the other, with noise of 5 dB as well.
UNSTEADY_DB, RHYTHM = 3.0, 0.5
SYLLABLES = 2, 8  # Hz
BLOCK_SECONDS = 10  # read at a time
BLOCK = 0.05  # seconds over which the level is measured


def is_waveform(recording):
    """Whether a recording is an array or tensor, and not the name of a file."""
    return hasattr(recording, "ndim")


def is_one(recordings):
    """Whether this is a recording, and not a list of them."""
    return is_waveform(recordings) or isinstance(recordings, (str, os.PathLike))


def duration_of(recording, sample_rate):
    """Seconds of a file or of a waveform at `sample_rate`; no samples are read."""
    if is_waveform(recording):
        return recording.shape[-1] / sample_rate if recording.ndim else 0.0
    with open_sound(recording) as file:
        return file.frames / file.samplerate


def open_sound(path):
    """A `soundfile.SoundFile` for reading.

    Raises
    ------
    soundfile.SoundFileError
        If it cannot be read.
    ValueError
        If it is named .raw: such files do not say what they hold.
    """
    try:
        return soundfile.SoundFile(path)
    except TypeError:  # what soundfile says to that
        raise ValueError(
            f"{path}: raw samples do not say their rate. Try: ffmpeg -f s16le -ar 16000 "
            f"-ac 1 -i {path} OUT.flac"
        ) from None


def read_blocks(path, channel=None):
    """Read any file that libsndfile reads, and say if a part of it is missing.

    Arguments
    ---------
    path : str
    channel : int, optional
        From 1; without it, the mean of all.

    Yields
    ------
    numpy.ndarray, [samples], float32
        10 s at a time, at the file's rate.

    Raises
    ------
    soundfile.SoundFileError
        If it cannot be read.
    ValueError
        If it holds no samples, or some that are not finite, has no such channel, or if
        the mean of all channels is near silence and each alone is not.
    """
    done, alone, together = 0, 0.0, 0.0
    with open_sound(path) as file:
        rate, channels = file.samplerate, file.channels
        while len(audio := file.read(BLOCK_SECONDS * rate, "float32", always_2d=True)):
            mono = mix_down(audio, channel)
            check_finite(mono, done, rate)
            if channels > 1 and channel is None:
                alone += np.square(audio).sum(dtype=float)
                together += np.square(mono).sum(dtype=float) * channels**2
            done += len(mono)
            yield mono
        if not done:
            raise ValueError("it holds no samples.")
        fault = fault_of_length(file, path, done)
    if together < alone * 10 ** (-CANCELLED_DB / 10):
        raise ValueError(
            f"its {channels} channels cancel each other, in opposite phase. Recognise "
            "one of them: --channel 1"
        )
    if fault:
        logger.warning(f"{path}: {fault}. The rest is lost: copy or record it again")


def waveform_blocks(signal, sample_rate):
    """A waveform as `read_blocks` gives a file.

    Arguments
    ---------
    signal : numpy.ndarray or torch.Tensor, [samples], float
    sample_rate : int
        Hz.

    Yields
    ------
    numpy.ndarray, [samples], float32

    Raises
    ------
    ValueError
        If there are no samples, some that are not finite, or if it is no waveform.
    """
    signal = as_waveform(signal)
    if not len(signal):
        raise ValueError("it holds no samples.")
    size = BLOCK_SECONDS * sample_rate
    for first in range(0, len(signal), size):
        block = np.asarray(signal[first : first + size], np.float32)
        check_finite(block, first, sample_rate)
        yield block


def as_waveform(signal):
    """An array or tensor as numpy.ndarray, [samples]; see `waveform_blocks`."""
    signal = np.asarray(signal.detach().cpu() if hasattr(signal, "detach") else signal)
    if signal.ndim != 1:
        raise ValueError(
            f"a waveform is an array [samples], not {list(signal.shape)}: give one "
            "channel of it, or a list of waveforms"
        )
    if signal.dtype.kind != "f":
        raise ValueError(
            f"a waveform is of floats from -1 to 1, not of {signal.dtype}: divide "
            "16-bit samples by 32768"
        )
    return signal


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
        If there is no such channel.

    Example
    -------
    >>> mix_down(np.float32([[1.0, 0.0], [3.0, 0.0]])).tolist()
    [0.5, 1.5]
    """
    channels = audio.shape[1]
    if channel is None:
        return np.ascontiguousarray(audio.mean(axis=1))
    if not 1 <= channel <= channels:
        raise ValueError(f"channel is {channel}, it has {channels}, the first is 1")
    return np.ascontiguousarray(audio[:, channel - 1])


def check_finite(samples, first, rate):
    """Refuse samples that are no numbers; `first` stand before these."""
    fault = fault_of_samples(samples, first, rate)
    if fault:
        raise ValueError(f"{fault}.")


def is_steady(signal, sample_rate):
    """Whether a signal is silence, or a noise as loud throughout, so that nobody speaks.

    The level of speech moves from sound to sound, that of a fan or of a radio between
    stations does not. Blocks far below the level are left out: noise that ends is noise.
    Of a second and more, it may move a little if it has no syllables, see `rhythm`.

    Arguments
    ---------
    signal, sample_rate
        Of a recording or a window of it, as in `rhythm`, or shorter, or silent.

    Returns
    -------
    bool

    Example
    -------
    >>> noise = np.random.default_rng(0).standard_normal(16000)
    >>> is_steady(noise, 16000), is_steady(noise * np.linspace(0, 1, 16000), 16000)
    (True, False)
    """
    deviation = level_deviation(signal, sample_rate)
    if deviation < STEADY_DB:
        return True
    if deviation >= UNSTEADY_DB or len(signal) < sample_rate:
        return False
    return rhythm(signal, sample_rate) < RHYTHM


def rhythm(signal, sample_rate):
    """How much the power above 100 Hz goes up and down 2 to 8 times a second.

    Arguments
    ---------
    signal : numpy.ndarray, [samples], float
        A second at least, not silent.
    sample_rate : int
        Hz.

    Returns
    -------
    float
        RMS of that part of the power, as a fraction of its mean. Brown noise has 0.2,
        speech 0.8 and more.
    """
    size, hop = sample_rate // 40, sample_rate // 100
    frames = np.lib.stride_tricks.sliding_window_view(signal, size)[::hop]
    spectrum = np.abs(np.fft.rfft(frames * np.hanning(size))) ** 2
    power = spectrum[:, np.fft.rfftfreq(size, 1 / sample_rate) > 100].sum(axis=1)
    power = power / power.mean() - 1
    changes = np.abs(np.fft.rfft(power)) / len(power)
    hertz = np.fft.rfftfreq(len(power), hop / sample_rate)
    syllables = (hertz >= SYLLABLES[0]) & (hertz <= SYLLABLES[1])
    return float(np.sqrt(2 * np.square(changes[syllables]).sum()))


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
