"""Train ColDec, which biases a finished Mandarin recogniser to a list of phrases.

python recipes/AISHELL-1/train_coldec.py recipes/AISHELL-1/hparams/coldec.yaml
"""

from cif_lobes.settings.recipe import run_recipe

if __name__ == "__main__":
    run_recipe(__file__, __doc__, "coldec.yaml", "cif_lobes.runs.coldec")
