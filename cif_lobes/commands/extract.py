"""Compute what a teacher says once, for all training utterances.

The states of a text teacher, or, from a yaml with a list of `teachers`, the posteriors
of an ensemble of recognisers.

python extract_teacher.py [build] recipes/AISHELL-1/hparams/extract_bert.yaml
python extract_teacher.py inspect recipes/AISHELL-1/hparams/extract_bert.yaml
python extract_teacher.py verify recipes/AISHELL-1/hparams/extract_bert.yaml

build    makes the cache; after an interruption the same command goes on
inspect  says what a cache holds and whether the teacher's states can be told apart
verify   checks a cache against its manifests and computes a sample of it again
"""

import pathlib
import sys

from cif_lobes.settings.cli import parse
from cif_lobes.settings.program import run_program

VERBS = ("build", "inspect", "verify")
# Of a checkout; beside an installed package there are no recipes.
ROOT = pathlib.Path(__file__).parents[2]
DEFAULT = ROOT / "recipes/AISHELL-1/hparams/extract_bert.yaml"


def main(argv):
    """Read the verb, the yaml and its settings, and do it."""
    verb = "build"
    if argv and argv[0] in VERBS:
        verb, *argv = argv
    arguments = parse(argv, DEFAULT, __doc__)

    # Heavy, so not before the arguments are known to be good.
    from cif_lobes.cache import extraction

    extraction.run(verb, *arguments)


def program():
    """extract_teacher.py, and cif-extract of the installed package."""
    run_program(lambda: main(sys.argv[1:]), own_debug=True)
