"""Transcripts as CTM and subtitles."""

import pytest

from cif_lobes.inference.formats import as_ctm, as_srt, as_tsv, as_vtt
from cif_lobes.inference.transcript import Token, Transcript

WORDS = [
    Token("so", 0.0, 2.5, 0.9),
    Token("it", 2.5, 2.75, 0.81),
    Token("is", 2.75, 6.25, 0.5),
    Token("done", 6.375, 6.5, 1.0),
]
SPOKEN = Transcript("so it is done", -1.0, [], WORDS)


def test_ctm():
    assert as_ctm("a/my talk.wav", SPOKEN).splitlines()[1] == (
        "my_talk 1 2.500 0.250 it 0.8100"
    )


def test_srt():
    """The pauses before "so" and "is" are in their spans, but in no subtitle."""
    assert as_srt("a.wav", SPOKEN) == (
        "1\n00:00:01,500 --> 00:00:02,750\nso it\n\n"
        "2\n00:00:05,250 --> 00:00:06,500\nis done\n\n"
    )
    hour = [Token("好", 3601.0, 3601.5, 1.0), Token("的", 3601.5, 3602.25, 1.0)]
    assert as_srt("a.wav", Transcript("好的", 0.0, hour, hour)) == (
        "1\n01:00:01,000 --> 01:00:02,250\n好的\n\n"
    )
    steady = [Token("a", 0.5 * i, 0.5 * i + 0.5, 1.0) for i in range(21)]
    cues = as_srt("a.wav", Transcript("a a", 0.0, [], steady)).split("\n\n")
    assert [cue.count("a") for cue in cues] == [10, 10, 1, 0]


def test_vtt_and_tsv():
    """The cues of the subtitles; what WebVTT would take for marks is written out."""
    words = [Token("<b>", 1.0, 1.5, 1.0), Token("&", 1.5, 2.0, 1.0)]
    spoken = Transcript("<b> &", -1.0, [], words)
    assert as_vtt("a.wav", spoken) == (
        "WEBVTT\n\n00:00:01.000 --> 00:00:02.000\n&lt;b&gt; &amp;\n\n"
    )
    assert as_tsv("a.wav", SPOKEN) == (
        "start\tend\ttext\n1500\t2750\tso it\n5250\t6500\tis done\n"
    )


@pytest.mark.parametrize(
    "word, space", [("abcdefghi", " "), ("字", ""), ("x" * 99, " ")]
)
def test_lines_of_subtitles_are_short(word, space):
    """Whatever the words; all of them are there, in cues of two lines at most."""
    words = [Token(word, 0.02 * i, 0.02 * i + 0.02, 1.0) for i in range(200)]
    text = space.join(word for _ in words)
    cues = as_srt("a.wav", Transcript(text, 0.0, words, words)).split("\n\n")[:-1]
    shown = [cue.split("\n")[2:] for cue in cues]
    lines = [line for cue in shown for line in cue]
    assert max(map(len, lines)) <= 42
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert word[42:] or max(map(len, shown)) == 2
