"""What was said and when; `cif_lobes.inference.formats` prints it."""

import heapq
import math
from typing import NamedTuple

from cif_lobes.inference.alignment import TokenSpan, word_spans


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
