"""The command lines, as a checkout and as an installed package have them."""

import re
import subprocess
import sys
from importlib import import_module

import pytest
from conftest import ROOT
from packaging.requirements import Requirement

from cif_lobes.settings.cli import parse
from cif_lobes.settings.program import started_by, this_command

tomllib = pytest.importorskip("tomllib", reason="Python 3.11")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_command_of_the_package_is_there():
    assert len(PROJECT["scripts"]) == 3
    for place in PROJECT["scripts"].values():
        module, _, name = place.partition(":")
        assert callable(getattr(import_module(module), name))


@pytest.mark.parametrize("script", ["evaluate.py", "extract_teacher.py"])
def test_the_scripts_of_a_checkout(script, tmp_path):
    """From any folder."""
    command = [sys.executable, ROOT / script, "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and script in done.stdout.splitlines()[0]


def test_what_make_setup_installs_is_within_the_ranges():
    pinned = dict(
        re.match(r"([\w.-]+)==([\d.]+)", line).groups()
        for line in (ROOT / "requirements.txt").read_text().splitlines()
        if "==" in line
    )
    extras = PROJECT["optional-dependencies"].values()
    ranges = [Requirement(r) for rs in [PROJECT["dependencies"], *extras] for r in rs]
    tested = [r for r in ranges if r.name in pinned]
    assert len(tested) >= 7
    for requirement in tested:
        assert requirement.specifier.contains(pinned[requirement.name]), requirement


def test_nothing_of_requirements_is_missing_in_an_installed_package():
    """Nor the other way round: who runs make setup has all but what is optional."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    setup = {
        Requirement(line.partition("#")[0]).name
        for line in lines
        if line and line[0] not in "#-"
    }
    extras = PROJECT["optional-dependencies"]
    names = [*PROJECT["dependencies"], *extras["onnx"], *extras["llm"], *extras["dev"]]
    assert {Requirement(name).name for name in names} - {"cif-lobes"} == setup


def test_an_installed_command_is_typed_without_python(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/cif-extract", "a b.yaml"])
    assert started_by() == "cif-extract"
    assert this_command() == "cif-extract 'a b.yaml'"
    monkeypatch.setattr(sys, "argv", ["extract_teacher.py", "x.yaml"])
    assert this_command() == "python extract_teacher.py x.yaml"


def test_without_recipes_a_yaml_has_to_be_given(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/cif-extract"])
    with pytest.raises(SystemExit) as caught:
        parse(["--help"], tmp_path / "lost.yaml", "Compute.")
    said = capsys.readouterr().out
    assert caught.value.code == 0
    assert said.startswith(
        "usage: cif-extract HPARAMS.yaml [--key VALUE ...]\n\nCompute."
    )
    with pytest.raises(SystemExit) as caught:
        parse([], tmp_path / "lost.yaml", "Compute.")
    assert caught.value.code == 2
    assert "which yaml? Give one, for instance lost.yaml" in capsys.readouterr().err
