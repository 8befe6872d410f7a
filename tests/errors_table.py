"""docs/errors.md: bad inputs and the message that each gets.

    python tests/errors_table.py

writes it again. Modules `errors_*.py` beside this one have a TITLE and CASES, functions by
the input in words; each gets an empty folder and has to raise the message.
"""

import importlib
import logging
import pathlib
import sys
import tempfile

TESTS = pathlib.Path(__file__).parent
PAGE = TESTS.parent / "docs/errors.md"
HEAD = """# What goes wrong, and what is said

Made by `python tests/errors_table.py`, which provokes every message; a test compares.
"""


def sections():
    """(title, cases) of each part of the page."""
    names = sorted(
        p.stem for p in TESTS.glob("errors_*.py") if p.stem != "errors_table"
    )
    modules = [importlib.import_module(name) for name in names]
    return [(module.TITLE, module.CASES) for module in modules]


def provoke(name, cause):
    """The row of one bad input.

    Arguments
    ---------
    name : str
        The input, in words.
    cause : callable
        Gets an empty folder (pathlib.Path); must end with an exception or sys.exit.

    Returns
    -------
    str
        A row of Markdown, the folder's name left out.
    """
    with tempfile.TemporaryDirectory() as folder:
        # Where a link leads (macOS: /tmp), messages say so too.
        folder = pathlib.Path(folder).resolve()
        try:
            cause(folder)
        except (Exception, SystemExit) as error:
            said = str(error)
        else:
            raise AssertionError(f"{name}: no message")
    said = said.replace(f"{folder}/", "").replace(str(folder), ".").strip()
    cells = (name, said.replace("|", "\\|").replace("\n", "<br>"))
    return f"| {' | '.join(cells)} |"


def main():
    """Write the page."""
    lines = [HEAD]
    for title, cases in sections():
        lines += [f"## {title}", "", "| input | message |", "|---|---|"]
        lines += [provoke(name, cause) for name, cause in cases.items()] + [""]
    PAGE.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(TESTS))
    logging.disable(logging.WARNING)
    main()
