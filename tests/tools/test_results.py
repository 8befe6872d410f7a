"""RESULTS.md from run folders: recognisers and students side by side."""

import argparse
import json
import pathlib
import re
import shutil

import pytest
from conftest import ROOT, load_module

results = load_module(ROOT / "tools/results.py")
keep = load_module(ROOT / "tools/keep_run.py")


def make_page(runs, out, **others):
    given = {"readme": None, "summary": None, "headline": None, **others}
    results.main(argparse.Namespace(runs=runs, out=out, **given))
    return out.read_text()


def test_the_pages_are_those_of_the_runs(tmp_path, monkeypatch):
    """RESULTS.md, README's table, and the page of each run."""
    pages = ["RESULTS.md", "README.md"]
    pages += [str(p.relative_to(ROOT)) for p in ROOT.glob("docs/runs/*/README.md")]
    assert len(pages) == 2 + len(list(ROOT.glob("docs/runs/*/run.json")))
    shutil.copytree(ROOT / "docs/runs", tmp_path / "docs/runs")
    shutil.copyfile(ROOT / "README.md", tmp_path / "README.md")
    monkeypatch.chdir(tmp_path)
    make_page(
        pathlib.Path("docs/runs"),
        pathlib.Path("RESULTS.md"),
        readme=pathlib.Path("README.md"),
        summary=ROOT / "docs/summary.md",
        headline=ROOT / "docs/headline.yaml",
    )
    for page in pages:
        now = (tmp_path / page).read_text(encoding="utf-8")
        assert now == (ROOT / page).read_text(encoding="utf-8"), (
            f"{page}: run tools/results.py again"
        )


def test_the_summary_is_short_and_comes_first():
    page = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    assert len(page.partition("\n## ")[0].splitlines()) <= 40


def test_no_figure_of_the_summary_is_typed():
    text = (ROOT / "docs/summary.md").read_text(encoding="utf-8")
    assert len(results.FIGURE.findall(text)) >= 8
    assert not re.findall(r"\d+\.\d|\d ?%", results.FIGURE.sub("", text))


def test_no_command_has_a_path_of_a_machine():
    for path in ROOT.glob("docs/runs/*/run.json"):
        for command in json.loads(path.read_text())["commands"]:
            assert keep.renamed(command, []) == command, f"{path}: quote its values"


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


def test_a_student_stands_in_the_table_of_its_data(student):
    page = make_page(student / "runs", student / "RESULTS.md")
    assert page.count("\n## MiniSpeech") == 1, "same data, one table"
    unit = "unexplained variance of the last layer, %"
    assert f"| MiniSpeech/fithubert_mini | - | {unit} | 25.0 | | [1986](" in page
    assert "| MiniSpeech/cif | - | WER | 10.07 | 9.46 | [1986](" in page
    own = (student / "runs/student/README.md").read_text()
    assert "| layer 1, squared error | 0.1 | 0.5000 | 0.2500 |" in own
    assert "| last layer, unexplained variance | | 50.0% | 25.0% |" in own
    assert "14 updates in 2 epochs" in own


def test_a_runs_page_has_its_commands_and_kinds_of_errors(student):
    make_page(student / "runs", student / "RESULTS.md")
    page = (student / "runs/cif/README.md").read_text()
    assert "| valid | WER 10.07 | 214 | 7 | 25 | 2442 |" in page
    command = "python recipes/LibriSpeech/train.py recipes/MiniSpeech/hparams/cif.yaml"
    assert f"```\n{command} --data_folder data/MiniSpeech\n```" in page


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
    assert "| MiniSpeech/cif | - | WER |  | 20.00 | [0](" in page
    # The second utterance has an error less.
    found = "15.00 (-5.00: -10.00 to +0.00)"
    assert f"| MiniSpeech/cif_hieradist | - | WER |  | {found} | [0](" in page


def test_a_row_that_lacks_a_seed_is_compared_with_the_others(two_rows):
    shutil.rmtree(two_rows / "runs/cif_hieradist_0")
    page = make_page(two_rows / "runs", two_rows / "RESULTS.md")
    assert "| MiniSpeech/cif_hieradist | - | WER |  | 20.00 (-5.00: " in page


def add_options(run, options):
    """As if a run's command had had them."""
    record = json.loads((run / "run.json").read_text())
    record["commands"][0] += f" {options}"
    (run / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize("option", ["--distil_after 100", "--distil_after=100"])
def test_other_settings_are_another_row(two_rows, option):
    """But not another seed or folder."""
    add_options(
        two_rows / "runs/cif_hieradist_1", f"--seed 1 --output_folder x {option}"
    )
    page = make_page(two_rows / "runs", two_rows / "RESULTS.md")
    assert "| MiniSpeech/cif_hieradist | - | WER |  | 10.00 (" in page
    assert "| MiniSpeech/cif_hieradist, distil_after 100 | - | WER |  | 20.00 (" in page
    add_options(two_rows / "runs/cif_hieradist_0", option)
    page = make_page(two_rows / "runs", two_rows / "RESULTS.md")
    assert "| MiniSpeech/cif_hieradist | - | WER |  | 15.00 (" in page


def test_the_readme_gets_the_means(two_rows):
    readme, entries = two_rows / "README.md", two_rows / "headline.yaml"
    readme.write_text(f"before\n{results.MARKS[0]}old\n{results.MARKS[1]}after\n")
    entries.write_text("- AISHELL-1/cif\n- cif_hieradist_*\n")
    out = two_rows / "RESULTS.md"
    page = make_page(two_rows / "runs", out, readme=readme, headline=entries)
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n")
    row = "| MiniSpeech/cif_hieradist | - | WER 15.00 (test) | 2 |"
    assert row in text and row in page and "old" not in text
    assert "| the whole corpus | AISHELL-1/cif | 4.5 / 4.9 (arXiv" in text
    assert "4.2 / 4.7" not in text, "cif_acd is not named"


def test_the_readme_averages_runs_of_several_parts_under_words(two_rows):
    (two_rows / "runs/cif_1/data.txt").write_text("MiniSpeech: another part\n")
    readme, entries = two_rows / "README.md", two_rows / "headline.yaml"
    readme.write_text("".join(results.MARKS))
    entries.write_text("- {runs: [cif_0, cif_1], words: as it is}\n")
    out = two_rows / "RESULTS.md"
    make_page(two_rows / "runs", out, readme=readme, headline=entries)
    row = "| MiniSpeech/cif, as it is | - | WER 20.00 (test) | 2 |"
    assert row in readme.read_text()


def test_the_summary_names_its_figures(two_rows):
    said = two_rows / "summary.md"
    said.write_text("{cif_hieradist_*: test} %, {cif_hieradist_* - cif_?: test}")
    page = make_page(two_rows / "runs", two_rows / "RESULTS.md", summary=said)
    assert "15.00 %, -25.0% (-10.00 to +0.00 points)" in page


@pytest.mark.parametrize("pattern", ["cif*", "lost"])
def test_a_figure_of_no_row_or_of_two_is_refused(two_rows, pattern):
    said = two_rows / "summary.md"
    said.write_text(f"{{{pattern}: test}}")
    with pytest.raises(ValueError, match="name the seeds of one row"):
        make_page(two_rows / "runs", two_rows / "RESULTS.md", summary=said)


def kept_as(run, kept, **others):
    """Arguments of tools/keep_run.py."""
    given = {"data": "Tones", "dev": None, "rename": [], **others}
    return argparse.Namespace(run=run, kept=kept, **given)


def test_a_run_validated_on_a_part_of_dev_says_what_dev_is(two_rows):
    """Not a test set; and what is a part of it is not in the table."""
    run, kept = two_rows / "runs/cif_0", two_rows / "kept/cif_0"
    record = json.loads((run / "run.json").read_text())
    found = record["results"]["test"]
    record["results"] = {
        split: {**found, "error_rate": rate}
        for split, rate in (("valid", 40.0), ("dev", 30.0), ("dev_beam=10", 20.0))
    }
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(
        ValueError, match="not been scored on all: .*valid, dev, dev_beam"
    ):
        keep.main(kept_as(run, kept, dev="all"))
    assert not kept.exists()
    keep.main(kept_as(run, kept, dev="dev"))
    page = make_page(two_rows / "kept", two_rows / "RESULTS.md")
    assert "| MiniSpeech/cif | - | WER | 30.00 |  | [0](" in page
    assert "| MiniSpeech/cif; beam 10 | - | WER | 20.00 |  | [0](" in page
    assert "40.00" not in page
    own = (kept / "README.md").read_text()
    assert "| valid | WER 40.00 |" in own and "Dev is `dev`; training" in own


def test_keep_run_keeps_what_the_page_reads(two_rows):
    run, kept = two_rows / "runs/cif_0", two_rows / "kept/cif_0"
    scores = run / "errors_test.txt"
    scores.write_text(f"%WER 15.00\nFormat:\n{scores.read_text()}a ; b\n= ; S\n")
    keep.main(kept_as(run, kept, data="Tones: a few"))
    assert (kept / "errors_test.txt").read_text().count("\n") == 2
    page = make_page(two_rows / "kept", two_rows / "RESULTS.md")
    assert "## Tones\n" in page and "| **a few** |" in page


def test_keep_run_gives_the_machines_folders_other_names(two_rows):
    run, kept = two_rows / "runs/cif_0", two_rows / "kept/cif_0"
    record = json.loads((run / "run.json").read_text())
    record["commands"] = ["train.py a.yaml --out /tmp/x/run --train_text [/tmp/x/a, b]"]
    (run / "run.json").write_text(json.dumps(record))
    given = kept_as(run, kept)
    with pytest.raises(ValueError, match="--rename /tmp/x/run=data/..."):
        keep.main(given)
    assert not kept.exists()
    given.rename = ["/tmp/x/run=results/run", "/tmp/x=data"]
    keep.main(given)
    command = "train.py a.yaml --out results/run --train_text '[data/a, b]'"
    assert json.loads((kept / "run.json").read_text())["commands"] == [command]


def test_a_folder_without_runs_does_not_empty_the_page(tmp_path):
    page = tmp_path / "RESULTS.md"
    page.write_text("before")
    with pytest.raises(ValueError, match="no run.json"):
        make_page(tmp_path, page)
    assert page.read_text() == "before"
