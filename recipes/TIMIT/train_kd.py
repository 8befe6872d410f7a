"""Train a CTC-attention recogniser on TIMIT from what its teachers have in a cache.

python recipes/TIMIT/train_kd.py recipes/TIMIT/hparams/ctc_attention_kd.yaml --data_folder DIR
"""

from train import prepare

from cif_lobes.settings.recipe import run_recipe

if __name__ == "__main__":
    run_recipe(
        __file__,
        __doc__,
        "ctc_attention_kd.yaml",
        "cif_lobes.runs.ctc_attention",
        prepare,
    )
