"""Train a CTC-attention recogniser on TIMIT, or on your own csv files, and score it.

python recipes/TIMIT/train.py recipes/TIMIT/hparams/ctc_attention.yaml --data_folder DIR
"""

import pathlib
import sys

from cif_lobes.settings.cli import parse
from cif_lobes.settings.program import run_program


def prepare(hparams):
    """Write the corpus's manifests."""
    from timit_prepare import prepare_timit

    prepare_timit(
        hparams["data_folder"],
        hparams["manifest_folder"],
        max_rejected=hparams["max_rejected"],
        check_audio=hparams["check_audio"],
    )


def main(default_yaml, description):
    """Train what the command line names."""
    folder = pathlib.Path(__file__).parent / "hparams"
    arguments = parse(sys.argv[1:], folder / default_yaml, description)

    from cif_lobes.runs.ctc_attention import run

    run(*arguments, prepare)


if __name__ == "__main__":
    run_program(
        lambda: main("ctc_attention.yaml", __doc__.splitlines()[0]), own_debug=True
    )
