"""Fires in seconds, on the terminal and in the picture."""

import io
import shutil
import sys
import warnings

import pytest
import torch
from conftest import ROOT, TINY, load_module
from hyperpyyaml import load_hyperpyyaml, resolve_references
from matplotlib.font_manager import fontManager

from cif_lobes.cif import cif
from cif_lobes.data.manifest import read_manifest
from cif_lobes.data.tokens import SPACE
from cif_lobes.data.validation import prepare_own_data
from cif_lobes.inference import plot as alignment_plot
from cif_lobes.inference.alignment import (
    FrameClock,
    TokenSpan,
    frame_clock,
    sparkline,
    token_spans,
    word_spans,
)
from cif_lobes.inference.plot import plot
from cif_lobes.nets.encoder import ConformerEncoder
from cif_lobes.nets.features import LogMel
from cif_lobes.runs.cif import make_brain

CLOCK = FrameClock(0.01, 0.08)
ALPHA = torch.tensor([0.5, 0.75, 0.5, 1.0, 0.25])  # fires at 1.67, 3.25 and 5
HANZI = ["你", "好", "吗"]


def spans_of(alpha, tokens, tail_threshold=0.5):
    """Spans of one utterance from the operator itself."""
    lengths = torch.tensor([len(alpha)])
    output = cif(
        alpha[None, :, None], alpha[None], lengths, tail_threshold=tail_threshold
    )
    return token_spans(tokens, output.boundaries[0], CLOCK)


def draw(alpha, spans, **settings):
    """A picture over noise, drawn where any lack of a glyph is an error."""
    log_mel = torch.randn(8 * len(alpha) + 3, 40).mul(10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = plot(log_mel, alpha, spans, CLOCK, **settings)
        picture = io.BytesIO()
        figure.savefig(picture)
    assert picture.getvalue().startswith(b"\x89PNG")
    return figure, picture.getvalue()


def words_of(panel):
    """What is written in a panel, and where."""
    boxes = [(t.get_text(), t.get_window_extent()) for t in panel.texts]
    return sorted(boxes, key=lambda pair: pair[1].x0)


class Through(torch.nn.Module):
    """In place of a layer."""

    def forward(self, x, **_):
        return x, None


@pytest.mark.parametrize(
    "strides, num_pools", [([2, 2], 1), ([2], 2), ([2, 2], 0), ([3, 2], 2)]
)
def test_clock_is_the_middle_of_what_a_frame_reads(strides, num_pools):
    """A feature frame that is not a number shows in the frames that read it."""
    layers = range(1, num_pools + 1)
    encoder = ConformerEncoder(
        9, 4, num_pools, 1, 4, 3, layers, conv_channels=2, conv_strides=strides
    ).eval()
    # Attention lets every frame see all.
    encoder.layers = torch.nn.ModuleList(Through() for _ in layers)

    def reads(features):
        x, _ = encoder(features, torch.tensor([features.shape[1]]))
        return x.isnan().any(2)[0]

    spoilt = torch.zeros(100, 100, 9)
    spoilt[range(100), range(100)] = torch.nan
    read = torch.stack([reads(features[None]) for features in spoilt])  # [100, T]
    clock = frame_clock(LogMel(8000), encoder, 8000)
    for frame in range(3):
        first, *_, last = read[:, frame].nonzero().flatten().tolist()
        middle = clock.start + (frame + 0.5) * clock.step
        assert middle == pytest.approx((first + last) / 2 * 0.01)


def test_spans_of_a_plan():
    """Boundaries at 0, 5/3 and 13/4 frames of 80 ms, the first one 10 ms late."""
    spans = spans_of(ALPHA, ["a", "b", "c"])
    times = [0.01, 0.01 + 0.08 * 5 / 3, 0.01 + 0.08 * 3.25, 0.01 + 0.08 * 5]
    assert [s.token for s in spans] == ["a", "b", "c"]
    assert [s.start for s in spans] == pytest.approx(times[:3])
    assert [s.end for s in spans] == pytest.approx(times[1:])


@pytest.mark.parametrize("tokens", [[], ["a"]])
def test_no_token_and_one_token(tokens):
    """As many spans as fires, and a line and a picture for either."""
    alpha = torch.full((5,), 0.25 * len(tokens) + 0.01)
    spans = spans_of(alpha, tokens)
    assert [s.token for s in spans] == tokens
    above, below = sparkline(alpha, spans, CLOCK).split("\n")
    assert above.replace(" ", "") == "█████" and below == "".join(tokens)
    figure, _ = draw(alpha, spans)
    assert [text for text, _ in words_of(figure.axes[3])] == tokens


@pytest.mark.parametrize("tokens", [[], ["a", "b", "c"]])
def test_as_many_tokens_as_fires(tokens):
    with pytest.raises(ValueError, match=f"{len(tokens)} tokens but 3 boundaries"):
        token_spans(tokens, torch.tensor([0.0, 1.0, 2.0]), CLOCK)


@pytest.mark.parametrize(
    "tokens, text, expected",
    [
        (["the", "cat", "s", "<eos>", ""], "the cats", [(0, 1), (1, 3)]),
        ([SPACE, "c", "at", SPACE, "s"], "cat s", [(1, 3), (4, 5)]),
        (["un", "##known", "don", "'", "t"], "unknown don't", [(0, 2), (2, 5)]),
        (["a", "b", " ", "<unk>"], "ab <unk>", [(0, 2), (3, 4)]),
        ([], "", []),
    ],
)
def test_words(tokens, text, expected):
    """Pieces, bare spaces, WordPieces with an apostrophe, characters."""
    spans = [TokenSpan(token, i, i + 1) for i, token in enumerate(tokens)]
    words = word_spans(spans, text)
    assert [(w.start, w.end) for w in words] == expected
    assert [w.token for w in words] == text.split()


def test_sparkline():
    """The frame in which a token fires is its last; hanzi are two columns wide."""
    alpha = torch.tensor([0.5, 0.5, 0.75, 0.5, 0.125])
    spans = spans_of(alpha, HANZI[:2], tail_threshold=0.9)
    assert sparkline(alpha, spans, CLOCK) == "▆▆ █▆ ▂\n你 好"


def test_sparkline_wraps_between_tokens():
    """No line is longer than the terminal, nothing is lost."""
    spans = spans_of(ALPHA, ["one", "two", "three"])
    lines = sparkline(ALPHA, spans, CLOCK, width=9).split("\n")
    assert lines == ["▄▆  ▄█", "one two", "▂", "three"]


def test_picture_needs_no_display(monkeypatch):
    """Chinese on a machine without a screen, with whatever fonts it has."""
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # fails if imported
    draw(ALPHA, spans_of(ALPHA, HANZI), title="utterance")


def test_picture_without_a_font(monkeypatch, caplog):
    """Tokens that cannot be written are numbered, the others are not; it is said."""
    spans = spans_of(ALPHA, ["你", "é", "吗"])
    words = [TokenSpan("你é吗", 0.0, 0.4)]
    monkeypatch.setattr(alignment_plot, "FONTS", [])
    figure, _ = draw(ALPHA, spans, words=words)
    assert [text for text, _ in words_of(figure.axes[3])] == ["1", "é", "3"]
    assert [r.getMessage()[:14] for r in caplog.records] == ["no font has 你吗"]


def test_a_font_in_a_wheel_is_found(monkeypatch, tmp_path, caplog):
    """Without the package being imported."""
    file = tmp_path / "some_fonts" / alignment_plot.PACKAGED[1]
    file.parent.mkdir(parents=True)
    shutil.copy(fontManager.findfont("STIXSizeOneSym"), file)
    (tmp_path / "some_fonts/__init__.py").write_text("raise AssertionError")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(fontManager, "ttflist", [*fontManager.ttflist])
    packaged = ("some_fonts", alignment_plot.PACKAGED[1])
    monkeypatch.setattr(alignment_plot, "PACKAGED", packaged)
    monkeypatch.setattr(alignment_plot, "FONTS", ["STIXSizeOneSym"])
    fontManager.ttflist = [f for f in fontManager.ttflist if "STIX" not in f.name]
    draw(ALPHA, spans_of(ALPHA, ["\u2320", "a", "b"]), title="utterance")
    assert str(file) in [font.fname for font in fontManager.ttflist]
    assert not caplog.records


def test_picture_is_true(caplog):
    """Every token has a threshold's worth of weight in its colour, fires where its span
    ends, and is named within its span; what did not fire is grey."""
    alpha = torch.tensor([0.5, 0.75, 0.5, 1.0, 0.5])
    spans = spans_of(alpha, ["a", "b", "c"], tail_threshold=0.9)
    accumulator, weights, _, labels = draw(alpha, spans)[0].axes
    area = {}
    for bar in weights.patches:
        colour = bar.get_facecolor()
        area[colour] = area.get(colour, 0) + bar.get_width() * bar.get_height()
    assert list(area.values()) == pytest.approx([0.08, 0.08, 0.08, 0.02], rel=1e-5)
    marks = [mark for mark in accumulator.lines if mark.get_marker() == "o"]
    assert [m.get_xdata()[0] for m in marks] == pytest.approx([s.end for s in spans])
    assert [m.get_ydata()[0] for m in marks] == pytest.approx([1, 1, 1], abs=1e-5)
    for text, span in zip(labels.texts, spans, strict=True):
        assert text.get_text() == span.token
        assert span.start < text.get_position()[0] < span.end
    assert not caplog.records


def test_fire_by_the_remainder_is_open():
    """Its mark is not at the threshold and not filled, the other one is both."""
    alpha = torch.tensor([0.5, 0.5, 0.75])
    figure, _ = draw(alpha, spans_of(alpha, ["a", "b"]))
    marks = [mark for mark in figure.axes[0].lines if mark.get_marker() == "o"]
    assert [m.get_ydata()[0] for m in marks] == pytest.approx([1, 0.75], abs=1e-5)
    assert [m.get_markerfacecolor() == "white" for m in marks] == [False, True]


def test_labels_do_not_overlap():
    """Long tokens in quick succession go into further rows."""
    alpha = torch.full((24,), 0.5)
    spans = spans_of(alpha, ["antidisestablishment"] * 6 + ["a"] * 6)
    words = [TokenSpan("antidisestablishment" * 2, s.start, s.end) for s in spans]
    figure, _ = draw(alpha, spans, words=words)
    boxes = words_of(figure.axes[3])
    assert len(boxes) == 24
    for i, (_, box) in enumerate(boxes):
        assert not any(box.overlaps(other) for _, other in boxes[i + 1 :])


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    """Folder of a run that has learnt nothing: a checkpoint of the first parameters."""
    folder = tmp_path_factory.mktemp("run")
    train_csv, valid_csv = map(str, corpus)
    settings = {"output_folder": str(folder), "manifest_folder": str(folder)}
    settings |= {key: value for key, value in TINY.items() if key != "pool_after"}
    settings |= {"skip_prep": True, "data_folder": "none", "pool_after": [1]}
    settings |= {"train_csv": train_csv, "valid_csv": valid_csv}
    settings["test_csv"] = [valid_csv]
    with open(ROOT / "recipes/AISHELL-1/hparams/cif_mini.yaml") as file:
        yaml = resolve_references(file, settings).getvalue()
    (folder / "hyperparams.yaml").write_text(yaml)
    hparams = load_hyperpyyaml(yaml)
    hparams["tokenizer"].fit(["abcd"])
    paths = {"train": train_csv, "valid": valid_csv, "test": [valid_csv]}
    prepare_own_data(paths, str(folder / "save"), "zh", max_rejected=0)
    make_brain(hparams, {"device": "cpu"})
    hparams["checkpointer"].save_checkpoint(meta={"error_rate": 1.0, "epoch": 1})
    return folder


def call(run, monkeypatch, *arguments):
    """Run the tool in this process."""
    tool = load_module(ROOT / "tools/plot_alignment.py")
    monkeypatch.setattr(sys, "argv", ["plot_alignment.py", str(run), *arguments])
    tool.main(tool.parse_arguments())


def test_tool_draws_the_first_test_utterance(run, monkeypatch, capsys):
    call(run, monkeypatch)
    (first, *_) = read_manifest(run / "save" / "set2.csv")
    picture = run / f"fires_{first.id}.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert f"reference:  {first.wrd}\n" in printed and "CER" in printed
    assert printed.endswith(f"{picture}\n")


def test_tool_draws_any_recording(run, corpus, tmp_path, monkeypatch, capsys):
    call(
        run,
        monkeypatch,
        *("--audio", str(corpus[1].parent / "utt2-003.flac")),
        *("--out", str(tmp_path / "fires.svg")),
    )
    assert "<svg" in (tmp_path / "fires.svg").read_text()
    assert "reference" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--split", "nope"], "has no set 'nope'; it has train, valid, set2"),
        (["--utterance", "nope"], "has no utterance 'nope'; its first is utt2-000"),
    ],
)
def test_tool_names_what_there_is(run, monkeypatch, arguments, message):
    with pytest.raises(SystemExit, match=message):
        call(run, monkeypatch, *arguments)


def test_a_stretch_is_drawn_and_no_more_than_a_minute():
    tool = load_module(ROOT / "tools/plot_alignment.py")
    signal = torch.arange(100 * 10)
    assert torch.equal(tool.cut_out(signal, 10, 30.0, 40.0), signal[300:400])
    assert torch.equal(tool.cut_out(signal, 10, 95.0, 400.0), signal[950:])
    assert torch.equal(tool.cut_out(signal[:50], 10, 0.0, None), signal[:50])
    with pytest.raises(SystemExit, match="100.0 s .* --start 0 --end 10"):
        tool.cut_out(signal, 10, 0.0, None)
    for start, end in (50.0, 50.0), (-1.0, 5.0), (100.0, None):
        with pytest.raises(SystemExit, match="the recording has 100.0 s"):
            tool.cut_out(signal, 10, start, end)
