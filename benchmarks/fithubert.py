"""FitHuBERT against HuBERT-base: time and multiplications for one utterance on a CPU.

    python benchmarks/fithubert.py --out fithubert.md      (2 minutes, 2 GB)

Weights are random: they change neither figure. `student` gives the frames that a
recogniser reads (40 ms, width 480); `student + head` goes back to HuBERT's frames of
20 ms and width 768. Rounds are interleaved and time is that of the CPU, so that what
else runs on the machine slows all alike; ratios are more reliable than seconds.
Multiplications are those of convolutions and matrix products. The published figures,
6.95 for HuBERT and 1.33 for the student, leave out the two products of attention.
"""

import argparse
import statistics
import time

import torch
import transformers
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
def cpu_seconds(ways, batch, rounds):
    """Seconds of every pass of each way, the first round, a warm-up, left out."""
    seconds = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way, (_, forward) in ways.items():
            begin = time.process_time()
            forward(*batch)
            if number:
                seconds[way].append(time.process_time() - begin)
    return seconds


def report(audio_seconds, rounds):
    """The table, in markdown."""
    ways = make_ways()
    samples = round(16000 * audio_seconds)
    batch = torch.randn(1, samples), torch.tensor([samples])
    seconds = cpu_seconds(ways, batch, rounds)
    lines = [
        f"{audio_seconds:g} s of audio, float32, CPU, 1 thread, PyTorch "
        f"{torch.__version__}, median of {rounds} interleaved rounds.",
        "",
        "| | parameters, M | CPU seconds | ratio | GMAC per second of audio | ratio |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    base = giga_macs(ways["HuBERT-base"][1], batch)
    for way, (network, forward) in ways.items():
        parameters = sum(p.numel() for p in network.parameters()) / 1e6
        pairs = zip(seconds[way], seconds["HuBERT-base"], strict=True)
        macs = giga_macs(forward, batch)
        lines.append(
            f"| {way} | {parameters:.1f} | {statistics.median(seconds[way]):.2f} "
            f"| {statistics.median(a / b for a, b in pairs):.3f} "
            f"| {macs / audio_seconds:.2f} | {macs / base:.3f} |"
        )
    return "\n".join(lines) + "\n"


def main():
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=15.0, help="of audio")
    parser.add_argument("--rounds", type=int, default=7, help="timed passes of each")
    parser.add_argument("--out", help="also write the table to this markdown file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    table = report(options.seconds, options.rounds)
    print(table, end="")
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            file.write(table)


if __name__ == "__main__":
    main()
