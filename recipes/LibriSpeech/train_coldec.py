"""Train ColDec, which biases a finished English recogniser to a list of phrases.

python recipes/LibriSpeech/train_coldec.py recipes/LibriSpeech/hparams/coldec.yaml
"""

from cif_lobes.settings.recipe import run_recipe

if __name__ == "__main__":
    run_recipe(__file__, __doc__, "coldec.yaml", "cif_lobes.runs.coldec")
