"""Distil HuBERT, wav2vec 2.0, WavLM, data2vec or Whisper into a small student, from audio alone.

python recipes/LibriSpeech/train_fithubert.py recipes/LibriSpeech/hparams/fithubert_100h.yaml --data_folder DIR
"""  # noqa: E501

from train import prepare

from cif_lobes.settings.recipe import run_recipe

if __name__ == "__main__":
    run_recipe(
        __file__, __doc__, "fithubert_100h.yaml", "cif_lobes.runs.fithubert", prepare
    )
