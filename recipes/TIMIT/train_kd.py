"""Train a CTC-attention recogniser on TIMIT from what its teachers have in a cache.

python recipes/TIMIT/train_kd.py recipes/TIMIT/hparams/ctc_attention_kd.yaml --data_folder DIR
"""

from train import main

from cif_lobes.settings.program import run_program

if __name__ == "__main__":
    run_program(
        lambda: main("ctc_attention_kd.yaml", __doc__.splitlines()[0]), own_debug=True
    )
