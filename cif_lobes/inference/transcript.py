"""What was said and when: transcripts, and the formats they are printed in."""

import heapq
import json
import math
import pathlib
from typing import NamedTuple

from cif_lobes.inference.alignment import TokenSpan, word_spans
from cif_lobes.inference.windows import PAUSE

MAX_WORD = 1.0  # seconds; a span that is longer begins with a pause
MAX_CUE = 5.0  # seconds of speech in a subtitle


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
    # By number: what fires beyond the end of the audio begins and ends with it.
    numbered = [TokenSpan(t.token, i, i + 1) for i, t in enumerate(tokens)]
    words = []
    for word, first, end in word_spans(numbered, text):
        inside = tokens[first:end]
        confidence = math.prod(t.confidence for t in inside)
        words.append(Token(word, inside[0].start, inside[-1].end, confidence))
    return words


def join_windows(nbests, space, beam_size=1):
    """The Transcript of a recording from those of its windows.

    Arguments
    ---------
    nbests : list of list of Transcript
        Of each window, in order, best first; windows without speech have none.
    space : str
        What stands between words, and between windows.
    beam_size : int
        Hypotheses kept.

    Returns
    -------
    Transcript
    """
    best = [()]
    for nbest in nbests:
        # Scores add: the best combinations begin with the best so far.
        longer = [(*parts, part) for parts in best for part in nbest]
        best = heapq.nlargest(beam_size, longer, key=_score)
    joined = tuple(
        Transcript(
            space.join(part.text for part in parts if part.text),
            _score(parts),
            [token for part in parts for token in part.tokens],
            [word for part in parts for word in part.words],
        )
        for parts in best
    )
    return joined[0]._replace(nbest=joined)


def _score(parts):
    return sum((part.score for part in parts), 0.0)


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
