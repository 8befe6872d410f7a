"""Train a CIF recogniser on LibriSpeech, or on your own English csv files, and score it.

python recipes/LibriSpeech/train.py recipes/LibriSpeech/hparams/cif.yaml --data_folder DIR
"""

from cif_lobes.settings.recipe import run_recipe


def prepare(hparams):
    """Write the corpus's manifests."""
    from librispeech_prepare import prepare_librispeech

    prepare_librispeech(
        hparams["data_folder"],
        hparams["manifest_folder"],
        train_splits=hparams["train_splits"],
        valid_splits=hparams["valid_splits"],
        test_splits=hparams.get("test_splits", []),
        max_rejected=hparams["max_rejected"],
        check_audio=hparams["check_audio"],
    )


if __name__ == "__main__":
    run_recipe(__file__, __doc__, "cif.yaml", "cif_lobes.runs.cif", prepare)
