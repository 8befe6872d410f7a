"""Seconds per hour of audio of check_audio full (decode) against header.

    python benchmarks/check_audio.py

In turn over the same files, on one core; 12 s each, as LibriSpeech's are in the mean.
"""

import pathlib
import sys
import tempfile
import time

import numpy as np
import soundfile

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from cif_lobes.data.audio_files import examine  # noqa: E402
from cif_lobes.data.manifest import Utterance, measure  # noqa: E402

SECONDS, FILES, ROUNDS, RATE = 12, 20, 5, 16000
FORMATS = {
    "wav": {},
    "flac": {},
    "mp3": {},
    "opus": {"format": "OGG", "subtype": "OPUS"},
}


def write(folder, suffix, form):
    """Files of noise with the level of speech; their paths."""
    rng, paths = np.random.default_rng(0), []
    for number in range(FILES):
        paths.append(str(folder / f"{number}.{suffix}"))
        noise = rng.standard_normal(SECONDS * RATE)
        # Pauses and louder parts, as codecs are fast over silence.
        envelope = np.sin(np.pi * np.arange(len(noise)) / RATE) ** 2
        soundfile.write(paths[-1], 0.1 * noise * envelope, RATE, **form)
    return paths


def spent(function, paths):
    """CPU seconds."""
    began = time.process_time()
    for path in paths:
        function(path)
    return time.process_time() - began


def main():
    """Print a line for each format."""
    ways = {
        "full": examine,
        "header": lambda path: measure(Utterance("", None, path, "", "")),
    }
    for suffix, form in FORMATS.items():
        with tempfile.TemporaryDirectory() as folder:
            paths = write(pathlib.Path(folder), suffix, form)
            totals = dict.fromkeys(ways, 0.0)
            for number in range(ROUNDS):
                for name in sorted(ways, reverse=number % 2):
                    totals[name] += spent(ways[name], paths)
        hours = ROUNDS * FILES * SECONDS / 3600
        full, header = totals["full"] / hours, totals["header"] / hours
        print(f"{suffix:5} full {full:5.2f} s, header {header:.2f} s per hour of audio")


if __name__ == "__main__":
    main()
