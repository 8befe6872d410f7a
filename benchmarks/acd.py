"""Acoustic contrastive distillation: one matrix product and a mask, against gathering.

    python benchmarks/acd.py --out acd.md

`gather` is the way of the authors' code (github.com/MingLunHan/CIF-HieraDist): copy the
N x K x H states of the negatives, normalise the copy, multiply it with the anchors.
It needs about 5 GB and a minute; Linux only, because of the peak memory.
"""

import statistics
import time
from functools import partial

import torch
import torch.nn.functional as F
from interleaved import in_turn, ratio, run_benchmark
from processes import KEEP_MEMORY, measure_apart, memory_status

from cif_lobes.losses.contrastive import contrastive_distillation

TEMPERATURE = 0.02
SIZES = {
    "tokens": (956, "target tokens of the batch (the published setting's average)"),
    "negatives": (700, "negatives per token"),
    "width": (768, "width of the teacher states"),
    "rounds": (7, "timed rounds"),
}


def masked(student, teacher, num_negatives):
    return contrastive_distillation(student, teacher, TEMPERATURE, num_negatives).loss


def gather(student, teacher, num_negatives):
    num_tokens = len(student)
    drawn = torch.multinomial(torch.ones(num_tokens, num_tokens), num_negatives)
    negatives = F.normalize(teacher[drawn], dim=-1, eps=1e-6)
    student = F.normalize(student, dim=-1, eps=1e-6)
    teacher = F.normalize(teacher, dim=-1, eps=1e-6)
    positive = (student * teacher).sum(-1, keepdim=True)
    negative = (student.unsqueeze(1) @ negatives.transpose(1, 2)).squeeze(1)
    own = torch.arange(num_tokens).unsqueeze(1)
    logits = torch.cat([positive, negative.masked_fill(drawn == own, -1e9)], dim=1)
    labels = torch.zeros(num_tokens, dtype=torch.long)
    return F.cross_entropy(logits / TEMPERATURE, labels, reduction="sum")


WAYS = {"masked": masked, "gather": gather}


def step(way, states, num_negatives):
    """Forward and backward; returns the loss in nats per token."""
    student, teacher = states
    student.grad = None
    loss = WAYS[way](student, teacher, num_negatives)
    loss.backward()
    return loss.item() / len(student)


def make_states(num_tokens, width):
    """A student early in training: its cosine to the teacher is about 0.07."""
    teacher = torch.randn(num_tokens, width)
    student = teacher + 15 * torch.randn(num_tokens, width)
    return student.requires_grad_(), teacher


def measure_times(args):
    """Seconds of each way in interleaved rounds: other load hits both alike."""
    states = make_states(args.tokens, args.width)
    losses = {way: step(way, states, args.negatives) for way in WAYS}
    ways = {way: partial(step, way, states, args.negatives) for way in WAYS}
    seconds = in_turn(ways, args.rounds, time.perf_counter)
    return {"seconds": seconds, "losses": losses}


def measure_peak(args, way):
    """Megabytes that one step adds to the process at its highest."""
    states = make_states(args.tokens, args.width)
    # Code that PyTorch loads on first use is no memory of the loss.
    step(way, make_states(8, args.width), 4)
    before = memory_status("VmRSS")
    step(way, states, args.negatives)
    return memory_status("VmHWM") - before


def report(args):
    times = measure_apart(__file__, args, SIZES, "times", KEEP_MEMORY)
    peaks = {way: measure_apart(__file__, args, SIZES, way) for way in WAYS}
    lines = [
        f"N = {args.tokens} tokens, K = {args.negatives} negatives, H = {args.width}, "
        f"float32, CPU, 1 thread, PyTorch {torch.__version__}, median of "
        f"{args.rounds} interleaved rounds. Ratios to `masked`.",
        "",
        "| way | forward + backward, ms | ratio | peak MB | ratio | nats/token |",
        "|---|---|---|---|---|---|",
    ]
    seconds = times["seconds"]
    for way in WAYS:
        lines.append(
            f"| {way} | {1000 * statistics.median(seconds[way]):.1f} "
            f"| {ratio(seconds, way, 'masked'):.1f} "
            f"| {peaks[way]:.1f} | {peaks[way] / peaks['masked']:.1f} "
            f"| {times['losses'][way]:.3f} |"
        )
    return lines


def measure(args, name):
    """times, or the peak of a way."""
    return measure_times(args) if name == "times" else measure_peak(args, name)


if __name__ == "__main__":
    run_benchmark(__doc__, SIZES, report, measure)
