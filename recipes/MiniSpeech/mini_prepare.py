"""Make the MiniSpeech corpus: grammar.py's sentences spoken by espeak-ng.

    python mini_prepare.py DATA_FOLDER

The folder gets LibriSpeech's layout, so that LibriSpeech's own preparation reads it:
DATA_FOLDER/<split>/<speaker>/<chapter>/<speaker>-<chapter>-<utterance>.flac with one
.trans.txt per chapter. Beside the splits lie SPEAKERS.TXT (the voice of each speaker)
and one <split>.ctm per split with the true start and duration of every word.
"""

import argparse
import ctypes
import hashlib
import json
import multiprocessing
import os
import random
import shutil
from dataclasses import astuple, dataclass
from itertools import islice
from multiprocessing import connection
from pathlib import Path

import numpy as np
import soundfile
from grammar import sentences
from scipy.signal import resample_poly
from tqdm import tqdm

from cif_lobes.settings.program import run_program

SAMPLE_RATE = 16000  # Hz, LibriSpeech's
ESPEAK_RATE = 22050  # Hz
MEAN_SECONDS = 2.7  # of an utterance, measured: turns hours into a number of sentences
EVAL_SHARE = 14  # one utterance of dev, and one of test, for 14 of train
MARKER = "mini_speech.json"
SPEAKERS_HEADER = "; MiniSpeech: id | split | voice | pitch | range | rate | dB | SNR"
FORMAT = 1  # to be raised when the same plan gives other audio, so corpora are remade

# A speaker is one of espeak-ng's variants (voices/!v), so no voice is in two splits.
# Dev and test were picked among those without a near twin elsewhere (README.md).
VARIANTS = {
    "train-clean-mini": """
        m1 f2 Alex m3 f4 klatt4 Andy grandma john m4 steph Gene klatt6 anika adam Mike
        benjamin aunty Henrique m6 belinda Reed m7 steph2 rob max m8 steph3 edward2
        antonio Hugo klatt5 croak fast anikaRobot Gene2 iven Michael miguel robert
        announcer grandpa iven3 Jacky klatt klatt2 michel mike2 Nguyen Diogo iven4
        RicishayMax RicishayMax2 RicishayMax3 robosoft robosoft2 robosoft3 robosoft4
        robosoft5 robosoft6 robosoft7 robosoft8 Storm Tweaky UniRobot
    """,
    "dev-clean-mini": "f5 Andrea linda m5 paul sandro Mario klatt3 Denis pedro",
    "test-clean-mini": "f1 f3 Annie m2 pablo david edward victor quincy ed",
}
ACCENTS = ("en-us", "en-gb-x-rp", "en-us-nyc", "en", "en-gb-scotland")


@dataclass(frozen=True)
class Speaker:
    """A voice, and how it is recorded."""

    number: int  # LibriSpeech's speaker id: 1xxx in train, 2xxx in dev, 3xxx in test
    split: str
    voice: str  # espeak-ng's name of accent and variant, "en-us+f3"
    pitch: int  # 0 to 100; 50 leaves the variant as it is
    pitch_range: int  # 0 to 100; 50 leaves the variant as it is
    rate: int  # words per minute
    level: float  # RMS of the speech, dB relative to full scale
    snr: float  # speech over background noise, dB


def plan(hours, seed):
    """Who says what.

    Arguments
    ---------
    hours : float
        Duration of train, hours, up to a few per cent.
    seed : int
        Chooses sentences and the pitch, rate, level and noise of the speakers.

    Returns
    -------
    list of (Speaker, list of (str, str))
        For each speaker the utterance ids and their sentences. No sentence comes twice.

    Example
    -------
    >>> speaker, lines = plan(hours=0.01, seed=0)[0]
    >>> speaker.voice, lines[0][0]
    ('en-us+m1', '1000-1-0000')
    """
    num_train = max(1, round(hours * 3600 / MEAN_SECONDS))
    num_eval = max(10, num_train // EVAL_SHARE)
    pool = iter(sentences(num_train + 2 * num_eval, seed))
    chapters = []
    for thousand, split in enumerate(VARIANTS, start=1):
        variants = VARIANTS[split].split()
        texts = list(islice(pool, num_train if thousand == 1 else num_eval))
        for i, variant in enumerate(variants[: len(texts)]):
            rng = random.Random(f"{seed} {split} {variant}")
            speaker = Speaker(
                number=1000 * thousand + i,
                split=split,
                voice=f"{ACCENTS[i % len(ACCENTS)]}+{variant}",
                pitch=rng.randint(35, 65),
                pitch_range=rng.randint(35, 65),
                rate=rng.randint(150, 190),
                level=round(rng.uniform(-32, -22), 1),
                snr=round(rng.uniform(20, 30), 1),
            )
            lines = [
                (f"{speaker.number}-1-{k:04d}", text)
                for k, text in enumerate(texts[i :: len(variants)])
            ]
            chapters.append((speaker, lines))
    return chapters


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


def _load_espeak():
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
        self.espeak, data = _load_espeak()
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
            Words separated by blanks.

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
        encoded = text.replace(" ", "\N{NO-BREAK SPACE}").encode()
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


def _pink_noise(num_samples, rng):
    """Noise of unit RMS with power 1/f, as the rumble of a room has."""
    spectrum = np.fft.rfft(rng.standard_normal(1 << num_samples.bit_length()))
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    spectrum[0] = 0
    noise = np.fft.irfft(spectrum)[:num_samples]
    return noise / noise.std()


def _record(espeak, speaker, text, rng):
    """The recording at SAMPLE_RATE, and start and end of each word in seconds."""
    speech, words = espeak.say(text)
    speech = resample_poly(speech, 320, 441)  # 22050 -> 16000 Hz
    speech *= 10 ** (speaker.level / 20) / speech.std()
    before, after = (rng.uniform(0.1, 0.4, 2) * SAMPLE_RATE).astype(int)
    signal = np.pad(speech, (before, after))
    noise_level = 10 ** ((speaker.level - speaker.snr) / 20)
    signal += noise_level * _pink_noise(len(signal), rng)
    signal *= min(1, 0.99 / np.abs(signal).max())
    return signal, words + before / SAMPLE_RATE


def _record_chapter(speaker, lines, seed, folder):
    """Write all that a speaker says: .flac, .trans.txt, and .ctm for the split's."""
    espeak = Espeak(speaker)
    chapter = folder / speaker.split / str(speaker.number) / "1"
    chapter.mkdir(parents=True)
    transcripts, alignment = [], []
    for k, (utterance, text) in enumerate(lines):
        rng = np.random.default_rng([seed, speaker.number, k])
        signal, words = _record(espeak, speaker, text, rng)
        soundfile.write(chapter / f"{utterance}.flac", signal, SAMPLE_RATE)
        transcripts.append(f"{utterance} {text.upper()}\n")
        for word, (start, end) in zip(text.upper().split(), words, strict=True):
            alignment.append(f"{utterance} 1 {start:.3f} {end - start:.3f} {word}\n")
    name = f"{speaker.number}-1"
    (chapter / f"{name}.trans.txt").write_text("".join(transcripts))
    (folder / f"{name}.ctm").write_text("".join(alignment))


def _record_all(chapters, seed, folder, num_processes):
    """Record each speaker in a process of its own: see Espeak."""
    # The server imports once what its children would import one by one.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["scipy.signal", "soundfile", "tqdm"])
    waiting, running = chapters[::-1], {}
    with tqdm(total=len(chapters), unit="speaker", disable=None) as progress:
        while waiting or running:
            while waiting and len(running) < num_processes:
                speaker, lines = waiting.pop()
                process = context.Process(
                    target=_record_chapter, args=(speaker, lines, seed, folder)
                )
                process.start()
                running[process.sentinel] = process, speaker
            for sentinel in connection.wait(running):
                process, speaker = running.pop(sentinel)
                process.join()
                progress.update()
                if process.exitcode != 0:
                    raise RuntimeError(
                        f"recording speaker {speaker.number} ({speaker.voice}) ended "
                        f"with exit code {process.exitcode}; its own message is above"
                    )


def _write_tables(chapters, folder):
    """SPEAKERS.TXT, and the chapters' alignments joined into one file per split."""
    rows = [" | ".join(map(str, astuple(speaker))) for speaker, _ in chapters]
    (folder / "SPEAKERS.TXT").write_text("\n".join([SPEAKERS_HEADER, *rows]) + "\n")
    for split in VARIANTS:
        with open(folder / f"{split}.ctm", "w") as ctm:
            for speaker, _ in chapters:
                if speaker.split == split:
                    part = folder / f"{speaker.number}-1.ctm"
                    ctm.write(part.read_text())
                    part.unlink()


def _count(data_folder):
    """Number of recordings in each split."""
    return {
        split: len(list((data_folder / split).glob("*/*/*.flac"))) for split in VARIANTS
    }


def prepare_mini_speech(data_folder, hours=3.0, seed=0, processes=None):
    """Make the corpus, unless it is there already.

    It is made in a hidden folder and moved into place when whole; the marker,
    mini_speech.json, comes last. Where the marker is missing, tells of other settings
    or counts other files than there are, all is made again.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        Where to put it.
    hours : float
        Duration of train, hours; dev and test get a fourteenth of it each, and 10
        utterances at least.
    seed : int
        The same hours and seed give the same bytes.
    processes : int, optional
        How many to use at a time (default: one per core); does not change the result.

    Raises
    ------
    FileExistsError
        If data_folder holds another corpus's SPEAKERS.TXT.
    """
    data_folder = Path(data_folder)
    chapters = plan(hours, seed)
    description = json.dumps([FORMAT, [(astuple(who), said) for who, said in chapters]])
    fingerprint = hashlib.sha256(description.encode()).hexdigest()
    marker, speakers = data_folder / MARKER, data_folder / "SPEAKERS.TXT"
    made = json.loads(marker.read_text()) if marker.exists() else {}
    if made.get("plan_sha256") == fingerprint and made["files"] == _count(data_folder):
        print(f"{data_folder}: MiniSpeech is complete, nothing to do")
        return
    if speakers.exists() and not speakers.read_text().startswith(SPEAKERS_HEADER):
        raise FileExistsError(
            f"{speakers} is not MiniSpeech's: {data_folder} seems to hold another "
            "corpus. Choose another folder"
        )
    _load_espeak()  # if it is missing, say so once, not in every child process
    partial = data_folder / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _record_all(chapters, seed, partial, processes or os.cpu_count())
    _write_tables(chapters, partial)

    marker.unlink(missing_ok=True)
    for item in list(partial.iterdir()):
        target = data_folder / item.name
        if target.is_dir():
            shutil.rmtree(target)
        item.replace(target)
    made = {"hours": hours, "seed": seed, "plan_sha256": fingerprint}
    made["files"] = _count(data_folder)
    (partial / MARKER).write_text(json.dumps(made, indent=2) + "\n")
    (partial / MARKER).replace(marker)
    partial.rmdir()
    for split, number in made["files"].items():
        files = (data_folder / split).glob("*/*/*.flac")
        seconds = sum(soundfile.info(file).duration for file in files)
        print(f"{data_folder / split}: {number} utterances, {seconds / 60:.1f} minutes")


def main():
    """Command line."""
    defaults = argparse.ArgumentDefaultsHelpFormatter
    about = "Make the MiniSpeech corpus in LibriSpeech's layout."
    parser = argparse.ArgumentParser(description=about, formatter_class=defaults)
    parser.add_argument("data_folder", help="where to put it")
    parser.add_argument("--hours", type=float, default=3.0, help="of train, hours")
    parser.add_argument("--seed", type=int, default=0, help="of sentences and noise")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="at once")
    prepare_mini_speech(**vars(parser.parse_args()))


if __name__ == "__main__":
    run_program(main)
