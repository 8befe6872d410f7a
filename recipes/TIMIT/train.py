"""Train a CTC-attention recogniser on TIMIT, or on your own csv files, and score it.

python recipes/TIMIT/train.py recipes/TIMIT/hparams/ctc_attention.yaml --data_folder DIR
"""

from cif_lobes.settings.recipe import run_recipe


def prepare(hparams):
    """Write the corpus's manifests."""
    from timit_prepare import prepare_timit

    prepare_timit(
        hparams["data_folder"],
        hparams["manifest_folder"],
        max_rejected=hparams["max_rejected"],
        check_audio=hparams["check_audio"],
    )


if __name__ == "__main__":
    run_recipe(
        __file__, __doc__, "ctc_attention.yaml", "cif_lobes.runs.ctc_attention", prepare
    )
