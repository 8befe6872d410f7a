"""How many clips of speech and of other sounds a recogniser takes for no speech.

    python benchmarks/no_speech.py --csv dev.csv test.csv --out docs/benchmarks/no_speech.md

Speech is that of the csv files, as it is, with noise, in pieces, in a room; the other
sounds are made here, 3 s each. What is taken for no speech gets no text.
"""

import argparse
import pathlib

import numpy as np

from cif_lobes.data.batches import read_audio
from cif_lobes.data.manifest import read_manifest
from cif_lobes.inference.recordings import is_steady

RATE, CLIPS = 16000, 100


def coloured(rng, slope, size=3 * RATE):
    """Noise whose power falls with frequency ** slope, of RMS 1."""
    spectrum = np.fft.rfft(rng.standard_normal(size))
    hertz = np.maximum(np.arange(len(spectrum)) * RATE / size, 20)
    noise = np.fft.irfft(spectrum / hertz ** (slope / 2), size)
    return noise / noise.std()


def chord(rng):
    """Four notes of five harmonics each, held, with vibrato."""
    time, rate, sound = np.arange(3 * RATE) / RATE, rng.uniform(4.5, 6.5), 0.0
    for pitch in rng.uniform(100, 300) * np.array([1, 1.26, 1.5, 2]):
        depth, phase = rng.uniform(0.005, 0.02) * pitch, rng.uniform(0, 6)
        swing = depth / rate * np.cos(2 * np.pi * rate * time + phase)
        angle = 2 * np.pi * pitch * time - swing
        sound = sound + sum(np.sin(h * angle) / h for h in range(1, 6))
    return sound * (1 + rng.uniform(0.1, 0.4) * np.sin(2 * np.pi * rate * time))


def tune(rng):
    """Plucked notes one after the other, 0.15 to 0.6 s each."""
    notes = []
    while sum(map(len, notes)) < 3 * RATE:
        time = np.arange(int(rng.uniform(0.15, 0.6) * RATE)) / RATE
        angle = 2 * np.pi * 220 * 2 ** (rng.integers(0, 18) / 12) * time
        decay = np.exp(-time * rng.uniform(1, 6)) * np.minimum(1, time / 0.01)
        notes.append(decay * sum(np.sin(h * angle) / h for h in range(1, 6)))
    return np.concatenate(notes)[: 3 * RATE]


def room(rng, signal, seconds=0.5):
    """Speech with an echo of so long a time to fall by 60 dB."""
    size = int(seconds * RATE)
    echo = rng.standard_normal(size) * 10 ** (-3 * np.arange(size) / size)
    echo[0] = 8
    length = len(signal) + size
    spectrum = np.fft.rfft(signal, length) * np.fft.rfft(echo, length)
    return np.fft.irfft(spectrum, length)


def with_noise(rng, signal, snr, slope):
    noise = coloured(rng, slope, len(signal))
    return signal + noise * signal.std() * 10 ** (-snr / 20)


def pieces(signals, seconds):
    size = int(seconds * RATE)
    starts = [(signal, (len(signal) - size) // 2) for signal in signals]
    return [signal[a : a + size] for signal, a in starts if a >= 0]


def clips(speech):
    """Sounds by what they are, in the order of the table."""
    rng = np.random.default_rng(0)
    sounds = {"speech": speech}
    for snr in 10, 5, 0:
        for colour, slope in ("white", 0), ("pink", 1), ("brown", 2):
            noisy = [with_noise(rng, signal, snr, slope) for signal in speech]
            sounds[f"speech, {colour} noise, {snr} dB"] = noisy
    sounds["speech in a room, 0.5 s"] = [room(rng, signal) for signal in speech]
    for seconds in 0.5, 1, 2:
        sounds[f"{seconds} s of speech"] = short = pieces(speech, seconds)
        noisy = [with_noise(rng, signal, 10, 0) for signal in short]
        sounds[f"{seconds} s of speech, white noise, 10 dB"] = noisy
    for colour, slope in ("white", 0), ("pink", 1), ("brown", 2):
        sounds[f"{colour} noise"] = [coloured(rng, slope) for _ in range(CLIPS)]
    sounds["held chords with vibrato"] = [chord(rng) for _ in range(CLIPS)]
    sounds["plucked tunes"] = [tune(rng) for _ in range(CLIPS)]
    return sounds


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--csv", nargs="+", required=True, help="speech")
    parser.add_argument("--out", help="markdown file (default: print)")
    given = parser.parse_args(argv)
    rows = [row for csv in given.csv for row in read_manifest(csv)]
    speech = [read_audio(row.wav, RATE).numpy() for row in rows]
    lines = ["| sound | clips | no speech |", "|---|---|---|"]
    for name, sounds in clips(speech).items():
        taken = sum(is_steady(sound, RATE) for sound in sounds)
        lines.append(f"| {name} | {len(sounds)} | {taken} |")
    text = f"{__doc__.splitlines()[0]}\n\n" + "\n".join(lines) + "\n"
    if given.out:
        pathlib.Path(given.out).write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
