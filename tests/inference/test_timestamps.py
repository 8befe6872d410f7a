"""tools/timestamp_errors.py: errors of times that are known."""

import sys

import pytest
from conftest import ROOT, load_module

TRUE = """;; utterance channel start duration word
a 1 0.100 0.200 THE
a 1 0.300 0.400 CAT
a 1 0.700 0.200 SAT
b 1 0.500 0.250 THE
"""
# "the" 20 ms early; "cat" misheard; a word too many; "sat" starts 10 ms early and ends
# 50 ms late. Of b, nothing was recognised; c was not asked for.
FOUND = """a 1 0.080 0.200 the 0.9
a 1 0.280 0.300 cut 0.4
a 1 0.580 0.110 uh 0.3
a 1 0.690 0.260 sat 1.0
c 1 0.000 9.000 the 0.9
"""


@pytest.fixture(scope="module")
def tool():
    return load_module(ROOT / "tools/timestamp_errors.py")


def write(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def run(tool, monkeypatch, found, true):
    monkeypatch.setattr(sys, "argv", ["timestamp_errors.py", found, true])
    tool.main()


def test_recognised_words_count(tool, tmp_path):
    found = tool.read_ctm(write(tmp_path, "found.ctm", FOUND))
    true = tool.read_ctm(write(tmp_path, "true.ctm", TRUE))
    starts, ends = tool.errors(found, true).T
    assert starts == pytest.approx([-20, -10]) and ends == pytest.approx([-20, 50])


def test_a_repeated_word_is_compared_with_its_own(tool, tmp_path):
    """The first "the" was missed: by the word alone it could be either."""
    true = write(tmp_path, "true.ctm", TRUE + "a 1 0.900 0.100 THE\n")
    found = write(tmp_path, "found.ctm", "a 1 0.7 0.2 sat\na 1 0.91 0.1 the\n")
    errors = tool.errors(tool.read_ctm(found), tool.read_ctm(true))
    assert errors[:, 0] == pytest.approx([0, 10])


def test_table(tool, tmp_path, monkeypatch, capsys):
    """Of ten words, all ends are 10 ms early and one start is 100 ms late."""
    lines = [f"a 1 {i}.5 0.25 w{i}\n" for i in range(10)]
    true = write(tmp_path, "true.ctm", "".join(lines))
    lines = [f"a 1 {i}.5 0.24 w{i}\n" for i in range(9)]
    found = write(tmp_path, "found.ctm", "".join([*lines, "a 1 9.6 0.14 w9\n"]))
    run(tool, monkeypatch, found, true)
    assert capsys.readouterr().out.splitlines() == [
        "10 of 10 words, 1 utterances; ms",
        "       median  90 %    bias",
        "start       0    10      +0",
        "end        10    10     -10",
    ]


def test_other_recordings(tool, tmp_path, monkeypatch):
    found = write(tmp_path, "found.ctm", "x 1 0.0 0.5 the 0.9\n")
    true = write(tmp_path, "true.ctm", TRUE)
    with pytest.raises(
        SystemExit, match="no utterance in common: the first of one is x"
    ):
        run(tool, monkeypatch, found, true)


def test_nothing_recognised(tool, tmp_path, monkeypatch):
    found = write(tmp_path, "found.ctm", "a 1 0.0 0.5 dog 0.9\n")
    true = write(tmp_path, "true.ctm", TRUE)
    with pytest.raises(SystemExit, match="none of the 4 words"):
        run(tool, monkeypatch, found, true)


def test_no_ctm(tool, tmp_path):
    path = write(tmp_path, "x.ctm", ";; times\na 1 0.1 0.2 the\nthe cat sat\n")
    with pytest.raises(SystemExit, match="line 3 is not a line of a CTM"):
        tool.read_ctm(path)
