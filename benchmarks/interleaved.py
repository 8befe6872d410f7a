"""What benchmarks share: ways in turn, ratios within a round, a table on the screen.

What else runs on the machine slows all ways of a round alike, so that the ratio of two
ways, taken in each round, says more than their seconds.
"""

import argparse
import json
import statistics
import time

import torch


def in_turn(ways, rounds, clock=time.process_time):
    """Seconds of each way in every round; a round before them warms up.

    Arguments
    ---------
    ways : dict of str to callable
    rounds : int
    clock : callable
        In seconds: of the processor, or `time.perf_counter`.

    Returns
    -------
    dict of str to list of float
    """
    seconds = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            begin = clock()
            way()
            if number:
                seconds[name].append(clock() - begin)
    return seconds


def ratio(seconds, way, base):
    """Median of a way's seconds over another's of the same round."""
    pairs = zip(seconds[way], seconds[base], strict=True)
    return statistics.median(a / b for a, b in pairs)


def run_benchmark(description, sizes, report, measure=None):
    """The command line of a benchmark.

    Arguments
    ---------
    description : str
        Its first line is printed by --help.
    sizes : dict of str to (object, str)
        Default and explanation of each argument.
    report : callable
        From the arguments to the lines of the table, in markdown.
    measure : callable, optional
        From the arguments and the name of a measurement to what JSON can hold, for
        measurements in processes of their own: see `processes.measure_apart`.
    """
    parser = argparse.ArgumentParser(
        description=description.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for name, (default, text) in sizes.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=text)
    parser.add_argument("--out", help="also write the table to this markdown file")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(0)
    if args.measure:
        print(json.dumps(measure(args, args.measure)))
        return
    table = "\n".join(report(args)) + "\n"
    print(table, end="")
    if args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            file.write(table)
