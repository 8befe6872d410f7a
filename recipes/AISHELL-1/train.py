"""Train a CIF recogniser on AISHELL-1, or on your own Mandarin csv files, and score it.

python recipes/AISHELL-1/train.py recipes/AISHELL-1/hparams/cif.yaml --data_folder DIR
"""

import pathlib
import sys

from cif_lobes.settings.cli import parse
from cif_lobes.settings.program import run_program


def prepare(hparams):
    """Write the corpus's manifests."""
    from aishell_prepare import prepare_aishell

    prepare_aishell(
        hparams["data_folder"],
        hparams["manifest_folder"],
        max_rejected=hparams["max_rejected"],
        check_audio=hparams["check_audio"],
    )


def main():
    """Train what the command line names."""
    default_yaml = pathlib.Path(__file__).parent / "hparams" / "cif.yaml"
    arguments = parse(sys.argv[1:], default_yaml, __doc__.splitlines()[0])

    from cif_lobes.runs.cif import run

    run(*arguments, prepare)


if __name__ == "__main__":
    run_program(main, own_debug=True)
