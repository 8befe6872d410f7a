"""Make the MiniSpeech corpus: grammar.py's sentences spoken by espeak-ng.

    python mini_prepare.py DATA_FOLDER

The folder gets LibriSpeech's layout, so that LibriSpeech's own preparation reads it:
DATA_FOLDER/<split>/<speaker>/<chapter>/<speaker>-<chapter>-<utterance>.flac with one
.trans.txt per chapter. Beside the splits lie SPEAKERS.TXT (the voice of each speaker)
and one <split>.ctm per split with the true start and duration of every word.
"""

import argparse
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
from espeak import Espeak, load_espeak
from grammar import sentences
from scipy.signal import resample_poly
from tqdm import tqdm

from cif_lobes.settings.program import run_program

SAMPLE_RATE = 16000  # Hz, LibriSpeech's
MEAN_SECONDS = 2.7  # of an utterance, measured: turns hours into a number of sentences
EVAL_SHARE = 14  # one utterance of dev, and one of test, for 14 of train
MARKER = "mini_speech.json"
SPEAKERS_HEADER = "; MiniSpeech: id | split | voice | pitch | range | rate | dB | SNR"
TRAIN = "train-clean-mini"
PAUSES = 0.0  # share of sentences that are said with a pause
LONGER = 0.8  # seconds by which it is longer than the synthesiser's at a comma, at most
FORMAT = 1  # to be raised when the same plan gives other audio, so corpora are remade

# A speaker is one of espeak-ng's variants (voices/!v), so no voice is in two splits.
# Dev and test were picked among those without a near twin elsewhere (README.md).
VARIANTS = {
    TRAIN: """
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


def plan(hours, seed, pauses=PAUSES, paused=(TRAIN,)):
    """Who says what.

    Arguments
    ---------
    hours : float
        Duration of train, hours, up to a few per cent.
    seed : int
        Chooses sentences and the pitch, rate, level and noise of the speakers.
    pauses : float
        Share of sentences, 0 to 1, that get a comma: between any two of their words.
    paused : iterable of str
        Splits that have such sentences.

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
            share = pauses if split in paused else 0.0
            lines = [
                (f"{speaker.number}-1-{k:04d}", _with_pause(text, share, seed))
                for k, text in enumerate(texts[i :: len(variants)])
            ]
            chapters.append((speaker, lines))
    return chapters


def _with_pause(text, share, seed):
    """A sentence, in a share of cases with a comma between two of its words."""
    rng, words = random.Random(f"{seed} {text}"), text.split()
    if rng.random() < share:
        words[rng.randrange(len(words) - 1)] += ","
    return " ".join(words)


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
    for k, word in enumerate(text.split()):
        if word.endswith(","):
            longer = round(rng.uniform(0, LONGER) * SAMPLE_RATE)
            middle = round((words[k, 1] + words[k + 1, 0]) / 2 * SAMPLE_RATE)
            speech = np.insert(speech, middle, np.zeros(longer))
            words[k + 1 :] += longer / SAMPLE_RATE
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
        text = text.replace(",", "").upper()
        transcripts.append(f"{utterance} {text}\n")
        for word, (start, end) in zip(text.split(), words, strict=True):
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


def prepare_mini_speech(
    data_folder, hours=3.0, seed=0, pauses=PAUSES, paused=(TRAIN,), processes=None
):
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
        The same settings and seed give the same bytes.
    pauses, paused
        Of `plan`: how many sentences have a pause, in which splits.
    processes : int, optional
        How many to use at a time (default: one per core); does not change the result.

    Raises
    ------
    FileExistsError
        If data_folder holds another corpus's SPEAKERS.TXT.
    """
    data_folder = Path(data_folder)
    chapters = plan(hours, seed, pauses, paused)
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
    load_espeak()  # if it is missing, say so once, not in every child process
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
    made = {
        "hours": hours,
        "seed": seed,
        "pauses": pauses,
        "paused": [*paused],
        "plan_sha256": fingerprint,
    }
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
    add = parser.add_argument
    add("data_folder", help="where to put it")
    add("--hours", type=float, default=3.0, help="of train, hours")
    add("--seed", type=int, default=0, help="of sentences and noise")
    add("--pauses", type=float, default=PAUSES, help="share of sentences with one")
    add("--paused", nargs="*", default=[TRAIN], choices=[*VARIANTS], help="splits")
    add("--processes", type=int, default=os.cpu_count(), help="at once")
    prepare_mini_speech(**vars(parser.parse_args()))


if __name__ == "__main__":
    run_program(main)
