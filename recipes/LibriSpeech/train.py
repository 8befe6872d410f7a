"""Train a CIF recogniser on LibriSpeech, or on your own English csv files, and score it.

python recipes/LibriSpeech/train.py recipes/LibriSpeech/hparams/cif.yaml --data_folder DIR
"""

import pathlib
import sys

from cif_lobes.settings.cli import parse
from cif_lobes.settings.program import run_program


def prepare(hparams):
    """Write the corpus's manifests."""
    from librispeech_prepare import prepare_librispeech

    prepare_librispeech(
        hparams["data_folder"],
        hparams["manifest_folder"],
        train_splits=hparams["train_splits"],
        valid_splits=hparams["valid_splits"],
        test_splits=hparams["test_splits"],
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
