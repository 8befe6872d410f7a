"""Error rates over hours: which runs go into one picture, and what it shows."""

import json

import pytest
from conftest import ROOT, load_module

tool = load_module(ROOT / "tools/plot_hours.py")
YAML = "recipes/LibriSpeech/hparams/cif_small.yaml"


def make_run(folder, hours, rate, unit="word", **changes):
    folder.mkdir()
    results = {"valid": {"error_rate": rate, "unit": unit}}
    record = {"yaml": YAML, "train_hours": hours, "results": results, **changes}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_a_line_joins_the_means_of_equal_hours(tmp_path):
    runs = [(2.0, 50.0), (0.5, 80.0), (2.0, 54.0)]
    folders = [make_run(tmp_path / str(i), *run) for i, run in enumerate(runs)]
    other = make_run(tmp_path / "other", 1.0, 60.0, yaml=YAML.replace("small", "mini"))
    points, unit = tool.read_points([*folders, other], "valid")
    assert points[YAML] == [(0.5, 80.0), (2.0, 50.0), (2.0, 54.0)] and len(points) == 2
    (panel,) = tool.plot(points, unit).axes
    dots, line, *_ = panel.lines
    assert dots.get_xydata().tolist() == [[0.5, 80.0], [2.0, 50.0], [2.0, 54.0]]
    assert line.get_xydata().tolist() == [[0.5, 80.0], [2.0, 52.0]]
    assert panel.get_ylabel() == "WER (%)"
    names = [text.get_text() for text in panel.get_legend().get_texts()]
    assert names == ["LibriSpeech/cif_small", "LibriSpeech/cif_mini"]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("test", {}, "has no set 'test', but valid: choose with --set"),
        ("valid", {"train_hours": None}, "does not say how many hours"),
        ("valid", {"unit": "char"}, r"WER \(.*first\) and CER \(.*second\)"),
    ],
)
def test_what_does_not_go_together(tmp_path, name, changes, message):
    first = make_run(tmp_path / "first", 1.0, 60.0)
    second = make_run(tmp_path / "second", 2.0, 50.0, **changes)
    with pytest.raises(ValueError, match=message):
        tool.read_points([first, second], name)


def test_no_run(tmp_path):
    with pytest.raises(ValueError, match="is no run folder"):
        tool.read_points([tmp_path], "valid")
