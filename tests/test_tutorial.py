"""docs/tutorial.py runs, and hears what was said."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path):
    command = [sys.executable, "docs/tutorial.py", str(tmp_path / "new")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    error = re.search(r"([\d.]+) % of the letters of dev are wrong", done.stdout)
    assert float(error[1]) < 40
    said, heard = re.search(r"said (\w+), heard (\w+)", done.stdout).groups()
    assert heard[:3] == said[:3]
    assert f"the export says {heard[:3]}" in done.stdout
