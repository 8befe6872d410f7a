"""8-bit integers against floats, by onnxruntime on one CPU thread: size, time, errors.

    python evaluate.py export RUN my_onnx --format onnx
    python evaluate.py export RUN my_int8 --format onnx --int8
    python benchmarks/onnx_int8.py --floats my_onnx --int8 my_int8 --csv test.csv

Both recognise the same recordings greedily, one at a time, in rounds that are interleaved.
Time is that of the CPU, from samples in memory to text.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import pathlib  # noqa: E402

from interleaved import in_turn, ratio, run_benchmark  # noqa: E402

from cif_lobes.data.batches import read_utterance  # noqa: E402
from cif_lobes.data.manifest import read_manifest  # noqa: E402
from cif_lobes.decoding.scoring import ErrorRate  # noqa: E402
from cif_lobes.inference.onnx import OnnxRecognizer  # noqa: E402


def report(args):
    """A row for each export."""
    folders = {"floats": args.floats, "int8": args.int8}
    recognizers = {name: OnnxRecognizer(folder) for name, folder in folders.items()}
    utterances = read_manifest(args.csv)
    rate = recognizers["floats"].sample_rate
    signals = [read_utterance(u, rate).numpy() for u in utterances]
    timed = signals[: args.limit]
    ways = {
        name: lambda r=r: [r.transcribe(signal) for signal in timed]
        for name, r in recognizers.items()
    }
    seconds = in_turn(ways, args.rounds)
    duration = sum(len(signal) for signal in timed) / rate
    lines = [
        f"{len(timed)} recordings, {duration:.0f} s of audio, {args.rounds} rounds; errors "
        f"of {len(signals)} recordings.\n",
        "| weights | MB | real-time factor | time against floats | errors |",
        "|---|---:|---:|---:|---|",
    ]
    for name, recognizer in recognizers.items():
        size = sum(f.stat().st_size for f in pathlib.Path(folders[name]).glob("*.onnx"))
        texts = [recognizer.transcribe(signal).text for signal in signals]
        errors = ErrorRate(args.unit)
        ids = [u.id for u in utterances]
        errors.append(ids, texts, [u.wrd for u in utterances])
        spent = min(seconds[name]) / duration
        against = ratio(seconds, name, "floats")
        said = ErrorRate.describe(errors.summary())
        lines.append(
            f"| {name} | {size / 1e6:.2f} | {spent:.4f} | {against:.2f} | {said} |"
        )
    return lines


SIZES = {
    "floats": ("my_onnx", "ONNX export"),
    "int8": ("my_int8", "the same with --int8"),
    "csv": ("test.csv", "recordings (ID, wav, wrd)"),
    "unit": ("word", "char or word: CER or WER"),
    "limit": (20, "recordings that are timed"),
    "rounds": (5, "of timing"),
}

if __name__ == "__main__":
    run_benchmark(__doc__, SIZES, report)
