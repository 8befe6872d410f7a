"""Search over fires against SpeechBrain's search with cross-attention.

    python benchmarks/decoding.py --out decoding.md      (2 minutes)

Both searches read the frames of the same encoder, that of AISHELL-1/cif.yaml. `cif`
integrates them and runs this package's BeamSearcher with that recipe's decoder of two
layers. `cross-attention` is speechbrain.decoders.S2STransformerBeamSearcher with a
TransformerASR decoder of six; it reads all tokens so far again at every step.

Weights are random, and both take as many steps: CIF is told how often to fire, the
other may end neither earlier nor later. Rounds are interleaved and time is that of the
CPU, so that what else runs on the machine slows both alike. A real-time factor (RTF) is
seconds of computation per second of audio. The peak is what one search adds to a
process of its own; Linux only.
"""

import statistics
from functools import partial

import torch
from interleaved import in_turn, ratio, run_benchmark
from processes import KEEP_MEMORY, measure_apart, memory_status
from speechbrain.decoders import S2STransformerBeamSearcher
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain.nnet.linear import Linear

from cif_lobes.cif import CIF
from cif_lobes.decoding.searcher import BeamSearcher
from cif_lobes.nets.decoder import CIFDecoder
from cif_lobes.nets.encoder import ConformerEncoder

D, NHEAD, D_FFN, VOCAB = 256, 4, 2048, 4232  # AISHELL-1/cif.yaml
BEAMS = (1, 10)
SIZES = {
    "batch": (8, "utterances searched at once"),
    "seconds": (5.0, "duration of each"),
    "steps": (15, "tokens of each; AISHELL-1's transcripts have 14.4"),
    "layers": (6, "of the decoder with cross-attention"),
    "rounds": (5, "timed rounds"),
}


def make_cif(beam_size, layers):
    """From frames [B, T, D] and a number of steps to hypotheses."""
    cif, decoder = CIF(D), CIFDecoder(VOCAB, D, 2, NHEAD, D_FFN)
    searcher = BeamSearcher(decoder, beam_size).eval()

    def search(encoded, steps):
        x_lengths = torch.full((len(encoded),), encoded.shape[1])
        fired = cif.eval()(encoded, x_lengths, torch.full_like(x_lengths, steps))
        return searcher(fired.embeddings, fired.lengths)[0]

    return search


def make_cross_attention(beam_size, layers):
    """The same for SpeechBrain's."""
    model = TransformerASR(VOCAB, D, D, NHEAD, 0, layers, D_FFN, causal=False)
    head = Linear(input_size=D, n_neurons=VOCAB)

    def search(encoded, steps):
        # Steps per frame; half a step more, because the product is rounded down.
        ratio = (steps + 0.5) / encoded.shape[1]
        searcher = S2STransformerBeamSearcher(
            modules=[model, head],
            bos_index=1,
            eos_index=2,
            min_decode_ratio=ratio,
            max_decode_ratio=ratio,
            beam_size=beam_size,
        ).eval()
        hypotheses = searcher(encoded, torch.ones(len(encoded)))[0]
        # The last step's token is taken for an end of sentence and dropped.
        assert all(len(tokens) == steps - 1 for tokens in hypotheses)
        return hypotheses

    return search


WAYS = {"cif": make_cif, "cross-attention": make_cross_attention}


def measure_times(args):
    """Seconds of the encoder and of each search, a list over interleaved rounds."""
    frames = round(100 * args.seconds)
    features = torch.randn(args.batch, frames, 80)
    x_lengths = torch.full((args.batch,), frames)
    encoder = ConformerEncoder(80, D, 15, NHEAD, D_FFN, 15, pool_after=[5, 10]).eval()
    encoded, _ = encoder(features, x_lengths)
    work = {"encoder": partial(encoder, features, x_lengths)}
    for beam_size in BEAMS:
        for way, make in WAYS.items():
            search = make(beam_size, args.layers)
            work[f"{way} {beam_size}"] = partial(search, encoded, args.steps)
    return in_turn(work, args.rounds)


def measure_peak(args, name):
    """Megabytes that a search adds to the process at its highest."""
    way, beam_size = name.split()
    search = WAYS[way](int(beam_size), args.layers)
    encoded = torch.randn(args.batch, round(100 * args.seconds / 8), D)
    # Code that PyTorch loads on first use is no memory of the search.
    search(encoded[:1], 2)
    before = memory_status("VmRSS")
    search(encoded, args.steps)
    return memory_status("VmHWM") - before


def report(args):
    names = [f"{way} {beam_size}" for beam_size in BEAMS for way in WAYS]
    times = measure_apart(__file__, args, SIZES, "times", KEEP_MEMORY)
    peaks = {name: measure_apart(__file__, args, SIZES, name) for name in names}
    audio = args.batch * args.seconds
    encoder = statistics.median(times["encoder"])
    lines = [
        f"{args.batch} utterances of {args.seconds:g} s, {args.steps} steps, "
        f"{VOCAB} symbols; cross-attention of {args.layers} layers. CPU, float32, 1 "
        f"thread, PyTorch {torch.__version__}, medians of {args.rounds} interleaved "
        f"rounds. RTF of the encoder, in both: {encoder / audio:.4f}.",
        "",
        "| beam | way | search, ms/utterance | ratio | RTF | RTF with encoder "
        "| peak MB | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in names:
        way, beam_size = name.split()
        ours = f"cif {beam_size}"
        seconds = statistics.median(times[name])
        lines.append(
            f"| {beam_size} | {way} | {1000 * seconds / args.batch:.1f} "
            f"| {ratio(times, name, ours):.1f} "
            f"| {seconds / audio:.4f} | {(encoder + seconds) / audio:.4f} "
            f"| {peaks[name]:.1f} | {peaks[name] / peaks[ours]:.1f} |"
        )
    return lines


def measure(args, name):
    """times, or the peak of a way."""
    torch.set_grad_enabled(False)
    return measure_times(args) if name == "times" else measure_peak(args, name)


if __name__ == "__main__":
    run_benchmark(__doc__, SIZES, report, measure)
