"""Train a language model on the tokens of a Mandarin recogniser.

python recipes/AISHELL-1/train_lm.py recipes/AISHELL-1/hparams/lm.yaml
"""

from cif_lobes.settings.recipe import run_recipe

if __name__ == "__main__":
    run_recipe(__file__, __doc__, "lm.yaml", "cif_lobes.runs.language_model")
