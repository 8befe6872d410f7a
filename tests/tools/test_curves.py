"""tools/plot_curves.py: what it reads from a run, and where it draws it."""

import json
import sys

import pytest
from conftest import ROOT, load_module

RUNS = [
    ROOT / "docs/runs/aishell-mini-cif-1986",
    ROOT / "docs/runs/minispeech-cif-1986",
]


@pytest.fixture(scope="module")
def tool():
    return load_module(ROOT / "tools/plot_curves.py")


def epoch(number, **train):
    """A line of epochs.jsonl with two losses that only differ in their names."""
    term = {"value": 0.5 / number, "weight": 2.0, "share": 0.5}
    losses = {"ce": term, "acd": term}
    return {
        "epoch": number,
        "learning_rate": 1e-3,
        "train": {"losses": losses, **train},
        "valid": {"losses": {"ce": term}, "error_rate": 90.0 - number, "unit": "char"},
    }


def drawn(figure):
    """Lines by the title of their panel."""
    return {p.get_title(): p.get_lines() for p in figure.axes if p.get_title()}


def test_each_figure_has_a_panel(tool):
    """Losses, those of distillation among them, between error rate and the others."""
    runs = {"run": [epoch(1, acd_accuracy=0.25), epoch(2, acd_accuracy=0.75)]}
    lines = drawn(tool.plot(runs))
    assert list(lines) == [
        "CER (%)",
        "loss: ce (per token)",
        "loss: acd (per token)",
        "contrastive accuracy",
        "learning rate",
    ]
    (rate,) = lines["CER (%)"]
    assert rate.get_xydata().tolist() == [[1, 89.0], [2, 88.0]]
    (accuracy,) = lines["contrastive accuracy"]
    assert accuracy.get_ydata().tolist() == [0.25, 0.75]
    train, valid = lines["loss: ce (per token)"]
    assert (train.get_linestyle(), valid.get_linestyle()) == ("--", "-")
    assert train.get_ydata().tolist() == [0.5, 0.25]  # not weighted


def test_runs_over_each_other(tool):
    """Of different lengths and losses, each in the colour of its legend."""
    runs = {"short": [epoch(1)], "long": [epoch(1), epoch(2), epoch(3)]}
    for row in runs["long"]:
        del row["train"]["losses"]["acd"]
    figure = tool.plot(runs)
    lines = drawn(figure)
    assert [len(line.get_xdata()) for line in lines["CER (%)"]] == [1, 3]
    assert len(lines["loss: acd (per token)"]) == 1
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        *("short", "long"),
        *("validation", "training"),
    ]
    *colours, solid, dashed = [line.get_color() for line in legend.get_lines()]
    assert solid == dashed not in colours
    assert [line.get_linestyle() for line in legend.get_lines()[2:]] == ["-", "--"]
    assert [line.get_color() for line in lines["learning rate"]] == colours
    assert len({*colours}) == 2


def test_recorded_runs(tool, tmp_path, monkeypatch, capsys):
    """Every epoch of real runs is drawn."""
    path = tmp_path / "curves.png"
    monkeypatch.setattr(
        sys, "argv", ["plot_curves.py", *map(str, RUNS), f"--out={path}"]
    )
    tool.main()
    assert capsys.readouterr().out == f"{path}\n"
    assert path.stat().st_size > 20_000
    lines = drawn(tool.plot({run: tool.read_epochs(run) for run in RUNS}))
    assert len(lines) == 8, "one counts characters, the other words"
    for run, rate in zip(RUNS, ("CER (%)", "WER (%)"), strict=True):
        (line,) = lines[rate]
        rows = (run / "epochs.jsonl").read_text().splitlines()
        rates = [json.loads(row)["valid"]["error_rate"] for row in rows]
        assert line.get_ydata().tolist() == rates


def test_runs_have_short_names(tool):
    names = tool.short_names(["results/x/cif/1986", "results/x/cif_acd/1986"])
    assert names == ["cif", "cif_acd"]
    assert tool.short_names(["a/cif/1", "a/cif/2"]) == ["1", "2"]
    assert tool.short_names(["a/cif/1", "b/acd/2"]) == ["a/cif/1", "b/acd/2"]
    assert tool.short_names(["results/x/cif/1986"]) == ["cif/1986"]


def test_no_run(tool, tmp_path):
    with pytest.raises(SystemExit, match="no epochs.jsonl"):
        tool.read_epochs(tmp_path)
