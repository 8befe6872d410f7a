"""Distil HuBERT or wav2vec 2.0 into a small student, from audio alone.

python recipes/LibriSpeech/train_fithubert.py recipes/LibriSpeech/hparams/fithubert_100h.yaml --data_folder DIR
"""  # noqa: E501

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
        test_splits=[],
        max_rejected=hparams["max_rejected"],
        check_audio=hparams["check_audio"],
    )


def main():
    """Train what the command line names."""
    default_yaml = pathlib.Path(__file__).parent / "hparams" / "fithubert_100h.yaml"
    arguments = parse(sys.argv[1:], default_yaml, __doc__.splitlines()[0])

    from cif_lobes.runs.fithubert import run

    run(*arguments, prepare)


if __name__ == "__main__":
    run_program(main, own_debug=True)
