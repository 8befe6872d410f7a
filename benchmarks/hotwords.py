"""What hotwords cost in the search: a tree of phrases, and ColDec, against none.

    python benchmarks/hotwords.py --out hotwords.md      (1 minute)

The beam search of AISHELL-1/cif.yaml's decoder over random CIF vectors, alone, with a
prefix tree of random phrases of two to four characters, and with a ColDec of the sizes of
AISHELL-1/coldec.yaml mixed in. Weights are random; rounds are interleaved and time is that
of the CPU. The encoder, which costs more than the search, is left out.
"""

import pathlib
import random
import statistics
import tempfile
from functools import partial

import torch
from interleaved import in_turn, ratio, run_benchmark
from processes import measure_apart

from cif_lobes.data.tokens import CharTokenizer
from cif_lobes.decoding.context import Context
from cif_lobes.decoding.fusion import fuse
from cif_lobes.decoding.hotwords import HotwordTree
from cif_lobes.decoding.searcher import BeamSearcher
from cif_lobes.nets.coldec import ColDec
from cif_lobes.nets.decoder import CIFDecoder

D, NHEAD, D_FFN, VOCAB = 256, 4, 2048, 4232  # AISHELL-1/cif.yaml
WAYS = ("none", "tree", "ColDec")
SIZES = {
    "batch": (8, "utterances searched at once"),
    "steps": (15, "tokens of each; AISHELL-1's transcripts have 14.4"),
    "beam": (10, "hypotheses kept"),
    "phrases": (1000, "in the list"),
    "rounds": (9, "timed rounds"),
}


def make_phrases(count, folder):
    """A tokenizer, and texts of two to four of its characters, all different."""
    characters = [chr(0x4E00 + i) for i in range(VOCAB - 4)]
    path = pathlib.Path(folder) / "chars.txt"
    tokenizer = CharTokenizer(path, VOCAB, "zh").fit(["".join(characters)])
    rng, found = random.Random(1), set()
    while len(found) < count:
        found.add("".join(rng.choices(characters, k=rng.randint(2, 4))))
    return tokenizer, sorted(found)


def measure(args, name):
    """Seconds of each way, a list over interleaved rounds."""
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    decoder = CIFDecoder(VOCAB, D, 2, NHEAD, D_FFN)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer, texts = make_phrases(args.phrases, folder)
        tree = HotwordTree([(text, 1.0) for text in texts], tokenizer)
        tokens = [tokenizer.encode(text) for text in texts]
    context = Context(ColDec(VOCAB, D).eval(), tokens)
    searchers = {
        "none": BeamSearcher(decoder, args.beam),
        "tree": BeamSearcher(
            decoder, args.beam, fuse(hotwords=tree, hotword_weight=1.0)
        ),
        "ColDec": BeamSearcher(decoder, args.beam, context=context),
    }
    vectors = torch.randn(args.batch, args.steps, D)
    lengths = torch.full((args.batch,), args.steps)
    searches = {
        way: partial(searcher.eval(), vectors, lengths)
        for way, searcher in searchers.items()
    }
    return in_turn(searches, args.rounds)


def report(args):
    times = measure_apart(__file__, args, SIZES, "times")
    lines = [
        f"{args.batch} utterances of {args.steps} steps, {VOCAB} symbols, beam "
        f"{args.beam}, {args.phrases:,} phrases. CPU, float32, 1 thread, PyTorch "
        f"{torch.__version__}, medians of {args.rounds} interleaved rounds.",
        "",
        "| way | search, ms/utterance | ratio |",
        "|---|---:|---:|",
    ]
    for way in WAYS:
        milliseconds = 1000 * statistics.median(times[way]) / args.batch
        lines.append(
            f"| {way} | {milliseconds:.1f} | {ratio(times, way, 'none'):.2f} |"
        )
    return lines


if __name__ == "__main__":
    run_benchmark(__doc__, SIZES, report, measure)
