"""Train a CIF recogniser on AISHELL-1, or on your own Mandarin csv files, and score it.

python recipes/AISHELL-1/train.py recipes/AISHELL-1/hparams/cif.yaml --data_folder DIR
"""

from cif_lobes.settings.recipe import run_recipe


def prepare(hparams):
    """Write the corpus's manifests."""
    from aishell_prepare import prepare_aishell

    prepare_aishell(
        hparams["data_folder"],
        hparams["manifest_folder"],
        max_rejected=hparams["max_rejected"],
        check_audio=hparams["check_audio"],
    )


if __name__ == "__main__":
    run_recipe(__file__, __doc__, "cif.yaml", "cif_lobes.runs.cif", prepare)
