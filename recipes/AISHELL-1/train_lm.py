"""Train a language model on the tokens of a Mandarin recogniser.

python recipes/AISHELL-1/train_lm.py recipes/AISHELL-1/hparams/lm.yaml
"""

import pathlib
import sys

from cif_lobes.settings.cli import parse
from cif_lobes.settings.program import run_program


def main():
    """Train what the command line names."""
    default_yaml = pathlib.Path(__file__).parent / "hparams" / "lm.yaml"
    arguments = parse(sys.argv[1:], default_yaml, __doc__.splitlines()[0])

    from cif_lobes.runs.language_model import run

    run(*arguments)


if __name__ == "__main__":
    run_program(main, own_debug=True)
