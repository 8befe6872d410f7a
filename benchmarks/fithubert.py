"""FitHuBERT against HuBERT-base: time and multiplications for one utterance on a CPU.

    python benchmarks/fithubert.py --out fithubert.md      (2 minutes, 2 GB)

Weights are random: they change neither figure. `student` gives the frames that a
recogniser reads (40 ms, width 480); `student + head` goes back to HuBERT's frames of
20 ms and width 768. Rounds are interleaved and time is that of the CPU, so that what
else runs on the machine slows all alike; ratios are more reliable than seconds.
Multiplications are those of convolutions and matrix products. The published figures,
6.95 for HuBERT and 1.33 for the student, leave out the two products of attention.
"""

import statistics
from functools import partial

import torch
import transformers
from interleaved import in_turn, ratio, run_benchmark
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cif_lobes.nets.fithubert import FitHuBERT, HintedStudent


def make_ways():
    """Networks by name, and what runs them on signal and lengths."""
    hubert = transformers.HubertModel(transformers.HubertConfig()).eval()
    student = HintedStudent(FitHuBERT(), hint_layers=[]).eval()
    return {
        "HuBERT-base": (hubert, lambda signal, lengths: hubert(signal)),
        "student": (student.student, student.student),
        "student + head": (student, student),
    }


def giga_macs(forward, batch):
    """Billions of multiplications with addition of one pass."""
    # torch's own attention kernels are not all counted, and with gradients it does not
    # fuse whole layers, which are not counted either.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        forward(*batch)
    return counter.get_total_flops() / 2e9


@torch.no_grad()
def report(args):
    """The table, in markdown."""
    ways = make_ways()
    samples = round(16000 * args.seconds)
    batch = torch.randn(1, samples), torch.tensor([samples])
    calls = {way: partial(forward, *batch) for way, (_, forward) in ways.items()}
    seconds = in_turn(calls, args.rounds)
    lines = [
        f"{args.seconds:g} s of audio, float32, CPU, 1 thread, PyTorch "
        f"{torch.__version__}, median of {args.rounds} interleaved rounds.",
        "",
        "| | parameters, M | CPU seconds | ratio | GMAC per second of audio | ratio |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    base = giga_macs(ways["HuBERT-base"][1], batch)
    for way, (network, forward) in ways.items():
        parameters = sum(p.numel() for p in network.parameters()) / 1e6
        macs = giga_macs(forward, batch)
        lines.append(
            f"| {way} | {parameters:.1f} | {statistics.median(seconds[way]):.2f} "
            f"| {ratio(seconds, way, 'HuBERT-base'):.3f} "
            f"| {macs / args.seconds:.2f} | {macs / base:.3f} |"
        )
    return lines


SIZES = {"seconds": (15.0, "of audio"), "rounds": (7, "timed passes of each")}

if __name__ == "__main__":
    run_benchmark(__doc__, SIZES, report)
