"""The API reference from the docstrings, as pages that open without a network.

python tools/api_reference.py site

Made by pdoc (`make docs` installs it). Sections are named as SpeechBrain names them:
what it calls Arguments, pdoc knows as Parameters.
"""

import argparse
import pathlib
import re
import sys

from cif_lobes.settings.program import Parser, run_program

ARGUMENTS = re.compile(r"^Arguments\n-{9}$", re.MULTILINE)


def build(folder):
    """Write the pages into a folder.

    Arguments
    ---------
    folder : pathlib.Path
    """
    try:
        import pdoc
    except ModuleNotFoundError:
        sys.exit("pdoc is missing: pip install 'cif-lobes[docs]'")
    convert = pdoc.docstrings.numpy

    def numpy(docstring):
        return convert(ARGUMENTS.sub("Parameters\n----------", docstring))

    pdoc.docstrings.numpy = numpy
    pdoc.render.configure(docformat="numpy")
    # A server of pages runs when it is asked to; nothing else does on import.
    pdoc.pdoc("cif_lobes", "!cif_lobes.inference.serve.page", output_directory=folder)


def main():
    parser = Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=pathlib.Path, help="folder to write")
    build(parser.parse_args().folder)


if __name__ == "__main__":
    run_program(main)
