"""What was said and when: transcripts, and the formats they are printed in."""

import json
import math
import pathlib
from typing import NamedTuple

from cif_lobes.inference.alignment import word_spans

PAUSE = 0.2  # seconds; the closure of a stop consonant is shorter
MAX_WORD = 1.0  # seconds; a span that is longer begins with a pause
MAX_CUE = 5.0  # seconds of speech in a subtitle


def check_format(parser, given):
    """See that --format can hold all files."""
    if given.format == "srt" and len(given.files) > 1:
        parser.error(f"srt is for one file, got {len(given.files)}: run it for each")


def skip_message(file, error):
    """What is said of a file that cannot be read."""
    known = pathlib.Path(file).exists()
    cause = str(error).removeprefix(f"{file}: ") if known else "no such file"
    if known and "ffmpeg" not in cause:
        cause += " Try: ffmpeg -i IN OUT.flac"
    return f"skipped {file}: {cause}"


class Token(NamedTuple):
    """A token or word, when it fired, and how sure the network was."""

    token: str
    start: float
    """float: seconds; a pause belongs to the token that is fired after it."""
    end: float
    """float: seconds."""
    confidence: float
    """float, in [0, 1]: what the decoder's softmax gives the token, given the audio and
    the tokens before it; of a word, the product over its tokens. Not calibrated:
    networks are surer than they are right."""


class Transcript(NamedTuple):
    """What may have been said."""

    text: str
    score: float
    """float: log-probability, end of sentence included; of a recording that was cut,
    the sum over its windows."""
    tokens: list
    """list of Token"""
    words: list
    """list of Token: what stands between spaces; in Chinese, the tokens."""
    nbest: tuple = ()
    """tuple of Transcript: what the beam kept, best first, so this one is the first.
    Empty in these."""


def words_of(tokens, text):
    """What stands between the spaces of a text, from its Tokens."""
    words = []
    for word, start, end in word_spans(tokens, text):
        inside = (t.confidence for t in tokens if start <= t.start < end)
        words.append(Token(word, start, end, math.prod(inside)))
    return words


def as_text(file, transcript):
    """File and text, a tab between."""
    return f"{file}\t{transcript.text}\n"


def as_json(file, transcript):
    """One object in one line: the best hypothesis in full, all as text."""
    row = {"file": file, "text": transcript.text, "score": transcript.score}
    row["tokens"] = [token._asdict() for token in transcript.tokens]
    row["words"] = [word._asdict() for word in transcript.words]
    row["nbest"] = [{"text": t.text, "score": t.score} for t in transcript.nbest]
    return json.dumps(row, ensure_ascii=False) + "\n"


def as_ctm(file, transcript):
    """NIST's time marks: recording, channel, start, duration, word, confidence."""
    name = pathlib.Path(file).stem.replace(" ", "_")
    return "".join(
        f"{name} 1 {w.start:.3f} {w.end - w.start:.3f} {w.token} {w.confidence:.4f}\n"
        for w in transcript.words
    )


def as_srt(file, transcript):
    """Subtitles: a new one after each pause, and before one gets longer than 5 s."""
    cues, space = [], " " if " " in transcript.text else ""
    for word in transcript.words:
        start = max(word.start, word.end - MAX_WORD)
        paused = cues and start - cues[-1][1][-1].end > PAUSE
        if not cues or paused or word.end - cues[-1][0] > MAX_CUE:
            cues.append((start, []))
        cues[-1][1].append(word)
    return "".join(
        f"{number}\n{_clock(start)} --> {_clock(words[-1].end)}\n"
        f"{space.join(word.token for word in words)}\n\n"
        for number, (start, words) in enumerate(cues, start=1)
    )


def _clock(seconds):
    """For instance 01:02:03,456."""
    rest, milliseconds = divmod(round(seconds * 1000), 1000)
    rest, seconds = divmod(rest, 60)
    return f"{rest // 60:02d}:{rest % 60:02d}:{seconds:02d},{milliseconds:03d}"


FORMATS = {"text": as_text, "json": as_json, "ctm": as_ctm, "srt": as_srt}
