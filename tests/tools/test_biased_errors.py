"""Errors inside and outside a list of hotwords."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT, load_module

from cif_lobes.decoding.alignments import read_alignments
from cif_lobes.decoding.scoring import ErrorRate

SCRIPT = ROOT / "tools/biased_errors.py"
tool = load_module(SCRIPT)


def scored(path, unit, references, hypotheses):
    rate = ErrorRate(unit)
    rate.append([f"u{i}" for i in range(len(references))], hypotheses, references)
    rate.write(path)
    return path


def test_it_reads_what_scoring_writes(tmp_path):
    references = ["call anna now", "", "one"]
    path = scored(
        tmp_path / "e.txt", "word", references, ["call anne right now", "x", ""]
    )
    utterances, split = read_alignments(path)
    assert [len([r for r, _ in pairs if r]) for pairs in utterances] == [3, 0, 1]
    for pairs, text in zip(utterances, references, strict=True):
        assert [r for r, _ in pairs if r] == split(text)
    assert [h for _, h in utterances[0] if h] == ["call", "anne", "right", "now"]


def test_errors_in_the_list_and_outside(tmp_path):
    """Substituted and left-out words are the reference's, inserted ones the text's."""
    references = ["call anna smith now", "anna ran", "they ran home"]
    hypotheses = ["call anne smith now", "anna anna ran", "they sang"]
    path = scored(tmp_path / "e.txt", "word", references, hypotheses)
    counts = tool.count(read_alignments(path)[0], {("anna",), ("anna", "smith")})
    assert counts["B", "units"] == 3 and counts["U", "units"] == 6
    assert counts["B", "errors"] == 2 and counts["U", "errors"] == 2
    # anna twice and anna smith once are true; anna is said twice, and one is right.
    assert (counts["true"], counts["said"], counts["found"]) == (3, 2, 1)
    assert tool.row("x", counts) == (
        "| x | 44.44 | 66.67 | 33.33 | 50.00 | 33.33 | 40.00 |"
    )


def test_characters(tmp_path):
    path = scored(tmp_path / "e.txt", "char", ["我去北京"], ["我去背景"])
    utterances, split = read_alignments(path)
    counts = tool.count(utterances, {tuple(split("北京"))})
    assert counts["B", "errors"] == 2 and counts["U", "errors"] == 0


def test_words_of_mandarin(monkeypatch):
    """Found by a package; a distractor is in no text, within other words either."""
    cut = {"我去北京": ["我", "去", "北京"], "他去南京": ["他", "去", "南京"]}
    found = SimpleNamespace(lcut=cut.__getitem__)
    monkeypatch.setitem(sys.modules, "jieba", found)
    pool = ["上海", "去北"]
    words = tool.make_list(["我去北京"], ["他去南京"], 5, pool, 1, 0)
    assert words == ["上海", "北京"]
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(ValueError, match="pip install jieba"):
        tool.make_list(["我去北京"], ["他去南京"], 5, pool, 1, 0)


def test_rare_words_and_distractors():
    training = ["the cat sat", "the dog sat", "the cat ran"]
    words = tool.make_list(["the fox sat", "a dog"], training, 3, ["owl", "fox"], 1, 0)
    assert words == ["a", "dog", "fox", "owl"]
    with pytest.raises(
        ValueError, match="1 words that the set lacks, --distractors is 2"
    ):
        tool.make_list(["the fox"], training, 3, ["owl", "fox"], 2, 0)


def test_the_commands(tmp_path):
    rows = "ID,duration,wav,spk_id,wrd\n"
    (tmp_path / "train.csv").write_text(f"{rows}a,1,a.wav,s,the cat sat\n")
    (tmp_path / "test.csv").write_text(f"{rows}b,1,b.wav,s,the fox sat\n")
    (tmp_path / "pool.txt").write_text("owl\nfox\n")
    made = "list test.csv --train train.csv --common 3 --pool pool.txt --distractors 1"
    call = [sys.executable, str(SCRIPT)]
    for words in (
        made.split() + ["--out", "biased.txt"],
        ["score", "biased.txt", "e.txt"],
    ):
        scored(tmp_path / "e.txt", "word", ["the fox sat"], ["the fox sat"])
        done = subprocess.run(
            [*call, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        )
    assert (tmp_path / "biased.txt").read_text() == "fox\nowl\n"
    assert "| 0.00 | 0.00 | 0.00 | 100.00 | 100.00 | 100.00 |" in done.stdout
