"""Train an adapter from a CIF recogniser into a frozen language model, and score it.

python recipes/AISHELL-1/train_llm.py recipes/AISHELL-1/hparams/llm.yaml --llm DIR
"""

import pathlib
import sys

from train import prepare

from cif_lobes.settings.cli import parse
from cif_lobes.settings.program import run_program


def main():
    """Train what the command line names."""
    default_yaml = pathlib.Path(__file__).parent / "hparams" / "llm.yaml"
    arguments = parse(sys.argv[1:], default_yaml, __doc__.splitlines()[0])

    from cif_lobes.runs.speech_llm import run

    run(*arguments, prepare)


if __name__ == "__main__":
    run_program(main, own_debug=True)
