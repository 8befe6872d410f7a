"""Samples of audio files, and what is wrong with those that cannot be used."""

import os
import re

import numpy as np
import soundfile

BLOCK = (
    1 << 20
)  # samples decoded at a time where all that is wanted is whether they can be
SLACK = 0.1  # seconds that a header may promise too much: mp3 counts whole frames
OGG_PAGE = 65307  # bytes at most
# What a header says of samples that are not there (WAV, AIFF).
PROMISED = re.compile(r"^ ?(?:data|SSND) : (\d+) \(should be (\d+)\)", re.MULTILINE)


class UnusableAudio(ValueError):
    """A file that cannot be decoded, breaks off, or has samples that are no numbers.

    Arguments
    ---------
    message : str
        Names the file, what is wrong with it, and the remedy.
    """

    def __init__(self, message):
        # A DataLoader's worker makes the exception again from a whole traceback, of which
        # the message is the end.
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


def read(path, offset=None, duration=None):
    """Samples of a file or of a stretch of it, channels averaged.

    Arguments
    ---------
    path : str
        Any format that libsndfile reads.
    offset : float, optional
        Where the stretch begins, seconds. By default the whole file is read.
    duration : float, optional
        Of the stretch, seconds; by default, until the end of the file.

    Returns
    -------
    samples : numpy.ndarray, [samples], float32
    rate : int
        Hz.

    Raises
    ------
    UnusableAudio
        If it breaks off, cannot be decoded, or has NaN or infinite samples.
    """
    try:
        with soundfile.SoundFile(path) as file:
            rate, start, wanted = file.samplerate, 0, -1
            if offset is not None:
                start = min(round(offset * rate), file.frames)
                file.seek(start)
                if duration is not None:
                    wanted = round(duration * rate)
            samples = file.read(wanted, "float32", always_2d=True)
            fault = ""
            if wanted < 0:
                fault = fault_of_length(file, path, start + len(samples))
            elif wanted - len(samples) > SLACK * rate:
                fault = f"it ends before {offset + duration:.1f} s"
    except (OSError, soundfile.SoundFileError) as error:
        raise _unusable(path, _fault_of_decoding(path, error)) from None
    samples = samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0]
    fault = fault or fault_of_samples(samples, start, rate)
    if fault:
        raise _unusable(path, fault)
    return samples, rate


def examine(path):
    """Decode a whole file, a block at a time.

    Arguments
    ---------
    path : str

    Returns
    -------
    duration : float
        Of what can be decoded, seconds.
    fault : str
        What is wrong; empty if nothing is.
    """
    seconds, fault = 0.0, ""
    try:
        with soundfile.SoundFile(path) as file:
            rate, done = file.samplerate, 0
            while not fault:
                block = file.read(BLOCK // file.channels, "float32")
                fault = fault_of_samples(block, done, rate)
                done += len(block)
                seconds = done / rate
                if not len(block):
                    break
            fault = fault or fault_of_length(file, path, done)
    except (OSError, soundfile.SoundFileError) as error:
        fault = _fault_of_decoding(path, error)
    return round(seconds, 6), fault


def breaks_off(log, duration):
    """Whether the header of a WAV or AIFF promises more samples than there are.

    libsndfile says it in its log only, and half a sentence would pass for a whole one.

    Arguments
    ---------
    log : str
        `extra_info` of `soundfile.info`.
    duration : float
        Of the samples that are there, seconds.

    Returns
    -------
    str
        What is missing, in words; empty if nothing is.
    """
    sizes = PROMISED.search(log)
    if not sizes:
        return ""
    promised, there = map(int, sizes.groups())
    # A program that writes into a pipe promises the largest size that there is.
    if promised > 0x7FFF0000 or not there:
        return ""
    whole = duration * promised / there
    if whole - duration <= SLACK:
        return ""
    return f"it breaks off after {duration:.1f} of {whole:.1f} s"


def fault_of_length(file, path, done):
    """What is missing of a file of which `done` samples could be read.

    Arguments
    ---------
    file : soundfile.SoundFile
    path : str
    done : int
        Samples, of each channel.

    Returns
    -------
    str
        In words; empty if nothing is.
    """
    seconds, promised = done / file.samplerate, file.frames / file.samplerate
    # libsndfile guesses the length of an mp3 that does not state it.
    sure = file.format != "MP3" or _states_length(path)
    if sure and promised - seconds > SLACK:
        return f"it breaks off after {seconds:.1f} of {promised:.1f} s"
    if file.format == "OGG" and not _ends_stream(path):
        return f"it breaks off after {seconds:.1f} s: its last Ogg page is not the end"
    return breaks_off(file.extra_info, seconds)


def _ends_stream(ogg):
    """Whether the last page of an Ogg file is whole and marked as the end."""
    with open(ogg, "rb") as file:
        file.seek(max(0, os.path.getsize(ogg) - 2 * OGG_PAGE))
        tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS\0")) :]
    if len(page) < 27:
        return False
    sizes = page[27 : 27 + page[26]]  # of its segments
    is_whole = len(page) >= 27 + page[26] + sum(sizes)
    return is_whole and bool(page[5] & 4)


def _states_length(mp3):
    """Whether the first frame of an mp3, after its ID3 tag, is a Xing header."""
    with open(mp3, "rb") as file:
        head = file.read(10)
        if head[:3] == b"ID3":
            size = 0
            for byte in head[6:10]:
                size = size << 7 | byte
            file.seek(10 + size)
        head += file.read(2048)
    return b"Xing" in head or b"Info" in head


def _unusable(path, fault):
    return UnusableAudio(
        f"{path}: {fault}. Copy it again, convert what is left of it (ffmpeg -i {path} "
        "OUT.flac), or take it out of the manifest"
    )


def fault_of_samples(samples, first, rate):
    """The first sample that is no number.

    Arguments
    ---------
    samples : numpy.ndarray, [samples] or [samples, channels], float32
    first : int
        Samples before these.
    rate : int
        Hz.

    Returns
    -------
    str
        In words; empty if all are numbers.
    """
    finite = np.isfinite(samples)
    if finite.all():
        return ""
    where = first + int(np.argwhere(~finite)[0][0])
    return f"sample {where:,} ({where / rate:.2f} s) is NaN or infinite"


def _fault_of_decoding(path, error):
    if not os.path.exists(path):
        return "no such file"
    said = re.sub(r"^Error (opening .*?)?: ", "", str(error)).rstrip(".")
    return f"it cannot be decoded ({said})"
