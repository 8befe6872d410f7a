"""Train ColDec, which biases a finished Mandarin recogniser to a list of phrases.

python recipes/AISHELL-1/train_coldec.py recipes/AISHELL-1/hparams/coldec.yaml
"""

import pathlib
import sys

from cif_lobes.settings.cli import parse
from cif_lobes.settings.program import run_program


def main():
    """Train what the command line names."""
    default_yaml = pathlib.Path(__file__).parent / "hparams" / "coldec.yaml"
    arguments = parse(sys.argv[1:], default_yaml, __doc__.splitlines()[0])

    from cif_lobes.runs.coldec import run

    run(*arguments)


if __name__ == "__main__":
    run_program(main, own_debug=True)
