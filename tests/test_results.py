"""RESULTS.md from run folders: recognisers and students side by side."""

import argparse
import json
import shutil

import pytest
from conftest import ROOT, load_module

results = load_module(ROOT / "tools/results.py")


def make_page(runs, out):
    results.main(argparse.Namespace(runs=runs, out=out))
    return out.read_text()


def test_the_page_is_that_of_the_runs(tmp_path):
    page = make_page(ROOT / "docs/runs", tmp_path / "RESULTS.md")
    assert page == (ROOT / "RESULTS.md").read_text(), "run tools/results.py again"


@pytest.fixture
def student(tmp_path):
    """A copy of a recogniser's run, with the figures of a student."""
    shutil.copytree(ROOT / "docs/runs/minispeech-cif-1986", tmp_path / "runs/cif")
    folder = shutil.copytree(tmp_path / "runs/cif", tmp_path / "runs/student")
    record = json.loads((folder / "run.json").read_text())
    record |= {"yaml": "recipes/MiniSpeech/hparams/fithubert_mini.yaml", "results": {}}
    (folder / "run.json").write_text(json.dumps(record))
    epochs = []
    for epoch, loss in ((1, 0.5), (2, 0.25)):
        terms = {"layer_1": {"weight": 0.1, "value": loss, "share": 1.0}}
        valid = {"losses": terms, "unexplained": loss}
        row = {"epoch": epoch, "updates": 7 * epoch, "seconds": 1.0, "valid": valid}
        epochs.append(json.dumps(row))
    (folder / "epochs.jsonl").write_text("\n".join(epochs))
    return tmp_path


def test_a_student_has_a_table_of_its_own(student):
    page = make_page(student / "runs", student / "RESULTS.md")
    assert page.count("\n## ") == 1, "same data, one section"
    assert "| layer 1, squared error | 0.1 | 0.5000 | 0.2500 |" in page
    assert "| last layer, unexplained variance | | 50.0% | 25.0% |" in page
    assert "14 updates in 2 epochs" in page
    assert "| MiniSpeech/cif, seed 1986 | - | valid | WER " in page
