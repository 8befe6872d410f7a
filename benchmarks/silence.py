"""Error rate with silence around and within speech, and at other levels.

    python benchmarks/silence.py RUN --csv dev.csv --limit 48 --out docs/benchmarks/silence.md

RUN is the output_folder of a training run, an export, or an ONNX export. Every recording
is recognised as it is, then with digital zeros or white noise before it, behind it, and
in its quietest place near its middle, then louder and fainter. The noise's RMS is in dB
of full scale, that of the speech is printed.

The quietest place of speech without pauses is often within a word, the closure of a
plosive. With --ctm, the true times of the words, silence is also put between the two
words whose border is nearest to the middle, which is where speakers pause.
"""

import argparse
import itertools
import pathlib
import sys

import torch

from cif_lobes.data.batches import read_audio
from cif_lobes.data.manifest import read_manifest
from cif_lobes.data.text import normalize
from cif_lobes.decoding.scoring import NAMES, ErrorRate
from cif_lobes.inference.folders import open_recognizer
from cif_lobes.inference.lines import Lines
from cif_lobes.inference.live import CHUNK
from cif_lobes.inference.stream import StreamingRecognizer
from cif_lobes.inference.windows import find_pause

PLACES = ("before", "behind", "within")
BETWEEN = "between words"
NOISE_DB = (None, -60, -40)  # None: digital zeros
SECONDS = (0.5, 1.0, 5.0)
GAINS = (0.05, 0.2, 5.0, 20.0)


def surround(signal, silence, place, sample_rate, border=None):
    """Put silence [S] before, behind or within signal [samples], or at a border."""
    first, second = signal, signal[:0]
    if place == "before":
        first, second = second, first
    if place == BETWEEN:
        cut = round(border * sample_rate)
        first, second = signal[:cut], signal[cut:]
    if place == "within":
        third = len(signal) // 3
        cut = third + find_pause(signal[third : 2 * third].numpy(), sample_rate)
        first, second = signal[:cut], signal[cut:]
    return torch.cat([first, silence, second])


def read_borders(ctm, rows):
    """Seconds of the border between words nearest to the middle of each recording."""
    starts = {}
    for line in pathlib.Path(ctm).read_text(encoding="utf-8").splitlines():
        utterance, _, start, *_ = line.split()
        starts.setdefault(utterance, []).append(float(start))
    return [
        min(starts[row.id][1:], key=lambda start: abs(start - row.duration / 2))
        for row in rows
    ]


def make_silence(seconds, noise_db, sample_rate):
    """Zeros, or the same white noise for all recordings, [samples]."""
    size = round(seconds * sample_rate)
    if noise_db is None:
        return torch.zeros(size)
    noise = torch.randn(size, generator=torch.Generator().manual_seed(0))
    return 10 ** (noise_db / 20) * noise


def open_whole(folder):
    """From waveforms to texts, their sample rate and language."""
    recognizer, hparams = open_recognizer(folder, beam=1)

    def recognize(signals):
        return [t.text for t in recognizer.transcribe(signals, max_seconds=60.0)]

    language = (
        hparams["tokenizer"].language if hparams else recognizer.settings["language"]
    )
    return recognize, recognizer.sample_rate, language


def open_stream(folder):
    """As `open_whole`; recordings arrive in chunks, lines are joined."""
    recognizer = StreamingRecognizer.from_folder(folder)
    rate, language = recognizer.sample_rate, recognizer.tokenizer.language

    def recognize(signal):
        lines = Lines(recognizer)
        for chunk in signal.split(round(CHUNK * rate)):
            lines.push(chunk)
        lines.finish()
        return ("" if language == "zh" else " ").join(lines.finished)

    return lambda signals: [recognize(signal) for signal in signals], rate, language


def measure(folder, csv, limit=None, ctm=None, stream=False):
    """Error rates in %, of recordings of at least two words if there is a ctm.

    Returns
    -------
    unit : str
        "char" or "word".
    level : float
        Mean RMS of the recordings, dB of full scale.
    rates : dict
        By (noise_db, seconds, place), by gain, and by "as it is".
    """
    open_folder = open_stream if stream else open_whole
    recognize, sample_rate, language = open_folder(folder)
    unit = "char" if language == "zh" else "word"
    rows = read_manifest(csv)[:limit]
    borders = read_borders(ctm, rows) if ctm else [None] * len(rows)
    places = (*PLACES, BETWEEN) if ctm else PLACES
    signals = [read_audio(row.wav, sample_rate) for row in rows]
    texts = [normalize(row.wrd, language) for row in rows]

    def rate(changed):
        errors = ErrorRate(unit)
        errors.append([row.id for row in rows], recognize(changed), texts)
        print(errors.describe(errors.summary()), file=sys.stderr)
        return errors.summary()["error_rate"]

    rates = {"as it is": rate(signals)}
    for noise_db, seconds, place in itertools.product(NOISE_DB, SECONDS, places):
        silence = make_silence(seconds, noise_db, sample_rate)
        changed = [
            surround(signal, silence, place, sample_rate, border)
            for signal, border in zip(signals, borders, strict=True)
        ]
        rates[noise_db, seconds, place] = rate(changed)
    for gain in GAINS:
        rates[gain] = rate([gain * signal for signal in signals])
    power = torch.stack([signal.square().mean() for signal in signals])
    return unit, float(10 * power.log10().mean()), rates


def table(unit, level, rates, title):
    """Markdown."""
    plain = rates["as it is"]
    places = [*PLACES, BETWEEN] if (None, 1.0, BETWEEN) in rates else PLACES
    lines = [
        f"{title}: {NAMES[unit]} {plain:.1f} % as they are, speech of {level:.0f} dB.",
        "",
        "| silence | seconds | " + " | ".join(places) + " |",
        "|---|---|" + "---|" * len(places),
    ]
    for noise_db, seconds in itertools.product(NOISE_DB, SECONDS):
        name = "zeros" if noise_db is None else f"noise, {noise_db} dB"
        found = [f"{rates[noise_db, seconds, place]:.1f}" for place in places]
        lines.append(f"| {name} | {seconds:g} | {' | '.join(found)} |")
    levels = ", ".join(f"{rates[gain]:.1f} at x {gain:g}" for gain in GAINS)
    lines += ["", f"Other levels: {levels}. At worst, points more:"]
    for place in places:
        worst = max(rates[n, s, place] for n, s in itertools.product(NOISE_DB, SECONDS))
        lines.append(f"- {place}: {worst - plain:+.1f}")
    lines.append("")
    return "\n".join(lines)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", help="run folder, export or ONNX export")
    add("--csv", required=True, help="recordings (ID, wav, wrd)")
    add("--limit", type=int, help="how many of them, from the first on (default: all)")
    add(
        "--ctm",
        help="true times of their words (utterance, channel, start, length, word)",
    )
    add("--stream", action="store_true", help="in chunks, by a streaming recogniser")
    add("--out", help="markdown file (default: print)")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    measured = measure(given.model, given.csv, given.limit, given.ctm, given.stream)
    count = len(read_manifest(given.csv)[: given.limit])
    title = f"{count} recordings of {pathlib.Path(given.csv).stem}"
    text = table(*measured, title)
    if given.out:
        pathlib.Path(given.out).write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
