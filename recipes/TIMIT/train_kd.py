"""Train a CTC-attention recogniser on TIMIT from what its teachers have in a cache.

python recipes/TIMIT/train_kd.py recipes/TIMIT/hparams/ctc_attention_kd.yaml --data_folder DIR
"""

from train import main

if __name__ == "__main__":
    main("ctc_attention_kd.yaml", __doc__.splitlines()[0])
