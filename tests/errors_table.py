"""docs/errors.md: bad inputs and the message that each gets.

    python tests/errors_table.py

writes it again. Modules `errors_*.py` beside this one have a TITLE and CASES, functions by
the input in words, or SECTIONS, several CASES by their title; each function gets an empty
folder and has to raise the message.
"""

import importlib
import logging
import pathlib
import re
import sys
import tempfile
import traceback

from cif_lobes.settings.program import describe, is_users

TESTS = pathlib.Path(__file__).resolve().parent
ROOT = TESTS.parent
PAGE = ROOT / "docs/errors.md"
HEAD = """# What goes wrong, and what is said

{count} mistakes and the message that each gets, without a traceback. Made by
`python tests/errors_table.py`, which provokes every one; a test compares.
"""


def sections():
    """(title, cases) of each part of the page."""
    names = sorted(
        p.stem for p in TESTS.glob("errors_*.py") if p.stem != "errors_table"
    )
    modules = [importlib.import_module(name) for name in names]
    return [
        section
        for module in modules
        for section in (
            module.SECTIONS.items()
            if hasattr(module, "SECTIONS")
            else [(module.TITLE, module.CASES)]
        )
    ]


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
            assert _is_told(error), f"{name}: {error!r} would be a traceback"
            said = describe(error)
        else:
            raise AssertionError(f"{name}: no message")
    said = said.replace(f"{folder}/", "").replace(str(folder), ".").strip()
    cells = (name, said.replace("|", "\\|").replace("\n", "<br>"))
    return f"| {' | '.join(cells)} |"


def _is_told(error):
    """Whether `run_program` says this error's message and nothing else."""
    if isinstance(error, SystemExit):
        return True
    source = pathlib.Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    # Of a command's own folder, which pytest is not in.
    own = any(ROOT / folder in source.parents for folder in ("recipes", "tools"))
    return isinstance(error, ValueError | OSError) and (own or is_users(error))


def main():
    """Write the page."""
    found = sections()
    lines = [HEAD.format(count=sum(len(cases) for _, cases in found))]
    for title, cases in found:
        anchor = re.sub(r"[^\w -]", "", title).lower().replace(" ", "-")
        lines.append(f"- [{title}](#{anchor}) ({len(cases)})")
    lines.append("")
    for title, cases in found:
        lines += [f"## {title}", "", "| input | message |", "|---|---|"]
        lines += [provoke(name, cause) for name, cause in cases.items()] + [""]
    PAGE.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(TESTS))
    logging.disable(logging.WARNING)
    main()
