"""Real-time factor on one CPU thread: PyTorch against onnxruntime.

    python evaluate.py export RUN my_onnx --format onnx
    python benchmarks/onnx_rtf.py RUN my_onnx --csv test.csv --limit 20

Both recognise the same recordings greedily, one at a time, from samples in memory to
tokens, each recording by both before the next, in turns first. Time is that of the CPU,
so that what else runs on the machine slows both alike; even so, the ratio is more
reliable than the factors.
"""

import argparse
import os
import statistics
import time

os.environ["OMP_NUM_THREADS"] = "1"

import torch  # noqa: E402

from cif_lobes.data.batches import read_utterance  # noqa: E402
from cif_lobes.data.manifest import read_manifest  # noqa: E402
from cif_lobes.inference.onnx import OnnxRecognizer  # noqa: E402
from cif_lobes.inference.recognizer import CIFRecognizer  # noqa: E402


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="output_folder of a training run")
    parser.add_argument("onnx", help="its ONNX export")
    parser.add_argument("--csv", required=True, help="recordings (ID, wav, wrd)")
    parser.add_argument("--limit", type=int, default=20, help="how many of them")
    given = parser.parse_args()
    torch.set_num_threads(1)
    recognizer = CIFRecognizer.from_run(given.run, {"beam_size": 1})
    onnx = OnnxRecognizer(given.onnx, threads=1)

    @torch.no_grad()
    def with_torch(signal):
        fired = recognizer.fire(signal[None], torch.ones(1))
        return recognizer.searcher(fired.embeddings, fired.lengths)

    ways = {"torch": with_torch, "onnx": lambda signal: onnx.transcribe(signal.numpy())}
    utterances = read_manifest(given.csv)[: given.limit]
    signals = [read_utterance(u, recognizer.sample_rate) for u in utterances]
    for way in ways.values():
        way(signals[0])  # memory, caches
    seconds = {name: [] for name in ways}
    for number, signal in enumerate(signals):
        for name in sorted(ways, reverse=number % 2):
            began = time.process_time()
            ways[name](signal)
            seconds[name].append(time.process_time() - began)
    duration = sum(len(signal) for signal in signals) / recognizer.sample_rate
    print(f"{len(signals)} recordings, {duration:.0f} s of audio, one thread")
    for name, spent in seconds.items():
        print(f"{name:6} real-time factor {sum(spent) / duration:.4f}")
    ratios = [t / o for t, o in zip(seconds["torch"], seconds["onnx"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"torch / onnx: median {middle:.2f}, quartiles {low:.2f} to {high:.2f}")


if __name__ == "__main__":
    main()
