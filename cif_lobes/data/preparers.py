"""What all corpus preparers share besides `cif_lobes.data.validation`."""

import argparse
import logging

logger = logging.getLogger(__name__)


def preparer_options(doc, data_folder):
    """Command line that every corpus preparer has.

    Arguments
    ---------
    doc : str
        What it does.
    data_folder : str
        What that folder holds.

    Returns
    -------
    argparse.ArgumentParser
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_folder", help=data_folder)
    parser.add_argument("save_folder", help="receives the csv files")
    parser.add_argument(
        "--max_rejected",
        type=float,
        default=0.01,
        help="largest share of a csv, 0 to 1, that may be rejected [%(default)s]",
    )
    parser.add_argument(
        "--check_audio",
        choices=("full", "header"),
        default="full",
        help="decode every file once, or read its header only [%(default)s]",
    )
    return parser


def check_counts(split, found, published):
    """Print counts beside the published ones; warn if they differ, as a subset does.

    Arguments
    ---------
    split : str
    found, published : dict of str to int
        For instance {"utterances": 7176, "characters": 104765}.
    """
    print(f"{split:<16}{'found':>12}{'published':>12}")
    for what, count in published.items():
        print(f"  {what:<14}{found[what]:>12,}{count:>12,}")
    if found != published:
        logger.warning(
            f"{split} is not the published one: its results do not compare. Unless it "
            "is meant to be a part, see rejected.csv or download the corpus again"
        )
