"""The model card of an export says what the run knows, and hubs can read it."""

import json
import shutil

import pytest
from huggingface_hub import ModelCard

from cif_lobes.commands.evaluate import export
from cif_lobes.data.manifest import read_manifest
from cif_lobes.inference.export import export_run, open_export


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the tiny run whose record may be changed."""
    return shutil.copytree(trained, tmp_path / "run")


def change(run, **facts):
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, **facts}))
    return record


def card_of(run, folder, **options):
    export_run(run, folder, **options)
    return ModelCard.load(folder / "README.md")


def test_what_the_run_knows(trained, exported, corpus):
    record = json.loads((trained / "run.json").read_text())
    card = ModelCard.load(exported / "README.md")
    data = card.data
    assert (data.library_name, data.pipeline_tag) == (
        "speechbrain",
        "automatic-speech-recognition",
    )
    assert data.model_name == exported.name and data.license is None
    found = {r.dataset_name: r.metric_value for r in data.eval_results}
    results = record["results"]
    assert found == {n: round(r["error_rate"], 2) for n, r in results.items()}
    hours = sum(u.duration for u in read_manifest(corpus[0])) / 3600
    assert record["train_hours"] == pytest.approx(hours, abs=1e-4)
    assert f"| {hours:.2f} hours of speech |" in card.text
    learnt = sum(p.numel() for p in open_export(exported)["model"].parameters())
    assert f"| parameters | {learnt:,} |" in card.text
    assert f"cif-transcribe {exported.name} speech.wav" in card.text
    assert "## Licence\n\nNot stated by" in card.text


def test_a_licence(trained, tmp_path, capsys):
    export([str(trained), str(tmp_path / "out"), "--license", "apache-2.0"])
    card = ModelCard.load(tmp_path / "out/README.md")
    assert card.data.license == "apache-2.0" and "Not stated" not in card.text


def test_figures_of_another_decoding_are_no_figures_of_the_export(run, tmp_path):
    record = change(run)
    name, plain = next(iter(record["results"].items()))
    results = {
        name: plain,
        "wide": {**plain, "beam": 10, "error_rate": 1.0},
        "before": {**plain, "beam": 10, "eos_threshold": None, "error_rate": 1.5},
        "helped": {**plain, "lm": "results/lm", "error_rate": 2.0},
    }
    change(run, results=results)
    card = card_of(run, tmp_path / "out")
    assert [r.dataset_name for r in card.data.eval_results] == [name]
    assert "lm results/lm | no |" in card.text
    wide = card_of(run, tmp_path / "wide", decoding={"beam_size": 10})
    assert [r.dataset_name for r in wide.data.eval_results] == ["wide"]
    other = card_of(run, tmp_path / "other", num_checkpoints=1)
    assert other.data.eval_results is None


def test_what_is_not_known_is_said_so(run, tmp_path):
    (run / "run.json").unlink()
    card = card_of(run, tmp_path / "out")
    assert card.data.eval_results is None
    assert "| trained on | not recorded by the run |" in card.text
    assert "The run has scored nothing: not known." in card.text


def test_a_record_breaks_no_table_and_names_no_folder_of_the_machine(run, tmp_path):
    change(run, hardware="a|b\nc", yaml="../home/me/recipes/X/hparams/y.yaml")
    text = card_of(run, tmp_path / "out").text
    assert "| hardware | a\\|b c |" in text
    assert "| recipe | recipes/X/hparams/y.yaml |" in text
    change(run, yaml="/home/me/y.yaml")
    assert "| recipe | y.yaml |" in card_of(run, tmp_path / "another").text
