"""`cif-transcribe --stream`: print text as it fires, from files, stdin or a microphone.

A line is an utterance, see `lines`. What is piped in as - is raw: 16-bit samples of one
channel, at the rate of the model.

`file_chunks`, `raw_samples` and `microphone` yield what is heard as it comes: chunks
numpy.ndarray, [samples], float32, at `rate` Hz.
"""

import queue
import sys

import numpy as np
import soundfile

from cif_lobes.inference.command import skip_message
from cif_lobes.inference.inputs import STDIN
from cif_lobes.inference.lines import Lines
from cif_lobes.inference.recordings import open_sound, read_blocks
from cif_lobes.inference.stream import StreamingRecognizer
from cif_lobes.inference.stream_resampler import StreamResampler

CHUNK = 0.04  # seconds that are heard at once


def stream(given):
    """Print what is said in all inputs, or at the microphone until Ctrl-C.

    Arguments
    ---------
    given : argparse.Namespace
        From `cif_lobes.inference.command.read_command`.

    Returns
    -------
    int
        Files that were skipped.
    """
    device = given.device or "cpu"
    recognizer = StreamingRecognizer.from_folder(given.model, None, device)
    if given.hotwords:
        recognizer.use_hotwords(given.hotwords, given.hotword_weight)
    rate = recognizer.sample_rate
    if given.microphone:
        print_stream(recognizer, microphone(rate))
        return 0
    skipped = 0
    for one in given.inputs:
        try:
            if one.file == STDIN:
                print_stream(recognizer, raw_samples(sys.stdin.buffer, rate))
            else:
                chunks = file_chunks(one.file, rate, given.channel)
                if len(given.inputs) > 1:
                    print(f"{one.file}:", flush=True)
                print_stream(recognizer, chunks)
        except (OSError, ValueError, soundfile.SoundFileError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            skipped += 1
            print(skip_message(one.file, error), file=sys.stderr)
    return skipped


def print_stream(recognizer, chunks):
    """Print every token's text once it has fired, and end the line with the utterance.

    Arguments
    ---------
    recognizer : StreamingRecognizer
    chunks : iterable of numpy.ndarray, [samples], float32
    """
    lines, shown = Lines(recognizer), ""

    def show():
        nonlocal shown
        while lines.finished:
            print(lines.finished.pop(0)[len(shown) :], flush=True)
            shown = ""
        print(lines.growing[len(shown) :], end="", flush=True)
        shown = lines.growing

    try:
        for chunk in chunks:
            lines.push(chunk)
            show()
    finally:
        # What has been said before a fault, or before Ctrl-C, is not lost.
        lines.finish()
        show()


def file_chunks(path, rate, channel=None):
    """A file as chunks at the rate of the model; see `recordings.read_blocks`."""
    with open_sound(path) as file:
        resampler = StreamResampler(file.samplerate, rate)
    for block in read_blocks(path, channel):
        yield from _chunks(resampler.push(block), rate)
    yield from _chunks(resampler.finish(), rate)


def _chunks(samples, rate):
    """Samples as from a microphone."""
    size = round(CHUNK * rate)
    return (samples[i : i + size] for i in range(0, len(samples), size))


def raw_samples(pipe, rate):
    """Chunks of bytes piped in: 16-bit integers, little endian, one channel, at `rate`.

    Raises
    ------
    ValueError
        If it begins as a wav or flac file does.
    """
    size, first = 2 * round(CHUNK * rate), True
    while data := pipe.read(size):
        if first and data[:4] in (b"RIFF", b"fLaC", b"OggS"):
            raise ValueError(
                f"a stream is of raw samples, 16 bit, one channel, {rate} Hz, and this is a "
                f"file. Try: ffmpeg -i IN -f s16le -ac 1 -ar {rate} - | cif-transcribe ..."
            )
        first = False
        yield np.frombuffer(data[: len(data) // 2 * 2], "<i2").astype("float32") / 32768


def microphone(rate):
    """Chunks of the default microphone, without end.

    Raises
    ------
    ValueError
        If there is none, or no package that knows it.
    """
    try:
        import sounddevice
    except ImportError:
        raise ValueError(
            "--microphone: the package sounddevice is not installed: pip install sounddevice"
        ) from None
    except OSError as error:
        raise ValueError(
            f"--microphone: {error}. sounddevice needs it: apt-get install libportaudio2"
        ) from None
    heard = queue.Queue()

    def hear(samples, frames, time, status):
        if status:  # some were lost while nobody had time for them
            print(f"microphone: {status}", file=sys.stderr)
        heard.put(samples[:, 0].copy())

    try:
        with sounddevice.InputStream(
            rate, round(CHUNK * rate), channels=1, dtype="float32", callback=hear
        ):
            print("listening, Ctrl-C ends", file=sys.stderr)
            while True:
                yield heard.get()
    except sounddevice.PortAudioError as error:
        raise ValueError(
            f"--microphone: {error}. Is one plugged in? Or pipe samples in: arecord -t raw "
            f"-f S16_LE -r {rate} | cif-transcribe MODEL - --stream"
        ) from None
