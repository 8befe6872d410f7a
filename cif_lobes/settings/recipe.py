"""What every training script of a recipe does with its command line."""

import importlib
import pathlib
import sys

from cif_lobes.settings.cli import parse
from cif_lobes.settings.program import run_program


def run_recipe(script, doc, default_yaml, kind, *prepare):
    """Read the command line, then train what it names.

    Arguments
    ---------
    script, doc : str
        `__file__` and `__doc__` of the script, whose first line is its description.
    default_yaml : str
        Name of a yaml in hparams/ beside the script, used when none is named.
    kind : str
        Module whose `run` trains, such as cif_lobes.runs.cif. Imported once the arguments
        are known to be good: it is heavy, and --help needs none of it.
    *prepare : callable
        What `run` needs besides the arguments.
    """

    def main():
        yaml = pathlib.Path(script).parent / "hparams" / default_yaml
        arguments = parse(sys.argv[1:], yaml, doc.splitlines()[0])
        importlib.import_module(kind).run(*arguments, *prepare)

    run_program(main, own_debug=True)
