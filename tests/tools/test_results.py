"""RESULTS.md from run folders: recognisers and students side by side."""

import argparse
import json
import shutil

import pytest
from conftest import ROOT, load_module

results = load_module(ROOT / "tools/results.py")


def make_page(runs, out):
    results.main(argparse.Namespace(runs=runs, out=out, readme=None))
    return out.read_text()


def test_the_page_is_that_of_the_runs(tmp_path):
    page = make_page(ROOT / "docs/runs", tmp_path / "RESULTS.md")
    assert page == (ROOT / "RESULTS.md").read_text(), "run tools/results.py again"


def test_the_table_of_the_readme_is_that_of_the_runs(tmp_path):
    readme = shutil.copyfile(ROOT / "README.md", tmp_path / "README.md")
    out = tmp_path / "RESULTS.md"
    results.main(argparse.Namespace(runs=ROOT / "docs/runs", out=out, readme=readme))
    assert readme.read_text() == (ROOT / "README.md").read_text(), "run it again"


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


@pytest.fixture
def two_rows(tmp_path):
    """Two rows of two seeds each, scored on two utterances."""
    errors = {"cif": ("12", "23"), "cif_hieradist": ("11", "22")}
    for row, seeds in errors.items():
        for seed, edits in enumerate(seeds):
            folder = tmp_path / f"runs/{row}_{seed}"
            shutil.copytree(ROOT / "docs/runs/minispeech-cif-1986", folder)
            record = json.loads((folder / "run.json").read_text())
            rate = 5.0 * sum(map(int, edits))
            record |= {"yaml": f"recipes/MiniSpeech/hparams/{row}.yaml", "seed": seed}
            record["results"] = {"test": {**record["results"]["valid"]}}
            record["results"]["test"]["error_rate"] = rate
            (folder / "run.json").write_text(json.dumps(record))
            scores = [
                f"utt{i}, %WER 1.00 [ {e} / 10, 0 ins, 0 del, {e} sub ]\n"
                for i, e in enumerate(edits)
            ]
            (folder / "errors_test.txt").write_text("".join(scores))
    return tmp_path


def test_seeds_are_averaged_and_rows_compared(two_rows):
    page = make_page(two_rows / "runs", two_rows / "RESULTS.md")
    assert "| MiniSpeech/cif (2) | test | 20.00 | | |" in page
    assert "| MiniSpeech/cif_hieradist (2) | test | 15.00 | -5.00 (-25.0%) | " in page
    assert "-10.00 to +0.00 |" in page, "the second utterance has an error less"


def test_a_row_that_lacks_a_seed_is_compared_with_the_others(two_rows):
    shutil.rmtree(two_rows / "runs/cif_hieradist_0")
    page = make_page(two_rows / "runs", two_rows / "RESULTS.md")
    assert "| MiniSpeech/cif_hieradist (1) | test | 20.00 | -5.00 (-20.0%) | " in page


@pytest.mark.parametrize("option", ["--distil_after 100", "--distil_after=100"])
def test_other_settings_are_another_row(two_rows, option):
    """But not another seed or folder."""
    path = two_rows / "runs/cif_hieradist_1/run.json"
    record = json.loads(path.read_text())
    record["commands"][0] += f" --seed 1 --output_folder x {option}"
    path.write_text(json.dumps(record))
    page = make_page(two_rows / "runs", two_rows / "RESULTS.md")
    assert "| MiniSpeech/cif_hieradist (1) | test | 10.00 |" in page
    assert "| MiniSpeech/cif_hieradist, distil_after 100 (1) | test | 20.00 |" in page
    path = two_rows / "runs/cif_hieradist_0/run.json"
    record = json.loads(path.read_text())
    record["commands"][0] += f" {option}"
    path.write_text(json.dumps(record))
    page = make_page(two_rows / "runs", two_rows / "RESULTS.md")
    assert "| MiniSpeech/cif_hieradist (2) | test | 15.00 |" in page


def test_the_readme_gets_the_means(two_rows):
    readme = two_rows / "README.md"
    readme.write_text(f"before\n{results.MARKS[0]}old\n{results.MARKS[1]}after\n")
    out = two_rows / "RESULTS.md"
    results.main(argparse.Namespace(runs=two_rows / "runs", out=out, readme=readme))
    text = readme.read_text()
    assert (
        text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    )
    assert "| MiniSpeech/cif_hieradist | - | WER 15.00 | 2 |" in text
    assert "| the whole corpus | AISHELL-1/cif | 4.5 / 4.9" in text


def test_keep_run_keeps_what_the_page_reads(two_rows):
    keep = load_module(ROOT / "tools/keep_run.py")
    run, kept = two_rows / "runs/cif_0", two_rows / "kept/cif_0"
    scores = run / "errors_test.txt"
    scores.write_text(f"%WER 15.00\nFormat:\n{scores.read_text()}a ; b\n= ; S\n")
    keep.main(argparse.Namespace(run=run, kept=kept, data="Tones"))
    assert (kept / "errors_test.txt").read_text().count("\n") == 2
    assert "## Tones" in make_page(two_rows / "kept", two_rows / "RESULTS.md")


def test_a_folder_without_runs_does_not_empty_the_page(tmp_path):
    page = tmp_path / "RESULTS.md"
    page.write_text("before")
    arguments = argparse.Namespace(runs=tmp_path, out=page, readme=None)
    with pytest.raises(ValueError, match="no run.json"):
        results.main(arguments)
    assert page.read_text() == "before"
