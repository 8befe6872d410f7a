"""Every bad input gets the message that docs/errors.md says."""

import dataclasses

import errors_table
import pytest
from conftest import ROOT

from cif_lobes.data.validation import Limits

PARTS = [
    (name, cause)
    for _, cases in errors_table.sections()
    for name, cause in cases.items()
]
LINES = errors_table.PAGE.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name, cause", PARTS, ids=[name for name, _ in PARTS])
def test_the_message_is_the_pages(name, cause):
    row = errors_table.provoke(name, cause)
    assert row in LINES, f"{row}\nrun: python tests/errors_table.py"
    assert "Traceback" not in row


def test_the_page_has_nothing_else():
    rows = [line for line in LINES if line.startswith("| ")]
    titles = len(errors_table.sections())
    assert len(rows) == len(PARTS) + titles, "run: python tests/errors_table.py"


def test_no_remedy_is_a_limit_that_nobody_can_set():
    yaml = (ROOT / "recipes/AISHELL-1/hparams/cif.yaml").read_text(encoding="utf-8")
    limits = {field.name for field in dataclasses.fields(Limits)}
    fixed = {name for name in limits if f"\n{name}:" not in yaml}
    assert "max_duration" in fixed and "check_audio" not in fixed
    assert not [line for line in LINES if any(name in line for name in fixed)]


def test_what_passes_is_no_bad_input():
    with pytest.raises(AssertionError, match="nothing: no message"):
        errors_table.provoke("nothing", lambda folder: None)
