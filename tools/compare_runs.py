"""Compare two rows by a paired bootstrap over the utterances or speakers of a scored set.

python tools/compare_runs.py --split test --ours results/AISHELL-1/cif_mini_hieradist/1 results/AISHELL-1/cif_mini_hieradist/2 --baseline results/AISHELL-1/cif_mini/1 results/AISHELL-1/cif_mini/2
"""  # noqa: E501

import argparse
import pathlib

from cif_lobes.data.manifest import read_rows
from cif_lobes.decoding.significance import compare_runs
from cif_lobes.settings.program import run_program


def parse_arguments():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--split", default="test", help="scored set (default: test)")
    for row in ("ours", "baseline"):
        parser.add_argument(
            f"--{row}",
            type=pathlib.Path,
            nargs="+",
            required=True,
            metavar="RUN",
            help="run folders of a row, one per seed",
        )
    parser.add_argument(
        "--speakers",
        metavar="CSV",
        help="manifest of the set: draw its speakers (spk_id) instead of utterances",
    )
    return parser.parse_args()


def main(arguments):
    """Print the rates of both rows, their difference and its interval."""
    speakers = None
    if arguments.speakers:
        speakers = {u.id: u.spk_id for u in read_rows(arguments.speakers)}
    result = compare_runs(
        arguments.ours, arguments.baseline, arguments.split, speakers=speakers
    )
    of = f" of {result['speakers']} speakers, who are drawn" if speakers else ""
    print(
        f"{arguments.split}, {result['utterances']} utterances{of}: ours "
        f"{result['ours']:.2f} %, baseline {result['baseline']:.2f} %, difference "
        f"{result['difference']:+.2f} points ({result['relative']:+.1%}), 95 % interval "
        f"{result['low']:+.2f} to {result['high']:+.2f}; ours is better in "
        f"{result['better']:.1%} of {result['resamples']:,} resamples"
    )


if __name__ == "__main__":
    run_program(lambda: main(parse_arguments()))
