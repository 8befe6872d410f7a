"""What a command line says of a mistake, for docs/errors.md."""

import contextlib
import io
import os
from unittest import mock

from conftest import ROOT


def refused(read, *words):
    """A bad input: words that a command line does not take.

    Arguments
    ---------
    read : callable
        From a list of words to settings; argparse leaves it by sys.exit.
    *words : str

    Returns
    -------
    callable
        For `CASES` of an errors_*.py; its folder is the checkout.
    """

    def cause(folder):
        said, here = io.StringIO(), os.getcwd()
        os.chdir(ROOT)  # messages name files as they are typed there
        try:
            with (
                contextlib.redirect_stderr(said),
                mock.patch("sys.argv", ["train.py"]),
            ):
                read([*words])
        except SystemExit:
            pass
        else:
            return
        finally:
            os.chdir(here)
        # Without usage and the name of the program, which is pytest's here.
        text = said.getvalue()
        raise SystemExit(
            (text.partition("error: ") if "error: " in text else text.partition(": "))[
                2
            ]
        )

    return cause
