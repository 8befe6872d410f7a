"""Train an adapter from a CIF recogniser into a frozen language model, and score it.

python recipes/AISHELL-1/train_llm.py recipes/AISHELL-1/hparams/llm.yaml --llm DIR
"""

from train import prepare

from cif_lobes.settings.recipe import run_recipe

if __name__ == "__main__":
    run_recipe(__file__, __doc__, "llm.yaml", "cif_lobes.runs.speech_llm", prepare)
