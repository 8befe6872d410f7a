"""What is said of transcripts before training."""

from cif_lobes.data import validation
from cif_lobes.data.manifest import Utterance
from cif_lobes.data.text_report import report_texts


def report(*texts, **kwargs):
    rows = [Utterance(f"u{i}", 1.0, "", "", text) for i, text in enumerate(texts)]
    return report_texts(rows, **kwargs)


def test_nothing_to_say():
    assert report("ab c", "ba c", "c ab") == []


def test_rare_digits_and_markup():
    """Each with the first utterance that has it; how often within one does not count."""
    lines = report(
        "abq qqq", "ab 7", "ab 7", "ab 7 <unk>", "ab (laughs) <unk>", shown=3
    )
    assert lines[0].startswith("12 characters in fewer than 3 utterances")
    assert lines[0].endswith("( (u4), ) (u4), < (u3), ...")
    assert lines[1] == "1 digits, which may be read in several ways: 7 (u1)"
    assert lines[2].endswith("nobody speaks: <unk> (u3), (laughs) (u4)")
    assert len(lines) == 3


def test_it_is_printed_when_data_is_prepared(tmp_path, capsys):
    from test_manifest import write_audio

    wav = write_audio(tmp_path / "a.wav")
    rows = [Utterance("u7", None, wav, "", "ab [Noise]")]
    validation.prepare_splits({"train": rows}, tmp_path, validation.Limits("en"))
    out = capsys.readouterr().out
    assert "train: 1 kinds of markup, which nobody speaks: [noise] (u7)" in out
