"""A training step of AISHELL-1/cif.yaml with --compile against one without.

    python benchmarks/compiled.py --out compiled.md      (half an hour on a CPU)
    python benchmarks/compiled.py --device cuda --seconds 300 --precision bf16

The same batches in turn, as in benchmarks/training.py; compiling is done before the first
round and its seconds are given apart. The losses of the last round differ by the random
numbers of dropout, which TorchInductor draws otherwise.
"""

import time

import torch
from interleaved import ratio, run_benchmark
from torch._dynamo.utils import counters
from training import make_batches, make_cif, seconds_of


def report(args):
    """The table."""
    options = {"device": args.device, "precision": args.precision}
    brains = {
        "as written": make_cif(options),
        "compiled": make_cif({**options, "compile": True}),
    }
    batches = make_batches(args)
    seconds = {way: [] for way in brains}
    first = {}
    for number in range(args.rounds + 1):
        for way, brain in brains.items():
            begin = time.perf_counter()
            total = sum(seconds_of(brain, batch, args.device) for batch in batches)
            if number:
                seconds[way].append(total)
            else:
                first[way] = time.perf_counter() - begin
    lines = [
        "| network | first round, s | round, s | ratio |",
        "|---|---:|---:|---:|",
    ]
    for way in brains:
        median = sorted(seconds[way])[len(seconds[way]) // 2]
        share = ratio(seconds, way, "as written")
        lines.append(f"| {way} | {first[way]:.0f} | {median:.2f} | {share:.2f} |")
    lines += [
        "",
        f"{args.batches} batches of at most {args.seconds:g} s, {args.rounds} rounds, "
        f"{args.device}, {args.precision}, torch {torch.__version__}; "
        f"{counters['stats']['unique_graphs']} graphs.",
    ]
    return lines


if __name__ == "__main__":
    run_benchmark(
        __doc__,
        {
            "seconds": (20.0, "of audio in a batch"),
            "batches": (4, "of other lengths"),
            "rounds": (5, "that are timed"),
            "device": ("cpu", "cpu or cuda"),
            "precision": ("fp32", "fp32 or bf16"),
        },
        report,
    )
