"""CIF, forward and backward: the staircase against the usual ways to write it.

    python benchmarks/cif.py --out cif.md      (3 minutes, 2 GB)
    python benchmarks/cif.py --all             (`loop` at the largest size, too)

`staircase` is `cif`, `dense` is `cif_dense` (forward only). `scatter` adds the left and
the right share of every frame with scatter_add, as github.com/George0828Zhang/torch_cif
does. `loop` walks over the frames with the whole batch, as FunASR and WeNet do. All are
given weights to scale to T / 4 tokens. Rounds are interleaved and time is that of the
CPU, so that what else runs on the machine slows all of them alike; even so, ratios are
more reliable than milliseconds. The peak is that of the bytes PyTorch allocates within
one pass, in multiples of the bytes of x: x, alpha and the gradient from above are not
in it, outputs and gradients are.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from itertools import accumulate

import torch
from processes import KEEP_MEMORY

from cif_lobes.cif import cif, cif_dense

SIZES = [(8, 100, 256), (16, 400, 256), (32, 800, 256), (16, 1600, 512)]
ENVIRONMENT = KEEP_MEMORY | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


def staircase(x, alpha, x_lengths, target_lengths):
    return cif(x, alpha, x_lengths, target_lengths).embeddings


def dense(x, alpha, x_lengths, target_lengths):
    return cif_dense(x, alpha, x_lengths, target_lengths).embeddings


def scale(alpha, x_lengths, target_lengths):
    padding_mask = torch.arange(alpha.shape[1]) >= x_lengths[:, None]
    alpha = alpha.masked_fill(padding_mask, 0.0)
    return alpha * (target_lengths / alpha.sum(1))[:, None]


def scatter(x, alpha, x_lengths, target_lengths):
    B, _, D = x.shape
    U = int(target_lengths.max())
    alpha = scale(alpha, x_lengths, target_lengths)
    c = alpha.cumsum(1)
    with torch.no_grad():
        right = c.floor().long().clamp(max=U)
        left = right.roll(1, dims=1)
        left[:, 0] = 0
        fires = right - left
        skipped = (fires - 1).clamp(min=0)
    right_weight = torch.where(fires > 0, c - right, 0.0)
    left_weight = alpha - right_weight - skipped
    out = x.new_zeros(B, U + 1, D)
    for token, weight in (left, left_weight), (right, right_weight):
        rows = token.unsqueeze(2).expand(-1, -1, D)
        out = out.scatter_add(1, rows, weight.unsqueeze(2) * x)
    # Tokens that lie within one frame.
    for nth in range(1, int(skipped.max()) + 1):
        rows = (left + nth).clamp(max=U).unsqueeze(2).expand(-1, -1, D)
        out = out.scatter_add(1, rows, (skipped >= nth).unsqueeze(2) * x)
    return out[:, :U]


def loop(x, alpha, x_lengths, target_lengths):
    B, T, D = x.shape
    alpha = scale(alpha, x_lengths, target_lengths)
    accumulator, token = x.new_zeros(B), x.new_zeros(B, D)
    fires, tokens = [], []
    for t in range(T):
        fire = accumulator + alpha[:, t] >= 1.0
        used = torch.where(fire, 1.0 - accumulator, alpha[:, t])
        left = alpha[:, t] - used
        token = token + used[:, None] * x[:, t]
        fires.append(fire)
        tokens.append(token)
        token = torch.where(fire[:, None], left[:, None] * x[:, t], token)
        accumulator = torch.where(fire, left, accumulator + alpha[:, t])
    fires, tokens = torch.stack(fires, dim=1), torch.stack(tokens, dim=1)
    out = x.new_zeros(B, int(target_lengths.max()), D)
    for b, u in enumerate(target_lengths):
        # Rounding may keep the last token from firing.
        fired = tokens[b, fires[b]][:u]
        out[b, : len(fired)] = fired
    return out


WAYS = {"staircase": staircase, "dense": dense, "scatter": scatter, "loop": loop}


def make_batch(B, T, D):
    torch.manual_seed(0)
    x = torch.randn(B, T, D, requires_grad=True)
    alpha = torch.rand(B, T).mul_(0.5).requires_grad_()
    lengths = torch.full((B,), T), torch.full((B,), T // 4)
    return (x, alpha, *lengths), torch.randn(B, T // 4, D)


def step(way, arguments, grad):
    """One pass; backward if there is a gradient from above."""
    x, alpha, *lengths = arguments
    if grad is None:
        return WAYS[way](x.detach(), alpha.detach(), *lengths)
    x.grad = alpha.grad = None
    WAYS[way](*arguments).backward(grad)


def check(size, ways):
    """All ways compute the same, but for the last token, which `loop` may lose."""
    arguments, grad = make_batch(*size)
    expected = step("staircase", arguments, None)
    for way in ways:
        output = step(way, arguments, None)
        torch.testing.assert_close(
            output[:, :-1], expected[:, :-1], atol=1e-2, rtol=0.0
        )


def milliseconds(size, ways, rounds, loop_rounds, backward):
    """Median over the rounds of each way."""
    arguments, grad = make_batch(*size)
    times = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way in ways:
            if way == "loop" and number > loop_rounds:
                continue
            begin = time.process_time()
            step(way, arguments, grad if backward else None)
            times[way].append(1e3 * (time.process_time() - begin))
    # The first round warms up.
    return {way: statistics.median(values[1:]) for way, values in times.items()}


def print_peak(way, size, backward):
    """Most bytes held at once, as a multiple of the bytes of x."""
    arguments, grad = make_batch(*size)
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profiler:
        step(way, arguments, grad if backward else None)
    changes = [
        (event.start_ns(), event.nbytes())
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    held = accumulate(change for _, change in sorted(changes))
    print(max(held) / arguments[0].nbytes)


def peak(way, size, backward):
    """The same in a process of its own: in one that keeps its memory, the records of
    the profiler scatter over it until none is left."""
    command = [sys.executable, __file__, "--peak", way, *map(str, size), str(backward)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    quiet = subprocess.DEVNULL
    return float(subprocess.check_output(command, env=environment, stderr=quiet))


def report(sizes, rounds, loop_rounds, everything):
    lines = [
        f"PyTorch {torch.__version__}, CPU, float32, 1 thread, medians of {rounds} "
        f"interleaved rounds ({loop_rounds} for `loop`); peak memory in multiples of x.",
        "",
        "| (B, T, D) | way | forward ms | ratio | forward+backward ms | ratio | peak |",
        "|---|---|---|---|---|---|---|",
    ]
    for size in sizes:
        ways = [way for way in WAYS if way != "loop" or everything or size != SIZES[-1]]
        check(size, ways)
        forward = milliseconds(size, ways, rounds, loop_rounds, backward=False)
        trained = [way for way in ways if way != "dense"]
        both = milliseconds(size, trained, rounds, loop_rounds, backward=True)
        for way in ways:
            row = [str(size), way]
            for times in forward, both:
                if way in times:
                    row.append(f"{times[way]:.3f}")
                    row.append(f"{times[way] / times['staircase']:.1f}")
                else:
                    row += ["-", "-"]
            row.append(f"{peak(way, size, way in both):.2f}")
            lines.append(f"| {' | '.join(row)} |")
            print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def main():
    if sys.argv[1:2] == ["--peak"]:
        way, *size, backward = sys.argv[2:]
        torch.set_num_threads(1)
        return print_peak(way, tuple(map(int, size)), backward == "True")
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        # The allocator reads them when the process starts.
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ENVIRONMENT)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", help="write the table, in markdown, to this file")
    parser.add_argument("--rounds", type=int, default=30, help="passes of each way")
    parser.add_argument("--loop_rounds", type=int, default=1, help="passes of `loop`")
    parser.add_argument("--all", action="store_true", help="`loop` at the largest size")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = report(SIZES, options.rounds, options.loop_rounds, options.all)
    if options.out:
        with open(options.out, "w") as file:
            file.write(table)
    else:
        print("\n" + table)


if __name__ == "__main__":
    main()
