"""espeak-ng, called as a library: text to a waveform and the times of its words."""

import ctypes
import re
from pathlib import Path

import numpy as np

ESPEAK_RATE = 22050  # Hz


class _Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("phoneme", ctypes.c_char * 8),
    ]


_SYNTH_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)
_LIST_TERMINATED, _WORD, _PHONEME = 0, 1, 7  # espeak_EVENT_TYPE
_AUDIO_OUTPUT_SYNCHRONOUS, _PHONEME_EVENTS, _CHARS_UTF8 = 2, 1, 1
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4  # espeak_PARAMETER


def load_espeak():
    """espeak-ng's shared library, and the folder of its data."""
    try:
        import espeakng_loader
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "MiniSpeech is spoken by espeak-ng, which is not installed. "
            "Run: pip install espeakng-loader"
        ) from error
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    return library, Path(espeakng_loader.get_data_path())


class Espeak:
    """espeak-ng with the voice of one speaker; one per process.

    The library keeps state that no call resets (oscillator phases, random numbers), so
    what it says can be repeated from the start of a process only.

    Arguments
    ---------
    speaker : Speaker
        Whose voice.
    """

    def __init__(self, speaker):
        self.espeak, data = load_espeak()
        # espeak-ng quietly speaks with the plain accent if the variant is not there.
        variant = data / "voices" / "!v" / speaker.voice.split("+")[1]
        if not variant.is_file():
            raise FileNotFoundError(
                f"{variant} is missing: espeak-ng is not of the version MiniSpeech is "
                "made with. Run: pip install espeakng-loader==0.2.4"
            )
        rate = self.espeak.espeak_Initialize(
            _AUDIO_OUTPUT_SYNCHRONOUS, 0, str(data).encode(), _PHONEME_EVENTS
        )
        if rate != ESPEAK_RATE:
            raise RuntimeError(f"espeak_Initialize gave {rate}, expected {ESPEAK_RATE}")
        self._callback = _SYNTH_CALLBACK(self._receive)  # or it is garbage-collected
        self.espeak.espeak_SetSynthCallback(self._callback)
        self.espeak.espeak_ng_SetRandSeed(ctypes.c_long(speaker.number))
        self.espeak.espeak_SetVoiceByName(speaker.voice.encode())
        for parameter, value in (
            (_RATE, speaker.rate),
            (_VOLUME, 30),  # of 100: some variants saturate at the default
            (_PITCH, speaker.pitch),
            (_RANGE, speaker.pitch_range),
        ):
            self.espeak.espeak_SetParameter(parameter, value, 0)

    def _receive(self, samples, num_samples, events):
        if samples and num_samples:
            self._samples.append(np.ctypeslib.as_array(samples, (num_samples,)).copy())
        for event in events:
            if event.type == _LIST_TERMINATED:
                break
            if event.type == _WORD:
                self._starts.append(event.sample)
            elif event.type == _PHONEME and event.phoneme.startswith(b"_"):
                self._pauses.append(event.sample)
        return 0

    def say(self, text):
        """Speak.

        Arguments
        ---------
        text : str
            Words separated by blanks; behind one with a comma the speaker pauses.

        Returns
        -------
        samples : numpy.ndarray, [samples], float64 in [-1, 1]
            Waveform at ESPEAK_RATE.
        words : numpy.ndarray, [words, 2], float64
            Start and end of each word, seconds.
        """
        self._samples, self._starts, self._pauses = [], [], []
        # Over plain blanks espeak-ng runs pairs like "in the" together into one event;
        # no-break spaces keep a word a word, with the same phonemes.
        encoded = re.sub("(?<!,) ", "\N{NO-BREAK SPACE}", text).encode()
        size = ctypes.c_size_t(len(encoded) + 1)
        self.espeak.espeak_Synth(encoded, size, 0, 1, 0, _CHARS_UTF8, None, None)
        self.espeak.espeak_Synchronize()
        if len(self._starts) != len(text.split()):
            raise RuntimeError(
                f"espeak-ng marked {len(self._starts)} words in {text!r}, "
                f"which has {len(text.split())}"
            )
        samples = np.concatenate(self._samples) / 2**15
        # A word lasts until the next word, or until the pause before it.
        stops = [*self._starts, *self._pauses, len(samples)]
        ends = [min(s for s in stops if s > start) for start in self._starts]
        return samples, np.array([self._starts, ends]).T / ESPEAK_RATE
